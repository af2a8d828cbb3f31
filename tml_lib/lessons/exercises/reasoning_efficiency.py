"""Checkers for the exercises on reasoning efficiency: what a shortened trajectory keeps, and how
many words are needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_kept_share(attempt: Callable | None) -> bool | None:
    """Exercise: kept_share(full, short, at_once), the share of what thinking gains that a shortened
    trajectory keeps.

    Shares of right answers: after the whole trajectory, after the shortened one, without any.
    """
    if attempt is None:
        return say("not attempted")
    got = float(attempt(0.8, 0.6, 0.2))
    if np.isclose(got, 2 / 3):
        return say("right: what is measured from the answer without thinking, not from zero", True)
    hints = {
        0.75: "that counts answers which come without thinking as kept",
        0.4: "that is the gain of the shortened trajectory; divide by the gain of the whole",
        1 / 3: "that is the share that is lost",
        0.5: "divide by what the *whole* trajectory gains over none",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "gain of the short one by gain of the whole",
    )
    return say(f"not yet: for 0.8, 0.6 and 0.2 you return {got:.3f}, expected 0.667; {hint}", False)


def check_words_needed(attempt: Callable | None) -> bool | None:
    """Exercise: words_needed(budget, wanted), the smallest number of words at which the share of
    right answers is `wanted`.

    budget: number of words -> share of right answers when the trajectory is cut there; None where
    no budget suffices.
    """
    if attempt is None:
        return say("not attempted")
    budget = {0: 0.02, 8: 0.05, 16: 0.4, 24: 0.8, 32: 0.8}
    cases = {0.5: 24, 0.8: 24, 0.02: 0, 0.9: None}
    for wanted, right in cases.items():
        got = attempt(dict(budget), wanted)
        if got != right or (got is None) != (right is None):
            hint = {
                0.8: "reaching it exactly is enough",
                0.9: "no budget suffices: return None",
                0.02: "0 words may do",
            }
            text = hint.get(wanted, "take the smallest number of words that suffices")
            return say(
                f"not yet: for a share of {wanted} you return {got}, expected {right}; {text}",
                False,
            )
    return say(
        "right: budget forcing asks how early thinking may stop; a summary asks how little of it"
        " must be kept",
        True,
    )
