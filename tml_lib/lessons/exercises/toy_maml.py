"""Checkers for the exercises on MAML on toy tasks: the best start, the inner loop, the
meta-gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_inner_loop(attempt: Callable | None) -> bool | None:
    """Exercise: inner_loop(w, x, y, inner_lr, steps): w after gradient steps on mean((w x - y)^2);
    x, y: (K,), w a number.
    """
    if attempt is None:
        return say("not attempted")
    x, y = np.array([1.0, 2.0, -1.0]), np.array([2.0, 3.0, 0.5])
    got = float(attempt(0.5, x, y, 0.1, 2))
    curvature, target = np.mean(x**2), np.mean(x * y)

    def after(rate, steps):
        w = 0.5
        for _ in range(steps):
            w -= rate * (curvature * w - target)
        return w

    if np.isclose(got, after(0.2, 2)):
        return say(
            "right: each step starts where the last one ended, and the square brings a factor 2",
            True,
        )
    hints = {
        after(0.1, 2): "the square's derivative has a factor 2",
        after(0.2, 1): "that is one step, or the second one started again from w",
        after(-0.2, 2): "the sign: a step goes against the gradient",
        after(0.6, 2): "the loss is a mean over the K points, not a sum",
        0.5
        - 0.4
        * (
            curvature * 0.5 - target
        ): "both steps use the gradient at w; the second must use that at the moved w",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "what is d/dw of mean((w x - y)^2)?",
    )
    return say(
        f"not yet: after 2 steps you are at {got:.4g}, expected {after(0.2, 2):.4g}; {hint}", False
    )


@checker
def check_meta_gradient(attempt: Callable | None) -> bool | None:
    """Exercise: meta_gradient(w, x, y, x_q, y_q, inner_lr), d/dw of mean((w' x_q - y_q)^2), w' = w
    after an inner step.

    The inner loss is mean((w x - y)^2). All arguments but inner_lr are float64 tensors, w of no
    dimension.
    """
    if attempt is None:
        return say("not attempted")
    x, y, x_q, y_q = (
        torch.tensor(v, dtype=torch.float64)
        for v in ([1.0, -2.0], [0.5, 1.0], [3.0, 1.0], [1.0, -1.0])
    )
    try:
        got = float(attempt(torch.tensor(0.7, dtype=torch.float64), x, y, x_q, y_q, 0.05))
    except RuntimeError as error:
        return say(
            f"not yet: torch stops with '{str(error).splitlines()[0]}'; w must require a gradient",
            False,
        )
    w = 0.7 - 0.05 * 2 * float((x * (0.7 * x - y)).mean())
    first = 2 * float((x_q * (w * x_q - y_q)).mean())
    second = first * (1 - 2 * 0.05 * float((x**2).mean()))
    if np.isclose(got, second):
        return say(
            "right: the inner gradient depends on w too, which is the factor 1 - 2 inner_lr"
            " mean(x²)",
            True,
        )
    if np.isclose(got, first):
        hint = (
            "somewhere the inner gradient counts as a constant: what must torch.autograd.grad keep"
            " to differentiate it?"
        )
        return say(
            f"not yet: {got:.4g} is the *first-order* meta-gradient, expected {second:.4g}; {hint}",
            False,
        )
    return say(
        f"not yet: you return {got:.4g}, expected {second:.4g}; write w' as a formula in w and use"
        " the chain rule",
        False,
    )


@checker
def check_best_start(attempt: Callable | None) -> bool | None:
    """Exercise: best_start(c, m, inner_lr), the w with the lowest mean of c (w' - m)² after one
    inner step w' = w - 2 inner_lr c (w - m); c, m: (tasks,).
    """
    if attempt is None:
        return say("not attempted")
    c, m, inner_lr = np.array([4.0, 0.5, 1.5]), np.array([-1.0, 2.0, 0.5]), 0.1
    got = np.asarray(attempt(c, m, inner_lr), dtype=float)
    if got.shape != ():
        return say(f"not yet: the start is one number, yours has shape {got.shape}", False)

    def mean_by(weight: np.ndarray) -> float:
        return float(np.sum(weight * m) / np.sum(weight))

    left = 1 - 2 * inner_lr * c  # of the distance to the minimum, after one step
    mistakes = {
        "this is the best start before adapting": mean_by(c),
        "the loss is the square of what is left of the distance": mean_by(c * left),
        "the gradient of c (w - m)² is 2 c (w - m)": mean_by(c * (1 - inner_lr * c) ** 2),
        "the loss after the step still has the factor c": mean_by(left**2),
    }
    if np.isclose(got, mean_by(c * left**2)):
        return say("right: a mean of the minima, weighted by what one step leaves undone", True)
    for hint, wrong in mistakes.items():
        if np.isclose(got, wrong):
            return say(f"not yet: {hint}", False)
    return say(
        "not yet: write w' - m as a number times (w - m), then set the derivative to 0", False
    )
