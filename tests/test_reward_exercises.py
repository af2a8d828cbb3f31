"""Checkers of the exercises on rewards: right ones pass, each likely mistake gets its hint, none attempted says so."""

import numpy as np
import pytest

from tml_lib import reward_exercises


def advantages(rewards, *, ddof=1, exact=True):
    rewards = np.asarray(rewards, dtype=float)
    if exact and np.ptp(rewards) == 0:
        return np.zeros(len(rewards))
    return (rewards - rewards.mean()) / (rewards.std(ddof=ddof) + 1e-4)


def without_guard(rewards):
    return (rewards - rewards.mean()) / rewards.std(ddof=1)


def varied(chance, group):
    return 1 - chance**group - (1 - chance) ** group


ADVANTAGES = [
    (None, None, "not attempted"),
    (advantages, True, "right: they sum to 0"),
    (lambda r: list(advantages(r)), True, "right"),
    (lambda r: without_guard(r) if np.ptp(r) else 0 * r, True, "right"),
    (lambda r: -advantages(r), False, "positive advantage"),
    (lambda r: (r - r.mean()) / (r.var(ddof=1) + 1e-4), False, "its root"),
    (lambda r: advantages(r, ddof=0), False, "ddof=1"),
    (lambda r: r - r.mean(), False, "divide by the group's standard deviation"),
    (lambda r: r / (r.std(ddof=1) + 1e-4), False, "subtract the group's mean"),
    (lambda r: r - r.max(), False, "do they sum to 0?"),
    (lambda r: r.mean(), False, "a sample has an advantage each"),
    (without_guard, False, "you divide by it; return zeros"),
    (lambda r: advantages(r, exact=False), False, "AdamW makes a step of full size"),
    (lambda r: advantages(r) if np.ptp(r) else 0.0, False, "return zeros"),
]
VARIED = [
    (None, None, "not attempted"),
    (varied, True, "right: too easy"),
    (lambda p, g: 1 - (1 - p) ** g, False, "all right teaches nothing"),
    (lambda p, g: 1 - p**g, False, "all wrong teaches nothing"),
    (lambda p, g: p**g + (1 - p) ** g, False, "that all are equal"),
    (lambda p, g: 2 * p * (1 - p), False, "more pairs than one"),
    (lambda p, g: g * p * (1 - p), False, "variance of the number"),
    (lambda p, g: 0.3, False, "when are all of them equal?"),
    (lambda p, g: varied(p, g) if 0 < p < 1 else 1.0, False, "for a chance of 0 and 8 samples"),
]


@pytest.mark.parametrize(
    ("check", "case"),
    [(reward_exercises.check_advantages, case) for case in ADVANTAGES]
    + [(reward_exercises.check_varied, case) for case in VARIED],
)
def test_checkers_tell_right_from_wrong_and_why(check, case, capsys):
    attempt, right, says = case
    assert check(attempt) is right
    assert says in capsys.readouterr().out
