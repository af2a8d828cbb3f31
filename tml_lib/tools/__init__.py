"""The command line and what it runs: benchmarks, planner, sweeps, site, verification, shipped
checkpoints.

Start with `cli`.
"""
