"""Checkers for the exercises on imitating or exploring: steps within the same time, and a gain in
points and in percent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_steps_within(attempt: Callable | None) -> bool | None:
    """Exercise: steps_within(seconds, until), how many steps have ended by a time; seconds: (n,),
    when each has, rising.
    """
    if attempt is None:
        return say("not attempted")
    seconds = np.array([1.5, 2.0, 4.0, 7.5])
    for until, wanted in ((5.0, 3), (4.0, 3), (1.0, 0), (9.0, 4)):
        got = int(attempt(seconds.copy(), until))
        if got != wanted:
            hints = {
                wanted - 1: (
                    "a step that ends exactly then has ended; and the number of steps is no index"
                ),
                wanted + 1: "count steps that have ended, not the one that is under way",
            }
            hint = hints.get(got, "how many of the times are not above `until`?")
            return say(
                f"not yet: for {seconds.tolist()} and until={until:g} you return {got}, not"
                f" {wanted}; {hint}",
                False,
            )
    return say("right: and with it every curve over steps becomes one over time", True)


@checker
def check_gain(attempt: Callable | None) -> bool | None:
    """Exercise: gain(before, after), the difference in points and in percent of `before`."""
    if attempt is None:
        return say("not attempted")
    for before, after in ((20.0, 25.0), (4.0, 3.0)):
        wanted = (after - before, 100 * (after - before) / before)
        got = tuple(np.asarray(attempt(before, after), dtype=float).ravel())
        if len(got) != 2:
            return say(f"not yet: you return {len(got)} numbers; return points and percent", False)
        if np.allclose(got, wanted):
            continue
        if np.allclose(got, wanted[::-1]):
            hint = "points come first, percent second"
        elif np.isclose(got[1], wanted[1] / 100):
            hint = "that is a share; percent are a hundred times as many"
        elif np.isclose(got[1], 100 * (after - before) / after):
            hint = "percent of `before`, not of `after`"
        elif np.isclose(got[1], 100 * after / before):
            hint = "what is left after taking the 100 % away that were there before?"
        else:
            hint = "after minus before; then the same as a share of before"
        shown = f"({got[0]:g}, {got[1]:g}), not ({wanted[0]:g}, {wanted[1]:g})"
        return say(
            f"not yet: for before={before:g} and after={after:g} you return {shown}; {hint}", False
        )
    return say("right: a small number needs few points for many percent, so state both", True)
