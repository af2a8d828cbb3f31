"""Checkers for the exercises on the tiny reasoner: how many orders a trajectory may have, and the
outer loop's loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_orders(attempt: Callable | None) -> bool | None:
    """Exercise: orders(steps), the number of valid orders of the statements of two independent
    chains of `steps` each.
    """
    if attempt is None:
        return say("not attempted")
    wanted = {steps: math.comb(2 * steps, steps) for steps in (1, 2, 3, 5)}
    got = {steps: attempt(steps) for steps in wanted}
    if got == wanted:
        return say(
            "right: choose the places of one chain's statements, C(2n, n); the rest is forced", True
        )
    bad = next(steps for steps in wanted if got[steps] != wanted[steps])
    hints = {
        math.factorial(2 * bad): "that counts orders in which a chain runs backwards",
        math.factorial(2 * bad)
        // math.factorial(bad): "only one of the chains keeps its order in your count",
        2**bad: "at each step either chain may continue, but there are 2n steps, and both must end",
        2
        ** (
            2 * bad
        ): "at each step either chain may continue, but each must be taken exactly n times",
    }
    hint = hints.get(got[bad], "list them for n = 2: AABB, ABAB, ...")
    return say(
        f"not yet: for {bad} statements a chain you return {got[bad]}, expected {wanted[bad]};"
        f" {hint}",
        False,
    )


@checker
def check_outer_loss(attempt: Callable | None) -> bool | None:
    """Exercise: outer_loss(log_probs, starts) of a batch: minus the mean log-probability of all
    learnt tokens.

    log_probs: list of (T,) arrays, the log-probability of every token of a row, nats; starts: where
    I ⊕ q ends in each.
    """
    if attempt is None:
        return say("not attempted")
    rows = [np.array([-9.0, -1.0, -3.0]), np.array([-5.0, -7.0, -2.0, -2.0, -2.0, -2.0])]
    got = float(attempt(rows, [1, 2]))
    if np.isclose(got, 2.0):
        return say("right: every learnt token counts once, the question not at all", True)
    hints = {
        33 / 9: (
            "that counts the question's tokens too; the model is not trained to write questions"
        ),
        -2.0: "the sign: a loss is minus a log-probability",
        12.0: "that is the sum; divide by the number of learnt tokens",
        6.0: "that is a sum over tokens and a mean over rows",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "which tokens are learnt, and how many are they?",
    )
    return say(f"not yet: you return {got:.3g}, expected 2; {hint}", False)
