"""Checker for the exercise on updates and descent: the cosine of an exact step with the negative
gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_step_cosine(attempt: Callable | None) -> bool | None:
    """Exercise: step_cosine(D_before, D_after, H_a, g), the cosine of the smallest S with H_a Sᵀ =
    D_after - D_before and of -∇L = -gᵀ H_a; D_before, D_after, g: (|a|, d), H_a: (|a|, d_ff).
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(3)
    D_before, D_after, g = draw.normal(size=(3, 2, 4))
    H_a = draw.normal(size=(2, 7))
    got = np.asarray(attempt(D_before, D_after, H_a, g), dtype=float)
    if got.shape != ():
        return say(f"not yet: a cosine is one number, yours has shape {got.shape}", False)

    def cosine(wanted: np.ndarray) -> float:
        step, gradient = (np.linalg.pinv(H_a) @ wanted).T, g.T @ H_a
        return -np.sum(step * gradient) / np.linalg.norm(step) / np.linalg.norm(gradient)

    product = -np.sum((D_after - D_before) * g)
    mistakes = {
        "the sign: a step along -∇L must have cosine +1": -cosine(D_after - D_before),
        "this is the update up to token i; the step is its change since token i-1": cosine(D_after),
        "this is the inner product; divide by both lengths": product,
        "D and g are changes of outputs; S and ∇L are matrices made with H_a": product
        / (np.linalg.norm(D_after - D_before) * np.linalg.norm(g)),
    }
    if np.allclose(got, cosine(D_after - D_before)):
        return say("right: the inner product is cheap, and the smallest step has this length", True)
    for hint, wrong in mistakes.items():
        if np.allclose(got, wrong):
            return say(f"not yet: {hint}", False)
    return say("not yet: check H_a Sᵀ = D_after - D_before, and ∇L = gᵀ H_a", False)
