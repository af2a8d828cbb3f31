"""One module per subject: its questions, its measurement, its estimands; parts of a long subject
stand beside it. `replays` says how each is made again.

Start with `trajectories`, the study of claims C1 and C2.
"""
