"""Checkers for the exercises on other models: when a curve has settled, and what a guess costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_settled(attempt: Callable | None) -> bool | None:
    """Exercise: settled(nll, near), the part of a trajectory after which L̂ stays within `near` of
    where it ends: 0 where it always does, 1 where only its last value does.

    nll: (|t|+1,) L̂ after every prefix, nats per token.
    """
    if attempt is None:
        return say("not attempted")
    cases = (
        ([2.0, 2.0, 1.05, 2.1, 1.05, 1.0], 0.8),
        ([1.0, 1.04, 0.96], 0.0),
        ([3.0, 2.0, 1.0], 1.0),
    )
    for values, wanted in cases:
        nll = np.array(values)
        got, near = float(attempt(nll.copy(), 0.1)), np.abs(nll - nll[-1]) <= 0.1
        if np.isclose(got, wanted):
            continue
        hints = {
            float(np.argmax(near)) / (len(nll) - 1): "it must *stay* near: later values count too",
            wanted - 1 / (len(nll) - 1): "one token early: the last value that is far is no place",
            1 - wanted: "that is the part that is left after it has settled",
            float(wanted * (len(nll) - 1)): "divide by the number of tokens",
            wanted * (len(nll) - 1) / len(nll): "n + 1 values belong to n tokens",
        }
        hint = next(
            (text for wrong, text in hints.items() if np.isclose(got, wrong)),
            "find the last value that is not near the end",
        )
        return say(
            f"not yet: for {values} and near=0.1 you return {got:g}, expected {wanted:g}; {hint}",
            False,
        )
    return say("right: and a text without any trajectory would count as 0", True)


@checker
def check_guess_nll(attempt: Callable | None) -> bool | None:
    """Exercise: guess_nll(sure), L̂ of a model that is sure of some of the answer's tokens and
    guesses each of the others among 7 values.

    sure: (|a|,) bool. Right is the share of guessed tokens times ln 7.
    """
    if attempt is None:
        return say("not attempted")
    cases = (([False, False], np.log(7)), ([True, False], np.log(7) / 2), ([True, True], 0.0))
    for sure, wanted in cases:
        got = float(attempt(np.array(sure)))
        if np.isclose(got, wanted):
            continue
        guessed = sure.count(False)
        hints = {
            guessed * np.log(7): "that is the sum; L̂ is a mean over the answer's tokens",
            -wanted: "the sign: a *negative* log-likelihood is positive",
            guessed / len(sure) * np.log2(7): "that is in bits; nats take the natural logarithm",
            guessed / len(sure) / 7: "that is a probability; L̂ takes its logarithm",
        }
        hint = next(
            (text for wrong, text in hints.items() if np.isclose(got, wrong)),
            "each guessed token costs ln 7, each sure one nothing",
        )
        return say(
            f"not yet: for {sure} you return {got:.3f}, expected {wanted:.3f}; {hint}", False
        )
    return say("right: half of the answer known is half of a guess", True)
