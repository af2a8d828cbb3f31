"""Meta-learning with an explicit inner loop: MAML, learned optimisers, a decoder that writes
gradient descent.

Start with `maml.meta_train`; `maml_mlp` is the same for small networks, several times faster.
"""
