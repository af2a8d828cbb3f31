"""Checkers for the exercises on landscape and path: a direction scaled by filter, and what a plane
shows of a path.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, known_error, say


@checker
def check_filter_scaled(attempt: Callable | None) -> bool | None:
    """Exercise: filter_scaled(direction, weight), the direction with each row as long as the
    weight's (Li et al. 2018).

    direction, weight: (outputs, inputs) arrays; a filter is a row, the inputs' weights of one
    output.
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(0)
    direction, weight = (
        draw.normal(size=(3, 4)),
        draw.normal(size=(3, 4)) * np.array([[0.1], [1.0], [10.0]]),
    )
    over = {"axis": 1, "keepdims": True}
    wanted = direction * np.linalg.norm(weight, **over) / np.linalg.norm(direction, **over)
    got = np.asarray(attempt(direction.copy(), weight.copy()), dtype=float)
    if got.shape == wanted.shape and np.allclose(got, wanted):
        return say("right: a small filter is moved a little, a large one far", True)
    hints = {
        "that is the paper's scaling: one factor for the whole tensor": (
            direction * np.linalg.norm(weight) / np.linalg.norm(direction)
        ),
        "a filter is a row here, the weights of one output; you scaled columns": (
            direction * np.linalg.norm(weight, axis=0) / np.linalg.norm(direction, axis=0)
        ),
        "divide by the direction's own length too": direction * np.linalg.norm(weight, **over),
    }
    expected = f"expected an array of shape {wanted.shape} whose rows have lengths of the weight"
    return say(f"not yet: {known_error(hints, got) or expected}", False)


@checker
def check_explained(attempt: Callable | None) -> bool | None:
    """Exercise: explained(points), the share of the points' variance in the plane of their two main
    directions.

    points: (n, d). Right are the two largest of the squared singular values of the centred points,
    by the sum of all.
    """
    if attempt is None:
        return say("not attempted")
    points = np.random.default_rng(0).normal(size=(9, 4)) * np.array([5.0, 3.0, 2.0, 1.0]) + 20.0
    squared = np.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
    got, wanted = float(attempt(points.copy())), float(squared[:2].sum() / squared.sum())
    if np.isclose(got, wanted):
        return say(
            f"right: {wanted:.3f} of the variance lies in the plane, the rest stands out of the"
            " picture",
            True,
        )
    raw, sizes = np.linalg.svd(points, compute_uv=False) ** 2, np.sqrt(squared)
    hints = {
        float(
            raw[:2].sum() / raw.sum()
        ): "centre the points first: a path's distance from the origin is no variance",
        float(sizes[:2].sum() / sizes.sum()): "variances are squares of singular values",
        float(squared[0] / squared.sum()): "that is one direction; a plane has two",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "look at the singular values' squares",
    )
    return say(f"not yet: you return {got:.3f}, expected {wanted:.3f}; {hint}", False)
