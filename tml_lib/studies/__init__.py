"""One module per subject: its questions, its measurement, its estimands. `replays` says how each is
made again.

Start with `trajectories`, the study of claims C1 and C2.
"""
