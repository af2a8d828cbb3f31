"""Checkers of the exercises on rewards: right ones pass, each likely mistake gets its hint, none
attempted says so.
"""

import numpy as np
import pytest

from tml_lib.lessons.exercises import grpo_support_set, imitate_or_explore, preference_and_reward


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


def kept_variance(values, n, ddof=1):
    return np.var(values, ddof=ddof) / n * (1 - n / len(values))


def speedup(sampling, update, n):
    return (sampling + update) / (sampling + update * n / 16)


VARIANCE = [
    (None, None, "not attempted"),
    (kept_variance, True, "all that a larger n buys is less noise"),
    (lambda v, n: kept_variance(v, n, 0), False, "ddof=1"),
    (lambda v, n: v.var(ddof=1) / n, False, "*with* replacement"),
    (lambda v, n: v.var() / n, False, "*with* replacement"),
    (lambda v, n: v.var(ddof=1) * (1 - n / len(v)), False, "divide by n"),
    (lambda v, n: kept_variance(v, n) ** 0.5, False, "square it"),
    (lambda v, n: 7.0, False, "many random draws"),
    (lambda v, n: kept_variance(v, n) if n > 1 else 0.0, False, "and n=1 you return"),
]
SPEEDUP = [
    (None, None, "not attempted"),
    (speedup, True, "right: where writing"),
    (lambda s, u, n: 16 / n, False, "all 16 are still written"),
    (lambda s, u, n: 1 / speedup(s, u, n), False, "the share of the time that is left"),
    (lambda s, u, n: 0.0, False, "old time of a step"),
    (lambda s, u, n: speedup(s, u, n) if n < 16 else 0.5, False, "n=16"),
]
STEPS_WITHIN = [
    (None, None, "not attempted"),
    (lambda s, u: int((s <= u).sum()), True, "every curve over steps"),
    (lambda s, u: int((s < u).sum()), False, "has ended"),
    (lambda s, u: int((s <= u).sum()) + 1, False, "under way"),
    (lambda s, u: int((s <= u).sum()) - 1, False, "no index"),
    (lambda s, u: 0, False, "how many of the times"),
]


def gain(before, after):
    return after - before, 100 * (after - before) / before


GAIN = [
    (None, None, "not attempted"),
    (gain, True, "state both"),
    (lambda b, a: gain(b, a)[::-1], False, "points come first"),
    (lambda b, a: (a - b, (a - b) / b), False, "that is a share"),
    (lambda b, a: (a - b, 100 * (a - b) / a), False, "not of `after`"),
    (lambda b, a: (a - b, 100 * a / b), False, "taking the 100 % away"),
    (lambda b, a: a - b, False, "return points and percent"),
    (lambda b, a: (b, a), False, "after minus before"),
]


def test_kept_variance_is_that_of_random_draws():
    values, rng = np.random.default_rng(0).normal(size=16), np.random.default_rng(1)
    drawn = [rng.permutation(values)[:4].mean() for _ in range(20000)]
    assert kept_variance(values, 4) == pytest.approx(np.var(drawn), rel=0.05)


@pytest.mark.parametrize(
    ("check", "case"),
    [(preference_and_reward.check_advantages, case) for case in ADVANTAGES]
    + [(preference_and_reward.check_varied, case) for case in VARIED]
    + [(grpo_support_set.check_kept_variance, case) for case in VARIANCE]
    + [(grpo_support_set.check_speedup, case) for case in SPEEDUP]
    + [(imitate_or_explore.check_steps_within, case) for case in STEPS_WITHIN]
    + [(imitate_or_explore.check_gain, case) for case in GAIN],
)
def test_checkers_tell_right_from_wrong_and_why(check, case, capsys):
    attempt, right, says = case
    assert check(attempt) is right
    assert says in capsys.readouterr().out
