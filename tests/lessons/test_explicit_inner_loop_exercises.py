"""Checkers of the exercises on an explicit inner loop: right ones pass, each likely mistake gets
its hint.
"""

import numpy as np
import pytest

from tml_lib.lessons.exercises import explicit_inner_loop


def outer_gradient(theta, a, s, b, q, inner_lr, steps):
    for _ in range(steps):
        theta = theta - inner_lr * a * (theta - s)
    return b * (theta - q)


def gradient(theta, a, s, b, q, inner_lr, steps):
    return outer_gradient(theta, a, s, b, q, inner_lr, steps) * (1 - inner_lr * a) ** steps


def share(before, sibling, foreign):
    return np.mean(foreign - sibling) / np.mean(before - sibling)


GRADIENTS = [
    (None, None, "not attempted"),
    (gradient, True, "right: FOMAML leaves out"),
    (outer_gradient, False, "FOMAML's estimate"),
    (lambda *given: outer_gradient(*given[:6], 0), False, "gradient of the outer loss at theta;"),
    (
        lambda *g: outer_gradient(*g[:6], 0) * (1 - g[5] * g[1]) ** g[6],
        False,
        "the outer loss's gradient is wanted at theta'",
    ),
    (lambda *g: gradient(*g[:6], 1), False, "take as many as asked"),
    (
        lambda *g: outer_gradient(*g) * (1 - g[5] * g[1]),
        False,
        "each inner step brings its own factor",
    ),
    (lambda *g: outer_gradient(*g) * (1 - g[5] * g[3]) ** g[6], False, "its curvature is a"),
    (lambda *g: outer_gradient(*g) * (1 + g[5] * g[1]) ** g[6], False, "an inner step subtracts"),
    (lambda *g: -gradient(*g), False, "the descent against it comes later"),
    (lambda *g: 0.0, False, "write theta' as a formula"),
]
SHARES = [
    (None, None, "not attempted"),
    (share, True, "right: 0 is a mere switch"),
    (lambda b, s, f: 1 - np.mean(b - f) / np.mean(b - s), True, "right"),
    (lambda b, s, f: np.mean(b - f) / np.mean(b - s), False, "the rest is wanted"),
    (lambda b, s, f: np.mean((f - s) / (b - s)), False, "divide the means instead"),
    (lambda b, s, f: np.mean(f - s), False, "divide by the whole gain"),
    (lambda b, s, f: np.mean(f - s) / np.mean(b), False, "not by the loss before"),
    (lambda b, s, f: np.mean(f - s) / np.mean(f), False, "not by the loss on foreign"),
    (lambda b, s, f: np.mean(f - s) / np.mean(b - f), False, "which is the sibling's"),
    (lambda b, s, f: -share(b, s, f), False, "a lower loss is a gain"),
    (lambda b, s, f: 0.5, False, "how much of before - sibling"),
    (lambda b, s, f: (f - s) / (b - s), False, "one number is wanted"),
]


@pytest.mark.parametrize(
    ("check", "case"),
    [(explicit_inner_loop.check_outer_gradient, case) for case in GRADIENTS]
    + [(explicit_inner_loop.check_specific_share, case) for case in SHARES],
)
def test_checkers_tell_right_from_wrong_and_why(check, case, capsys):
    attempt, right, says = case
    assert check(attempt) is right
    assert says in capsys.readouterr().out
