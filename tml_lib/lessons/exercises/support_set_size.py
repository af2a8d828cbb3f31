"""Checkers for the exercises on support-set size: how often a trajectory is repeated, and mG-Pass@k
by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.claims.stats import mg_pass_at_k
from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_repeats(attempt: Callable | None) -> bool | None:
    """Exercise: repeats(steps, batch, questions, size), how often each distinct trajectory is
    trained on.
    """
    if attempt is None:
        return say("not attempted")
    cases = {(400, 64, 400, 1): 64.0, (400, 64, 400, 32): 2.0, (100, 8, 40, 4): 5.0}
    for case, wanted in cases.items():
        got = float(attempt(*case))
        if not np.isclose(got, wanted):
            hint = (
                "are the steps' batches counted?"
                if np.isclose(got * case[1], wanted)
                else "rows, by questions, by trajectories"
            )
            if np.isclose(got, wanted * case[3]):
                hint = (
                    "that is how often a *question* is seen; its visits are shared among its"
                    " trajectories"
                )
            return say(
                f"not yet: for {case} you return {got:g}, expected {wanted:g}; {hint}", False
            )
    return say("right: every question is visited equally often; only the repeats change", True)


@checker
def check_majority(attempt: Callable | None) -> bool | None:
    """Exercise: majority(right, n, k), mG-Pass@k of one question from `right` right ones of n
    samples (RaML Eq. 23).
    """
    if attempt is None:
        return say("not attempted")
    for right in (0, 5, 8, 12, 16):
        got, wanted = float(attempt(right, 16, 8)), mg_pass_at_k(16, right, 8)
        if not np.isclose(got, wanted):
            hint = (
                "the outer sum runs over the thresholds k/2 + 1, ..., k and has the factor 2/k in"
                " front"
            )
            if np.isclose(got, wanted * 8 / 2):
                hint = "the factor 2/k is missing"
            return say(
                f"not yet: for {right} right of 16 and k = 8 you return {got:.4f}, expected"
                f" {wanted:.4f}; {hint}",
                False,
            )
    return say("right: one right sample is not enough, a majority of the k must be", True)
