"""Checkers for the exercises of the notebooks: each runs the learner's function on known cases."""
