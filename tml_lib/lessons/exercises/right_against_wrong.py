"""Checkers for the exercises on right and wrong trajectories: the trend of a curve, and what is
left of a fall beside a control.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_trend(attempt: Callable | None) -> bool | None:
    """Exercise: trend(nll), Kendall's tau of a curve: the share of pairs of prefixes at which the
    later L̂ is higher minus the share at which it is lower.

    nll: (n,) L̂ after every prefix, nats per token, no two alike.
    """
    if attempt is None:
        return say("not attempted")
    nll = np.array([3.0, 3.2, 3.1, 2.9, 0.5])
    got = float(attempt(nll.copy()))
    if np.isclose(got, -0.6):
        return say("right: of ten pairs two rise and eight fall, and no size was asked for", True)
    hints = {
        0.6: "the sign: a curve that falls has a trend below 0",
        -6.0: "divide by the number of pairs",
        -0.5: "that compares neighbours only; every pair of prefixes counts",
        -1.2: "divide by the number of pairs, n (n - 1) / 2: each pair counts once",
        -0.24: "divide by the number of pairs, n (n - 1) / 2, not by n²",
        -0.8: "that is the share of falling pairs alone; the rising ones count too",
        0.2: "that is the share of rising pairs alone; take off the falling ones",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "for every pair i < j, take the sign of nll[j] - nll[i]",
    )
    return say(f"not yet: for {nll.tolist()} you return {got:g}, expected -0.6; {hint}", False)


@checker
def check_content(attempt: Callable | None) -> bool | None:
    """Exercise: content(gold, foreign, stated_at), gold's fall of L̂ before the answer is stated
    minus the other question's over as many tokens.

    gold, foreign: (n,) L̂ after every prefix, nats per token.
    """
    if attempt is None:
        return say("not attempted")
    gold, foreign = np.array([4.0, 3.5, 3.0, 1.0, 0.0]), np.array([3.6, 3.5, 3.4, 3.3, 3.2])
    got = float(attempt(gold.copy(), foreign.copy(), 2))
    if np.isclose(got, 0.8):
        return say(
            "right: what any text about numbers buys is taken off, and so is the statement", True
        )
    hints = {
        -0.8: "the sign: gold minus the control",
        3.6: "that counts the whole curves; stop at the last prefix before the statement",
        1.0: "that is gold's own fall; take off what the other question's text buys",
        0.4: "that compares L̂ at one prefix; each curve counts from its own start",
        2.7: "one token late: after `stated_at` tokens the answer is not stated yet",
        3.8: "both curves stop at `stated_at`",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "a fall is a value at the start minus a value at `stated_at`",
    )
    return say(
        f"not yet: for {gold.tolist()}, {foreign.tolist()} and stated_at=2 you return {got:g},"
        f" expected 0.8; {hint}",
        False,
    )
