"""Checkers for the exercises of the probing notebooks: landscape and path, token roles, efficiency.

As in `exercises`, a checker returns True for a right solution, False for a wrong one and None for one not attempted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.first_lessons import say


def check_filter_scaled(attempt: Callable | None) -> bool | None:
    """Exercise: filter_scaled(direction, weight), the direction with each row as long as the weight's (Li et al. 2018).

    direction, weight: (outputs, inputs) arrays; a filter is a row, the inputs' weights of one output.
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(0)
    direction, weight = draw.normal(size=(3, 4)), draw.normal(size=(3, 4)) * np.array([[0.1], [1.0], [10.0]])
    over = {"axis": 1, "keepdims": True}
    wanted = direction * np.linalg.norm(weight, **over) / np.linalg.norm(direction, **over)
    got = np.asarray(attempt(direction.copy(), weight.copy()), dtype=float)
    if got.shape == wanted.shape and np.allclose(got, wanted):
        return say("right: a small filter is moved a little, a large one far", True)
    hints = {
        "that is the paper's scaling: one factor for the whole tensor": direction
        * np.linalg.norm(weight)
        / np.linalg.norm(direction),
        "a filter is a row here, the weights of one output; you scaled columns": direction
        * np.linalg.norm(weight, axis=0)
        / np.linalg.norm(direction, axis=0),
        "divide by the direction's own length too": direction * np.linalg.norm(weight, **over),
    }
    near = (text for text, table in hints.items() if got.shape == table.shape and np.allclose(got, table))
    return say(
        f"not yet: {next(near, f'expected an array of shape {wanted.shape} whose rows have lengths of the weight')}", False
    )


def check_explained(attempt: Callable | None) -> bool | None:
    """Exercise: explained(points), the share of the points' variance in the plane of their two main directions.

    points: (n, d). Right are the two largest of the squared singular values of the centred points, by the sum of all.
    """
    if attempt is None:
        return say("not attempted")
    points = np.random.default_rng(0).normal(size=(9, 4)) * np.array([5.0, 3.0, 2.0, 1.0]) + 20.0
    squared = np.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
    got, wanted = float(attempt(points.copy())), float(squared[:2].sum() / squared.sum())
    if np.isclose(got, wanted):
        return say(f"right: {wanted:.3f} of the variance lies in the plane, the rest stands out of the picture", True)
    raw, sizes = np.linalg.svd(points, compute_uv=False) ** 2, np.sqrt(squared)
    hints = {
        float(raw[:2].sum() / raw.sum()): "centre the points first: a path's distance from the origin is no variance",
        float(sizes[:2].sum() / sizes.sum()): "variances are squares of singular values",
        float(squared[0] / squared.sum()): "that is one direction; a plane has two",
    }
    hint = next((text for wrong, text in hints.items() if np.isclose(got, wrong)), "look at the singular values' squares")
    return say(f"not yet: you return {got:.3f}, expected {wanted:.3f}; {hint}", False)


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
    near = (text for text, table in hints.items() if got.shape == table.shape and np.allclose(got, table))
    return say(f"not yet: {next(near, f'you return {got.tolist()}, expected {wanted.tolist()}')}", False)


def check_heavy_tail(attempt: Callable | None) -> bool | None:
    """Exercise: heavy_tail(), five values of L̂ that never change by more than 0.02 nats and whose mean relative change is
    above 10, while the median stays below 1."""
    if attempt is None:
        return say("not attempted")
    nll = np.asarray(attempt(), dtype=float)
    if nll.shape != (5,) or not (nll > 0).all():
        return say(f"not yet: give five positive numbers, got {nll.tolist()}", False)
    change = np.abs(np.diff(nll))
    relative = change / nll[:-1]
    if change.max() > 0.02:
        return say(
            f"not yet: one step changes L̂ by {change.max():.3g} nats; the smaller L̂ is, the less a large ratio needs", False
        )
    if relative.mean() <= 10:
        return say(f"not yet: the mean relative change is {relative.mean():.3g}; let L̂ come close to 0 once", False)
    if np.median(relative) >= 1:
        return say(f"not yet: the median is {np.median(relative):.3g}; once is enough", False)
    return say(f"right: mean {relative.mean():.3g}, median {np.median(relative):.3g}, and nothing moved by 0.02 nats", True)


def check_kept_share(attempt: Callable | None) -> bool | None:
    """Exercise: kept_share(full, short, at_once), the share of what thinking gains that a shortened trajectory keeps.

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
    hint = next((text for wrong, text in hints.items() if np.isclose(got, wrong)), "gain of the short one by gain of the whole")
    return say(f"not yet: for 0.8, 0.6 and 0.2 you return {got:.3f}, expected 0.667; {hint}", False)


def check_words_needed(attempt: Callable | None) -> bool | None:
    """Exercise: words_needed(budget, wanted), the smallest number of words at which the share of right answers is `wanted`.

    budget: number of words -> share of right answers when the trajectory is cut there; None where no budget suffices.
    """
    if attempt is None:
        return say("not attempted")
    budget = {0: 0.02, 8: 0.05, 16: 0.4, 24: 0.8, 32: 0.8}
    cases = {0.5: 24, 0.8: 24, 0.02: 0, 0.9: None}
    for wanted, right in cases.items():
        got = attempt(dict(budget), wanted)
        if got != right or (got is None) != (right is None):
            hint = {0.8: "reaching it exactly is enough", 0.9: "no budget suffices: return None", 0.02: "0 words may do"}
            text = hint.get(wanted, "take the smallest number of words that suffices")
            return say(f"not yet: for a share of {wanted} you return {got}, expected {right}; {text}", False)
    return say("right: budget forcing asks how early thinking may stop; a summary asks how little of it must be kept", True)
