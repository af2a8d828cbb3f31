"""Checkers for the exercises on gradient descent written out: its steps as rows, and how far a
displacement is carried on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_descent(attempt: Callable | None) -> bool | None:
    """Exercise: iterates(X, y, w_0, inner_lr, steps) -> (steps + 1, d), gradient descent on 1/(2n)
    Σ_j (w·x_j - y_j)².
    """
    if attempt is None:
        return say("not attempted")
    X, y, w_0 = (
        np.array([[1.0, 0.0], [0.5, 2.0], [-1.0, 1.0]]),
        np.array([1.0, -2.0, 0.5]),
        np.array([1.0, -1.0]),
    )
    try:
        got = np.asarray(attempt(X, y, w_0, 0.3, 3), dtype=float)
    except ValueError as error:
        return say(
            f"not yet: the shapes do not fit ({error}); X is 3 × 2, y has 3 entries, w_0 has 2",
            False,
        )
    if got.shape != (4, 2):
        return say(f"not yet: return w_0, …, w_3 as rows, 4 × 2; yours is {got.shape}", False)

    def descend(rate):
        rows = [w_0]
        for _ in range(3):
            rows.append(rows[-1] - rate * X.T @ (X @ rows[-1] - y) / 3)
        return np.array(rows)

    if np.allclose(got, descend(0.3)):
        return say("right: w_{k+1} = w_k - inner_lr/n Xᵀ(X w_k - y)", True)
    hints = {
        0.6: "the half in the loss cancels the square's factor 2",
        0.9: "divide by n",
        -0.3: "against the gradient, not along",
    }
    hint = next(
        (text for rate, text in hints.items() if np.allclose(got, descend(rate))),
        "compare w_1 with a step by hand",
    )
    ends = got[-1].round(3).tolist(), descend(0.3)[-1].round(3).tolist()
    return say(f"not yet: your w_3 is {ends[0]}, expected {ends[1]}; {hint}", False)


@checker
def check_displacement(attempt: Callable | None) -> bool | None:
    """Exercise: displaced(X, inner_lr, delta, steps): how far w_{k+steps} moves where w_k is moved
    by delta; X: (n, d).
    """
    if attempt is None:
        return say("not attempted")
    X, delta = np.array([[1.0, 0.0], [0.5, 2.0], [-1.0, 1.0]]), np.array([1.0, -0.5])
    got = np.asarray(attempt(X, 0.3, delta, 2), dtype=float)
    step = np.eye(2) - 0.3 * X.T @ X / 3
    wanted = step @ step @ delta
    if got.shape == wanted.shape and np.allclose(got, wanted):
        return say("right: (I - inner_lr A)^m δ with A = XᵀX/n; the data's y do not matter", True)
    hint = "what does one step do to two starts that differ by δ? Subtract the two lines"
    if got.shape == wanted.shape and np.allclose(got, step @ delta):
        hint = "that is one step; take as many as asked"
    elif got.shape == wanted.shape and np.allclose(got, delta):
        hint = "a gradient step changes distances: the gradients at the two points differ by A δ"
    return say(
        f"not yet: you return {got.round(3).tolist()}, expected {wanted.round(3).tolist()}; {hint}",
        False,
    )
