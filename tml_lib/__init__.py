"""Helper library of the trajectory meta-learning kit: probing, claims and evidence for RaML (arXiv
2505.19815).

The modules stand in rooms, and each imports from its own room and from those before it only:
`records` and `runtime`, then `lm`, `data`, `measure`, `meta`, `train`, `claims`, `studies`,
`lessons`, `tools`. Importing the package itself loads nothing heavy.
"""

__version__ = "0.1.0"
