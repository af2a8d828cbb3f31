"""Checkers for the exercises on theory: an update of rank one, one for all rows at once, attention
as a gradient step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_rank_one(attempt: Callable | None) -> bool | None:
    """Exercise: rank_one(x, W, target), the smallest ΔW with x (W + ΔW) = target; x: (m,), W: (m,
    n), target: (n,).
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(0)
    x, W, target = draw.normal(size=5), draw.normal(size=(5, 3)), draw.normal(size=3)
    try:
        got = np.asarray(attempt(x, W, target), dtype=float)
    except ValueError as error:
        return say(
            f"not yet: the shapes do not fit ({error}); x is a row of 5, W 5 × 3, target a row"
            " of 3",
            False,
        )
    if got.shape != W.shape:
        return say(
            f"not yet: ΔW must have W's shape {W.shape}, yours has {got.shape}; an outer product"
            " makes it",
            False,
        )
    reached = x @ (W + got)
    if not np.allclose(reached, target):
        size = float(x @ x)
        if np.allclose(x @ got / size, target - x @ W):
            hint = "the direction is right and it is ‖x‖² times too long"
        elif np.allclose(x @ got / np.sqrt(size), target - x @ W):
            hint = "the direction is right and it is ‖x‖ times too long; ‖x‖ must be squared"
        elif np.allclose(x @ got, target):
            hint = "x ΔW is the target itself; what is missing is only the target minus x W"
        else:
            hint = "multiply your ΔW from the left with x: what should come out?"
        return say(
            f"not yet: x (W + ΔW) misses the target by {np.abs(reached - target).max():.2g};"
            f" {hint}",
            False,
        )
    if np.linalg.matrix_rank(got, tol=1e-9) > 1:
        return say("not yet: it reaches the target, but a smaller one of rank one does too", False)
    smallest = np.outer(x, target - x @ W) / (x @ x)
    if np.linalg.norm(got) > np.linalg.norm(smallest) * (1 + 1e-9):
        return say(
            "not yet: it reaches the target, but longer than needed; which left vector is nearest"
            " to x?",
            False,
        )
    return say("right: xᵀ(target - x W)/‖x‖² is exact, of rank one, and the smallest", True)


@checker
def check_static_update(attempt: Callable | None) -> bool | None:
    """Exercise: static_update(H, D), the smallest ΔW (d, d_ff) with H ΔWᵀ = D for all rows; H: (T,
    d_ff), D: (T, d).
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(1)
    H, D = draw.normal(size=(4, 7)), np.vstack([np.zeros((2, 3)), draw.normal(size=(2, 3))])
    try:
        got = np.asarray(attempt(H, D), dtype=float)
    except ValueError as error:
        return say(f"not yet: the shapes do not fit ({error}); H is 4 × 7, D 4 × 3", False)
    smallest = (np.linalg.pinv(H) @ D).T
    if got.shape == smallest.T.shape and np.allclose(got, smallest.T):
        return say("nearly: that is ΔWᵀ; turn it over", False)
    if got.shape != smallest.shape:
        return say(f"not yet: ΔW must be d × d_ff = {smallest.shape}, yours is {got.shape}", False)
    if not np.allclose(H @ got.T, D):
        return say(
            f"not yet: H ΔWᵀ misses D by {np.abs(H @ got.T - D).max():.2g}; the pseudo-inverse of H"
            " solves it",
            False,
        )
    if np.linalg.norm(got) > np.linalg.norm(smallest) * (1 + 1e-9):
        return say(
            "not yet: exact, but not the smallest; `pinv` gives the solution without superfluous"
            " parts",
            False,
        )
    return say(
        "right: Dᵀ(Hᵀ)†, exact on every row at once, its rank no larger than the rows that change",
        True,
    )


@checker
def check_attention_step(attempt: Callable | None) -> bool | None:
    """Exercise: attention_step(X, y, x, inner_lr): the prediction w·x after one gradient step from
    w = 0, without any w.

    X: (n, d), y: (n,), x: (d,). The loss is 1/(2n) Σ_j (w·x_j - y_j)²; write it as a sum over
    examples, as attention does.
    """
    if attempt is None:
        return say("not attempted")
    X, y, x, inner_lr = (
        np.array([[1.0, 0.0], [2.0, 1.0]]),
        np.array([1.0, -3.0]),
        np.array([1.0, 2.0]),
        0.2,
    )
    got = float(attempt(X, y, x, inner_lr))
    if np.isclose(got, -1.1):
        return say(
            "right: inner_lr/n Σ_j y_j (x_j·x): values y_j weighted by keys x_j against the"
            " query x",
            True,
        )
    hints = {
        -2.2: "divide by n: the loss is a mean over examples",
        1.1: "the sign: a step goes against the gradient",
        -5.5: "the step has a length: multiply by inner_lr",
        -11.0: "the step has a length, inner_lr, and the loss is a mean over n examples",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)), "what is ∇L at w = 0?"
    )
    return say(f"not yet: you return {got:g}, expected -1.1; {hint}", False)
