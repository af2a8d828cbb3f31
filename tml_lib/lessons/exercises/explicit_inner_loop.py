"""Checkers for the exercises on an explicit inner loop: MAML's gradient by hand, and what a control
leaves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_outer_gradient(attempt: Callable | None) -> bool | None:
    """Exercise: outer_gradient(theta, a, s, b, q, inner_lr, steps), MAML's gradient for two
    parabolas, all plain numbers.

    Inner loss a/2 (theta - s)^2, outer loss b/2 (theta' - q)^2 with theta' = theta after `steps`
    inner steps; d/dtheta of it.
    """
    if attempt is None:
        return say("not attempted")
    theta, a, s, b, q, inner_lr = 1.0, 2.0, -0.5, 3.0, 0.8, 0.15
    factor = 1 - inner_lr * a

    def outer_gradient(steps):
        return b * (s + factor**steps * (theta - s) - q)

    for steps in (1, 3, 0):
        got, wanted = (
            float(attempt(theta, a, s, b, q, inner_lr, steps)),
            outer_gradient(steps) * factor**steps,
        )
        if np.isclose(got, wanted):
            continue
        hints = {
            outer_gradient(steps): (
                "that is FOMAML's estimate: moving theta moves theta' too, by a factor for each"
                " inner step"
            ),
            outer_gradient(0): (
                "that is the gradient of the outer loss at theta; it is wanted at theta', times"
                " dtheta'/dtheta"
            ),
            outer_gradient(0) * factor**steps: (
                "the factor is right, but the outer loss's gradient is wanted at theta', after the"
                " inner steps"
            ),
            outer_gradient(1) * factor: (
                "that is one inner step; take as many as asked, each from where the last one ended"
            ),
            outer_gradient(steps) * factor: "each inner step brings its own factor 1 - inner_lr a",
            outer_gradient(steps)
            * (1 - inner_lr * b)
            ** steps: "the inner step goes down the support's loss, so its curvature is a",
            outer_gradient(steps)
            * (1 + inner_lr * a)
            ** steps: "the sign: an inner step subtracts inner_lr times the gradient",
            -wanted: "the sign: this is the gradient, and the descent against it comes later",
        }
        hint = next(
            (text for wrong, text in hints.items() if np.isclose(got, wrong)),
            "write theta' as a formula in theta",
        )
        return say(
            f"not yet: with {steps} inner steps you return {got:.4g}, not {wanted:.4g}; {hint}",
            False,
        )
    return say(
        "right: FOMAML leaves out (1 - inner_lr a)^steps, small near inner_lr a = 1, and of either"
        " sign beyond it",
        True,
    )


@checker
def check_specific_share(attempt: Callable | None) -> bool | None:
    """Exercise: specific_share(before, sibling, foreign), the part of the inner step's gain that a
    foreign support lacks.

    Query losses (n,) before the inner step, after it on the sibling and after it on a foreign
    support; a ratio of means.
    """
    if attempt is None:
        return say("not attempted")
    before, sibling, foreign = (
        np.array(v) for v in ([3.0, 2.0, 4.0, 1.0], [0.5, 0.6, 0.4, 0.9], [0.6, 1.0, 0.7, 0.8])
    )
    own, other = before - sibling, before - foreign
    got, wanted = (
        np.asarray(attempt(before.copy(), sibling.copy(), foreign.copy()), dtype=float),
        1 - other.mean() / own.mean(),
    )
    if got.shape != ():
        return say(
            f"not yet: you return shape {got.shape}; one number is wanted, from means over all"
            " pairs",
            False,
        )
    if np.isclose(got, wanted):
        return say(
            "right: 0 is a mere switch, 1 is a step that only the sibling's support can make", True
        )
    hints = {
        other.mean() / own.mean(): (
            "that is the share which a foreign support gives as well; the rest is wanted"
        ),
        1 - (other / own).mean(): (
            "that is a mean of ratios, ruled by the pair that gained least; divide the means"
            " instead"
        ),
        (
            foreign - sibling
        ).mean(): "that is a difference in nats per token; divide by the whole gain",
        (foreign - sibling).mean()
        / before.mean(): "divide by the gain, before - sibling, not by the loss before",
        (foreign - sibling).mean() / foreign.mean(): (
            "divide by the gain, before - sibling, not by the loss on foreign support"
        ),
        (foreign - sibling).mean()
        / other.mean(): "divide by the whole gain, which is the sibling's",
        -wanted: (
            "the sign: a lower loss is a gain, so the sibling's advantage is foreign - sibling"
        ),
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)),
        "how much of before - sibling is foreign - sibling?",
    )
    return say(f"not yet: you return {float(got):.3g}, not {wanted:.3g}; {hint}", False)
