"""Checkers of the outer loop's exercises: right ones pass, each likely mistake gets its hint, none
attempted says so.
"""

import math

import numpy as np
import pytest
from scipy.stats import hypergeom

from tml_lib.data import programs
from tml_lib.lessons.exercises import (
    generalisation,
    lora_outer_loop,
    support_set_size,
    the_tiny_reasoner,
)


def loss(rows, starts):
    kept = [row[start:] for row, start in zip(rows, starts, strict=True)]
    return -np.concatenate(kept).mean()


def majority(right, n, k):
    return 2 / k * sum(hypergeom.sf(i - 1, n, right, k) for i in range(k // 2 + 1, k + 1))


def same(text, other, *, sort=True):
    found = []
    for question in (text, other):
        program = programs.parse(question)
        follows = {s.operand: s for s in program.statements}
        chains = [
            (value, follows[letter].operator, follows[letter].literal)
            for letter, value in program.inputs
        ]
        found.append(sorted(chains) if sort else chains)
    return found[0] == found[1]


def nested(groups, rng, *, seeds=True, questions=True):
    chosen = rng.integers(len(groups), size=len(groups)) if seeds else range(len(groups))
    return np.mean(
        [
            rng.choice(groups[k], len(groups[k])).mean() if questions else groups[k].mean()
            for k in chosen
        ]
    )


def size(shapes, rank):
    return rank * sum(map(sum, shapes))


def merged(w, a, b, alpha):
    return w + alpha / len(a) * b @ a


CASES = [
    (
        lora_outer_loop.check_adapter_size,
        size,
        lambda shapes, rank: sum(o * i for o, i in shapes),
        "stay frozen",
    ),
    (
        lora_outer_loop.check_adapter_size,
        size,
        lambda shapes, rank: rank * sum(o for o, _ in shapes),
        "B alone",
    ),
    (lora_outer_loop.check_adapter_size, size, lambda shapes, rank: 7, "write down the shapes"),
    (lora_outer_loop.check_merged, merged, lambda w, a, b, alpha: w + b @ a, "left out the scale"),
    (
        lora_outer_loop.check_merged,
        merged,
        lambda w, a, b, alpha: w + alpha * b @ a,
        "alpha / rank, not alpha",
    ),
    (lora_outer_loop.check_merged, merged, lambda w, a, b, alpha: a, "which product"),
    (
        the_tiny_reasoner.check_orders,
        lambda n: math.comb(2 * n, n),
        lambda n: 4**n,
        "exactly n times",
    ),
    (
        the_tiny_reasoner.check_orders,
        lambda n: math.comb(2 * n, n),
        lambda n: math.factorial(2 * n),
        "backwards",
    ),
    (the_tiny_reasoner.check_orders, lambda n: math.comb(2 * n, n), lambda n: 7, "list them"),
    (
        the_tiny_reasoner.check_outer_loss,
        loss,
        lambda rows, starts: -np.concatenate(rows).mean(),
        "question's tokens",
    ),
    (the_tiny_reasoner.check_outer_loss, loss, lambda rows, starts: -loss(rows, starts), "sign"),
    (
        the_tiny_reasoner.check_outer_loss,
        loss,
        lambda rows, starts: 6 * loss(rows, starts),
        "that is the sum",
    ),
    (
        support_set_size.check_repeats,
        lambda s, b, q, k: s * b / q / k,
        lambda s, b, q, k: s * b / q,
        "visits are shared",
    ),
    (
        support_set_size.check_repeats,
        lambda s, b, q, k: s * b / q / k,
        lambda s, b, q, k: s / q / k,
        "batches",
    ),
    (
        support_set_size.check_majority,
        majority,
        lambda c, n, k: majority(c, n, k) * k / 2,
        "factor 2/k",
    ),
    (support_set_size.check_majority, majority, lambda c, n, k: c / n, "thresholds"),
    (generalisation.check_same_program, same, lambda a, b: a == b, "letters are only names"),
    (
        generalisation.check_same_program,
        same,
        lambda a, b: same(a, b, sort=False),
        "which chain stands first",
    ),
    (generalisation.check_same_program, same, lambda a, b: True, "another literal"),
    (
        generalisation.check_nested,
        nested,
        lambda g, r: nested(g, r, seeds=False),
        "only the questions vary",
    ),
    (
        generalisation.check_nested,
        nested,
        lambda g, r: nested(g, r, questions=False),
        "only the seeds vary",
    ),
]


@pytest.mark.parametrize(("check", "right", "wrong", "hint"), CASES)
def test_checkers(check, right, wrong, hint, capsys):
    assert check(None) is None
    assert check(right) is True
    assert check(wrong) is False
    assert hint in capsys.readouterr().out
