"""Checkers for the exercises on the LoRA outer loop: the size of an adapter, and its merging into
the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_adapter_size(attempt: Callable | None) -> bool | None:
    """Exercise: adapter_size(shapes, rank), the parameters of a LoRA adapter on matrices of
    (outputs, inputs).
    """
    if attempt is None:
        return say("not attempted")
    shapes, rank = [(576, 576), (192, 576), (1536, 576)], 4
    got, wanted = attempt(shapes, rank), 4 * (1152 + 768 + 2112)
    if got == wanted:
        return say(
            "right: A is (rank, inputs) and B is (outputs, rank), so a matrix costs rank * (outputs"
            " + inputs)",
            True,
        )
    hints = {
        sum(
            out * into for out, into in shapes
        ): "those are the matrices themselves, which stay frozen",
        rank
        * sum(
            out * into for out, into in shapes
        ): "a factor is long in one direction only: outputs or inputs, not both",
        rank * sum(out for out, _ in shapes): "that is B alone; A maps the inputs down to the rank",
        rank
        * sum(into for _, into in shapes): "that is A alone; B maps the rank up to the outputs",
        wanted // rank: "that is a single rank's worth",
    }
    return say(
        f"not yet: you return {got}, expected {wanted};"
        f" {hints.get(got, 'write down the shapes of A and B')}",
        False,
    )


@checker
def check_merged(attempt: Callable | None) -> bool | None:
    """Exercise: merged(weight, a, b, alpha), the matrix that does what weight and adapter do
    together.

    weight (outputs, inputs), a (rank, inputs), b (outputs, rank); alpha scales as in peft, alpha /
    rank.
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(0)
    weight, a, b, alpha = (
        draw.normal(size=(5, 3)),
        draw.normal(size=(2, 3)),
        draw.normal(size=(5, 2)),
        6.0,
    )
    got, wanted = np.asarray(attempt(weight, a, b, alpha)), weight + 3.0 * b @ a
    if got.shape == wanted.shape and np.allclose(got, wanted):
        return say(
            "right: W + (alpha / rank) B A; after merging nothing of the adapter is left to"
            " compute",
            True,
        )
    wrong = {
        "you left out the scale alpha / rank": weight + b @ a,
        "the scale is alpha / rank, not alpha": weight + 6.0 * b @ a,
    }
    wrong |= {"that is the change alone; the frozen matrix is still there": 3.0 * b @ a}
    close = (
        text
        for text, table in wrong.items()
        if got.shape == table.shape and np.allclose(got, table)
    )
    hint = next(
        close,
        f"expected shape {wanted.shape}, got {got.shape}; which product of a and b has the shape of"
        " the weight?",
    )
    return say(f"not yet: {hint}", False)
