"""Checkers for the exercises on token roles: relative changes of the loss, and why their mean has a
heavy tail.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, known_error, say


@checker
def check_relative_changes(attempt: Callable | None) -> bool | None:
    """Exercise: relative_changes(nll), |L̂_i - L̂_{i-1}| / L̂_{i-1} for i = 1..n (RaML Fig. 6)."""
    if attempt is None:
        return say("not attempted")
    nll = np.array([2.0, 1.0, 1.5, 0.03, 0.3])
    got, wanted = np.asarray(attempt(nll.copy()), dtype=float), np.array([0.5, 0.5, 0.98, 9.0])
    if got.shape == wanted.shape and np.allclose(got, wanted):
        return say("right: and note the last one, a change of 0.27 nats that counts as 9", True)
    hints = {
        "the change is divided by L̂ *before* the token": np.abs(np.diff(nll)) / nll[1:],
        "without a sign: the paper asks how much a token moves L̂": np.diff(nll) / nll[:-1],
        "that is the change itself; divide it by L̂ before the token": np.abs(np.diff(nll)),
    }
    told = f"you return {got.tolist()}, expected {wanted.tolist()}"
    return say(f"not yet: {known_error(hints, got) or told}", False)


@checker
def check_heavy_tail(attempt: Callable | None) -> bool | None:
    """Exercise: heavy_tail(), five values of L̂ that never change by more than 0.02 nats and whose
    mean relative change is above 10, while the median stays below 1."""
    if attempt is None:
        return say("not attempted")
    nll = np.asarray(attempt(), dtype=float)
    if nll.shape != (5,) or not (nll > 0).all():
        return say(f"not yet: give five positive numbers, got {nll.tolist()}", False)
    change = np.abs(np.diff(nll))
    relative = change / nll[:-1]
    if change.max() > 0.02:
        return say(
            f"not yet: one step changes L̂ by {change.max():.3g} nats; the smaller L̂ is, the less"
            " a large ratio needs",
            False,
        )
    if relative.mean() <= 10:
        return say(
            f"not yet: the mean relative change is {relative.mean():.3g}; let L̂ come close to 0"
            " once",
            False,
        )
    if np.median(relative) >= 1:
        return say(f"not yet: the median is {np.median(relative):.3g}; once is enough", False)
    return say(
        f"right: mean {relative.mean():.3g}, median {np.median(relative):.3g}, and nothing moved by"
        " 0.02 nats",
        True,
    )
