"""Checkers for the exercises on preference and reward: advantages within a group, and which groups
teach.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_advantages(attempt: Callable | None) -> bool | None:
    """Exercise: advantages(rewards), (r_i - mean r) / (std r + 1e-4) of one group, zeros where all
    rewards are equal.

    rewards: (G,) array; the standard deviation has G - 1 below. Whether 1e-4 stands below too is
    not checked.
    """
    if attempt is None:
        return say("not attempted")
    rewards = np.array([1.0, 0.0, 0.0, -1.0, 0.0, -0.5])
    centred = rewards - rewards.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        got = np.asarray(attempt(rewards.copy()), dtype=float)
        flat = [np.asarray(attempt(np.full(3, value)), dtype=float) for value in (1.0, 0.1)]
    wanted = centred / (rewards.std(ddof=1) + 1e-4)
    if got.shape != wanted.shape:
        return say(
            f"not yet: you return shape {got.shape}; a sample has an advantage each, shape"
            f" {wanted.shape}",
            False,
        )
    if not np.allclose(got, wanted, atol=1e-3):
        wrong = {
            "what is above the mean should have a positive advantage: r - mean, not mean - r": (
                -wanted
            ),
            "that has the variance below; divide by its root, the standard deviation": (
                centred / (rewards.var(ddof=1) + 1e-4)
            ),
            "the standard deviation has G - 1 below here: numpy wants ddof=1": (
                centred / (rewards.std() + 1e-4)
            ),
            "divide by the group's standard deviation": centred,
            "subtract the group's mean first: an advantage compares": (
                rewards / (rewards.std(ddof=1) + 1e-4)
            ),
        }
        hint = next(
            (text for text, table in wrong.items() if np.allclose(got, table, atol=1e-3)),
            "do they sum to 0?",
        )
        return say(
            f"not yet: for {rewards.tolist()} you return {got.round(3).tolist()}; {hint}", False
        )
    if not all(found.shape == (3,) and np.isfinite(found).all() for found in flat):
        return say(
            "not yet: where all rewards are equal the deviation is 0, and you divide by it; return"
            " zeros there",
            False,
        )
    if any(found.any() for found in flat):
        worst = max(abs(found).max() for found in flat)
        hint = (
            "their mean is rounded, and AdamW makes a step of full size from any gradient, however"
            " small: return exact zeros"
        )
        return say(f"not yet: three rewards of 0.1 give an advantage of {worst:.1g}; {hint}", False)
    return say("right: they sum to 0, and a group that agrees teaches exactly nothing", True)


@checker
def check_varied(attempt: Callable | None) -> bool | None:
    """Exercise: varied(chance, group), the chance that not all of `group` samples get the same
    reward.

    chance: that a sample is right, independently of the others; rewards are 1 and 0.
    """
    if attempt is None:
        return say("not attempted")
    for chance, group in ((0.1, 16), (0.8, 4), (0.5, 2), (0.0, 8), (1.0, 8)):
        right, wrong = chance**group, (1 - chance) ** group
        got, wanted = float(attempt(chance, group)), 1 - right - wrong
        if np.isclose(got, wanted, atol=1e-6):
            continue
        hints = {
            1 - wrong: (
                "that is the chance of a right sample; a group whose samples are all right teaches"
                " nothing either"
            ),
            1 - right: (
                "that is the chance of a wrong sample; a group whose samples are all wrong teaches"
                " nothing either"
            ),
            right + wrong: "that is the chance that all are equal",
            2
            * chance
            * (
                1 - chance
            ): "that is the chance that two samples differ; a group has more pairs than one",
            group
            * chance
            * (1 - chance): "that is the variance of the number of right ones, not a chance",
        }
        hint = next(
            (text for value, text in hints.items() if np.isclose(got, value)),
            "when are all of them equal?",
        )
        return say(
            f"not yet: for a chance of {chance:g} and {group} samples you return {got:.3g}, not"
            f" {wanted:.3g}; {hint}",
            False,
        )
    return say(
        "right: too easy and too hard questions teach nothing, and larger groups save more of them",
        True,
    )
