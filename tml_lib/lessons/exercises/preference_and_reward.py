"""Checkers for the exercises on preference and reward: advantages, which groups teach, what a part of a group keeps and saves.

As in `exercises`, a checker returns True for a right solution, False for a wrong one and None for one not attempted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.first_lessons import say


def check_advantages(attempt: Callable | None) -> bool | None:
    """Exercise: advantages(rewards), (r_i - mean r) / (std r + 1e-4) of one group, zeros where all rewards are equal.

    rewards: (G,) array; the standard deviation has G - 1 below. Whether 1e-4 stands below too is not checked.
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
        return say(f"not yet: you return shape {got.shape}; a sample has an advantage each, shape {wanted.shape}", False)
    if not np.allclose(got, wanted, atol=1e-3):
        wrong = {
            "what is above the mean should have a positive advantage: r - mean, not mean - r": -wanted,
            "that has the variance below; divide by its root, the standard deviation": centred / (rewards.var(ddof=1) + 1e-4),
            "the standard deviation has G - 1 below here: numpy wants ddof=1": centred / (rewards.std() + 1e-4),
            "divide by the group's standard deviation": centred,
            "subtract the group's mean first: an advantage compares": rewards / (rewards.std(ddof=1) + 1e-4),
        }
        hint = next((text for text, table in wrong.items() if np.allclose(got, table, atol=1e-3)), "do they sum to 0?")
        return say(f"not yet: for {rewards.tolist()} you return {got.round(3).tolist()}; {hint}", False)
    if not all(found.shape == (3,) and np.isfinite(found).all() for found in flat):
        return say("not yet: where all rewards are equal the deviation is 0, and you divide by it; return zeros there", False)
    if any(found.any() for found in flat):
        worst = max(abs(found).max() for found in flat)
        hint = "their mean is rounded, and AdamW makes a step of full size from any gradient, however small: return exact zeros"
        return say(f"not yet: three rewards of 0.1 give an advantage of {worst:.1g}; {hint}", False)
    return say("right: they sum to 0, and a group that agrees teaches exactly nothing", True)


def check_varied(attempt: Callable | None) -> bool | None:
    """Exercise: varied(chance, group), the chance that not all of `group` samples get the same reward.

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
            1 - wrong: "that is the chance of a right sample; a group whose samples are all right teaches nothing either",
            1 - right: "that is the chance of a wrong sample; a group whose samples are all wrong teaches nothing either",
            right + wrong: "that is the chance that all are equal",
            2 * chance * (1 - chance): "that is the chance that two samples differ; a group has more pairs than one",
            group * chance * (1 - chance): "that is the variance of the number of right ones, not a chance",
        }
        hint = next((text for value, text in hints.items() if np.isclose(got, value)), "when are all of them equal?")
        return say(
            f"not yet: for a chance of {chance:g} and {group} samples you return {got:.3g}, not {wanted:.3g}; {hint}", False
        )
    return say("right: too easy and too hard questions teach nothing, and larger groups save more of them", True)


def check_kept_variance(attempt: Callable | None) -> bool | None:
    """Exercise: variance(values, n), of the mean of n of the G values, drawn without replacement: S²/n (1 - n/G).

    values: (G,) array; S² is their variance with G - 1 below.
    """
    if attempt is None:
        return say("not attempted")
    values = np.array([3.0, -1.0, 0.5, 0.0, -2.0, 1.0])
    size = len(values)
    for n in (2, 1, size):
        spread, whole = values.var(ddof=1), values.var()
        got, wanted = float(attempt(values.copy(), n)), spread / n * (1 - n / size)
        if np.isclose(got, wanted, atol=1e-6):
            continue
        replaced = "that is for draws *with* replacement; of all G there is only one choice, so the variance there is 0"
        hints = {
            whole / n * (1 - n / size): "without replacement the variance has G - 1 below: numpy wants ddof=1",
            spread / n: replaced,
            whole / n: replaced,
            spread * (1 - n / size): "divide by n: a mean of more varies less",
            wanted**0.5: "that is the standard deviation; square it",
        }
        hint = next((text for value, text in hints.items() if np.isclose(got, value)), "compare with many random draws")
        return say(f"not yet: for {values.tolist()} and n={n} you return {got:.3g}, not {wanted:.3g}; {hint}", False)
    return say("right: on average it is the whole mean, and all that a larger n buys is less noise", True)


def check_speedup(attempt: Callable | None) -> bool | None:
    """Exercise: speedup(sampling, update, n), how many steps on n of 16 samples take the time of one on all 16.

    sampling, update: seconds of a step on all 16; a step on n takes all of the former and n/16 of the latter.
    """
    if attempt is None:
        return say("not attempted")
    for sampling, update, n in ((3.0, 1.0, 4), (1.0, 1.0, 1), (2.0, 3.0, 16)):
        got, wanted = float(attempt(sampling, update, n)), (sampling + update) / (sampling + update * n / 16)
        if np.isclose(got, wanted, atol=1e-6):
            continue
        hints = {
            16 / n: "only the update gets shorter; all 16 are still written",
            1 / wanted: "that is the share of the time that is left; how many such steps fit into the old time?",
        }
        hint = next((text for value, text in hints.items() if np.isclose(got, value)), "old time of a step over the new one")
        shown = f"sampling={sampling:g}, update={update:g}, n={n}"
        return say(f"not yet: for {shown} you return {got:.3g}, not {wanted:.3g}; {hint}", False)
    return say("right: where writing the samples takes most of the time, following fewer of them saves little", True)


def check_steps_within(attempt: Callable | None) -> bool | None:
    """Exercise: steps_within(seconds, until), how many steps have ended by a time; seconds: (n,), when each has, rising."""
    if attempt is None:
        return say("not attempted")
    seconds = np.array([1.5, 2.0, 4.0, 7.5])
    for until, wanted in ((5.0, 3), (4.0, 3), (1.0, 0), (9.0, 4)):
        got = int(attempt(seconds.copy(), until))
        if got != wanted:
            hints = {
                wanted - 1: "a step that ends exactly then has ended; and the number of steps is no index",
                wanted + 1: "count steps that have ended, not the one that is under way",
            }
            hint = hints.get(got, "how many of the times are not above `until`?")
            return say(f"not yet: for {seconds.tolist()} and until={until:g} you return {got}, not {wanted}; {hint}", False)
    return say("right: and with it every curve over steps becomes one over time", True)


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
        return say(f"not yet: for before={before:g} and after={after:g} you return {shown}; {hint}", False)
    return say("right: a small number needs few points for many percent, so state both", True)
