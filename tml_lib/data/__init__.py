"""Questions and trajectories: `gsm`, `programs` (the tiny reasoner's), `toy`, the paper's sets
(`hub`), rewards.

Start with `gsm.gsm_symbolic`; a question is a `records.Question`.
"""
