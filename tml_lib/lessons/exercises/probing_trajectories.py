"""Checkers for the exercises on probing trajectories: the answer's loss, and the part of its fall
that can be copying.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_answer_nll(attempt: Callable | None) -> bool | None:
    """Exercise: answer_nll(log_probs, start) from the log-probabilities of all suffix tokens, (S,)
    nats -> float.

    Right is minus their mean from `start` on, the answer's own tokens (RaML Algorithm 3).
    """
    if attempt is None:
        return say("not attempted")
    log_probs = np.array([-9.0, -7.0, -1.0, -3.0])
    got = float(attempt(log_probs, 2))
    if np.isclose(got, 2.0):
        return say(
            "right: only the answer's own tokens count, as a mean, with the sign turned", True
        )
    hints = {
        5.0: "that averages the template's tokens too; start at `start`",
        -2.0: "the sign: a *negative* log-likelihood is positive",
        4.0: "that is the sum; L̂ is a mean, so that long and short answers compare",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "compare with the definition of L̂ above",
    )
    return say(
        f"not yet: for {log_probs.tolist()} and start=2 you return {got:g}, expected 2; {hint}",
        False,
    )


@checker
def check_copied_share(attempt: Callable | None) -> bool | None:
    """Exercise: copied_share(nll, stated_at), the share of the whole fall that comes after the
    answer is stated.

    nll: (|t|+1,) L̂ after every prefix, nats per token. Right is (L̂_stated - L̂_end) / (L̂_0 -
    L̂_end).
    """
    if attempt is None:
        return say("not attempted")
    nll = np.array([4.0, 3.0, 3.5, 1.0, 0.0])
    got = float(attempt(nll, 2))
    if np.isclose(got, 0.875):
        return say(
            "right: what falls after the statement can be copying, and here it is 7/8 of the whole",
            True,
        )
    hints = {
        0.125: "that is the share *before* the statement",
        3.5: "that is the fall in nats; divide by the whole fall",
        0.75: (
            "that starts one token early: `nll[stated_at]` is the last value before the statement"
        ),
        0.25: (
            "that starts one token late: the fall from `nll[stated_at]` to the next value belongs"
            " to the statement too"
        ),
        7 / 6: "the whole fall begins at `nll[0]`, before the first token",
        5 / 6: "the curve ends at `nll[-1]`",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "which two differences make the ratio?",
    )
    return say(
        f"not yet: for {nll.tolist()} and stated_at=2 you return {got:g}, expected 0.875; {hint}",
        False,
    )
