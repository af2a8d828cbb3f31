"""Helper library of the trajectory meta-learning kit: probing, claims and evidence for RaML (arXiv 2505.19815).

The modules form layers, and each imports only from lower ones:
0 `records`, `runtime`, `stats` · 1 `tasks`, `toy`, `models`, `answers`, `blocks`, `one_layer` ·
2 `probe`, `implicit`, `paths`, `rollouts` · 3 everything else.
Importing the package itself loads nothing heavy.
"""

__version__ = "0.1.0"
