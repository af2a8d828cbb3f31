"""Checker for the exercise on comparing candidate answers by their likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_times_likelier(attempt: Callable | None) -> bool | None:
    """Exercise: times_likelier(right, wrong), each a pair (L̂ in nats per token, |a| tokens): how
    many times likelier the right answer is than the wrong one.

    Right is exp(|a_wrong| L̂_wrong - |a_right| L̂_right).
    """
    if attempt is None:
        return say("not attempted")
    right, wrong = (1.0, 2), (0.75, 4)
    got = float(attempt(right, wrong))
    if np.isclose(got, math.e):
        return say(
            "right: a mean per token is times the number of tokens before two answers compare", True
        )
    hints = {
        math.exp(-0.25): "that compares the means; an answer's log-likelihood is -|a| L̂",
        1 / math.e: "that is how many times likelier the *wrong* one is",
        1.0: "that is the difference of the log-likelihoods; take exp",
        math.exp(0.75 / 4 - 1 / 2): "L̂ is a mean already: multiply by the tokens, do not divide",
    }
    hint = next(
        (text for value, text in hints.items() if np.isclose(got, value)),
        "the likelihood of an answer is exp(-|a| L̂)",
    )
    return say(
        f"not yet: for right={right} and wrong={wrong} you return {got:g}, expected {math.e:.4g};"
        f" {hint}",
        False,
    )
