"""Checkers for the notebooks' exercises, a module for each notebook, of its name without the
number.

A checker runs the learner's function on known cases and says what to look at. It returns True for a
right solution, False for a wrong one and None for one not attempted (None given).
"""
