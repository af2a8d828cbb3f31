"""Checkers for the exercises on generalisation: when two questions are the same program, and draws
of seeds and questions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.data import programs
from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_same_program(attempt: Callable | None) -> bool | None:
    """Exercise: same(text, other), whether two questions are one program but for letters and the
    order of lines.
    """
    if attempt is None:
        return say("not attempted")
    base = "a=1 b=2\nc:= a+3\nd:= b*2\n?c ?d"
    cases = (
        ("c=1 e=2\na:= c+3\nf:= e*2\n?a ?f", True, "letters are only names"),
        (
            "a=1 b=2\nd:= b*2\nc:= a+3\n?d ?c",
            True,
            "the order of lines and of the letters asked for does not matter",
        ),
        ("a=2 b=1\nd:= b+3\nc:= a*2\n?c ?d", True, "which chain stands first does not matter"),
        ("a=1 b=2\nc:= a+4\nd:= b*2\n?c ?d", False, "another literal is another program"),
        (
            "a=1 b=2\nc:= b+3\nd:= a*2\n?c ?d",
            False,
            "the operations belong to the other start values there",
        ),
    )
    for other, wanted, why in cases:
        if bool(attempt(base, other)) != wanted:
            return say(
                f"not yet: {other!r} is {'the same as' if wanted else 'another than'} {base!r}:"
                f" {why}",
                False,
            )
    held_out = {
        programs.is_held_out(programs.parse(text))
        for text in (base, cases[0][0], cases[1][0], cases[2][0])
    }
    assert len(held_out) == 1  # what the kit's own splits rest on
    return say("right: compare what is left of each chain, its start and operations, as sets", True)


@checker
def check_nested(attempt: Callable | None) -> bool | None:
    """Exercise: resampled_mean(groups, rng): draw as many groups with replacement, resample within
    each, mean of the means.

    groups: list of (n,) arrays, one per seed; rng: numpy Generator. Checked by the spread of 2000
    such means.
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(0)
    groups = [draw.normal(centre, 6.0, 20) for centre in (-1.0, 0.0, 1.0, 2.0)]
    rng = np.random.default_rng(1)
    got = float(np.std([attempt(groups, rng) for _ in range(2000)]))
    centres = np.array([group.mean() for group in groups])
    between, within = centres.var() / 4, float(np.mean([group.var() / 20 for group in groups])) / 4
    if abs(got - np.sqrt(between + within)) < 0.03 * np.sqrt(between + within) + 0.01:
        return say("right: both the choice of seeds and the choice of questions vary", True)
    hint = "resample groups first, then values within each drawn group"
    if abs(got - np.sqrt(within)) < 0.03:
        hint = "only the questions vary; another lab would also have other seeds"
    elif abs(got - np.sqrt(between)) < 0.02:
        hint = "only the seeds vary; draw the values within each again"
    return say(
        f"not yet: your means spread by {got:.3f}, expected {np.sqrt(between + within):.3f};"
        f" {hint}",
        False,
    )
