"""The probing notebooks' exercises: right solutions pass, known mistakes get their hint."""

import numpy as np
import pytest

from tml_lib.claims import stats
from tml_lib.lessons.exercises import (
    landscape_and_path,
    other_models,
    probing_trajectories,
    reasoning_efficiency,
    right_against_wrong,
    token_roles,
)
from tml_lib.studies import program_probes


def scaled(direction, weight):
    return (
        direction
        * np.linalg.norm(weight, axis=1, keepdims=True)
        / np.linalg.norm(direction, axis=1, keepdims=True)
    )


def explained(points):
    squared = np.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
    return squared[:2].sum() / squared.sum()


def kept(full, short, at_once):
    return (short - at_once) / (full - at_once)


def needed(budget, wanted):
    return next((words for words, share in sorted(budget.items()) if share >= wanted), None)


def nll(log_probs, start):
    return -log_probs[start:].mean()


def copied(nll, at):
    return (nll[at] - nll[-1]) / (nll[0] - nll[-1])


def pairs(nll, sign=np.sign):
    """Of every pair of values, what `sign` makes of the later minus the earlier."""
    return [sign(nll[j] - nll[i]) for j in range(len(nll)) for i in range(j)]


def content(gold, foreign, at):
    return (gold[0] - gold[at]) - (foreign[0] - foreign[at])


def settled(nll, near):
    assert near == program_probes.NEAR
    return program_probes.settled(nll)


def guess(sure):
    return np.mean(~sure) * np.log(7)


# (checker, right, wrong, hint)
PARTS = [
    (
        probing_trajectories.check_copied_share,
        copied,
        lambda n, at: copied(n, at - 1),
        "one token early",
    ),
    (
        probing_trajectories.check_copied_share,
        copied,
        lambda n, at: copied(n, at + 1),
        "one token late",
    ),
    (
        probing_trajectories.check_copied_share,
        copied,
        lambda n, at: (n[at] - n[-1]) / (n[1] - n[-1]),
        "begins at `nll[0]`",
    ),
    (
        probing_trajectories.check_copied_share,
        copied,
        lambda n, at: (n[at] - n[-2]) / (n[0] - n[-2]),
        "ends at `nll[-1]`",
    ),
    (right_against_wrong.check_trend, stats.trend, lambda n: -stats.trend(n), "the sign"),
    (right_against_wrong.check_trend, stats.trend, lambda n: sum(pairs(n)), "number of pairs"),
    (
        right_against_wrong.check_trend,
        stats.trend,
        lambda n: np.sign(np.diff(n)).mean(),
        "neighbours only",
    ),
    (
        right_against_wrong.check_trend,
        stats.trend,
        lambda n: sum(pairs(n)) / len(n),
        "each pair counts once",
    ),
    (right_against_wrong.check_trend, stats.trend, lambda n: sum(pairs(n)) / len(n) ** 2, "by n²"),
    (
        right_against_wrong.check_trend,
        stats.trend,
        lambda n: -np.mean(pairs(n, lambda x: x < 0)),
        "falling pairs alone",
    ),
    (
        right_against_wrong.check_trend,
        stats.trend,
        lambda n: np.mean(pairs(n, lambda x: x > 0)),
        "rising pairs alone",
    ),
    (right_against_wrong.check_trend, stats.trend, lambda n: 9, "for every pair"),
    (right_against_wrong.check_content, content, lambda g, f, at: content(f, g, at), "the sign"),
    (
        right_against_wrong.check_content,
        content,
        lambda g, f, at: content(g, f, -1),
        "whole curves",
    ),
    (right_against_wrong.check_content, content, lambda g, f, at: g[0] - g[at], "gold's own fall"),
    (
        right_against_wrong.check_content,
        content,
        lambda g, f, at: f[at] - g[at],
        "from its own start",
    ),
    (right_against_wrong.check_content, content, lambda g, f, at: content(g, f, 3), "token late"),
    (
        right_against_wrong.check_content,
        content,
        lambda g, f, at: (g[0] - g[-1]) - (f[0] - f[at]),
        "both curves stop",
    ),
    (
        other_models.check_settled,
        settled,
        lambda n, near: np.argmax(abs(n - n[-1]) <= near) / (len(n) - 1),
        "*stay* near",
    ),
    (
        other_models.check_settled,
        settled,
        lambda n, near: settled(n, near) - 1 / (len(n) - 1),
        "one token early",
    ),
    (other_models.check_settled, settled, lambda n, near: 1 - settled(n, near), "that is left"),
    (
        other_models.check_settled,
        settled,
        lambda n, near: settled(n, near) * (len(n) - 1),
        "number of tokens",
    ),
    (
        other_models.check_settled,
        settled,
        lambda n, near: settled(n, near) * (len(n) - 1) / len(n),
        "belong to n tokens",
    ),
    (other_models.check_guess_nll, guess, lambda s: sum(~s) * np.log(7), "that is the sum"),
    (other_models.check_guess_nll, guess, lambda s: -guess(s), "the sign"),
    (other_models.check_guess_nll, guess, lambda s: np.mean(~s) * np.log2(7), "in bits"),
    (other_models.check_guess_nll, guess, lambda s: np.mean(~s) / 7, "a probability"),
]

CASES = [
    *PARTS,
    (probing_trajectories.check_answer_nll, nll, lambda p, s: -p.mean(), "template's tokens"),
    (probing_trajectories.check_answer_nll, nll, lambda p, s: p[s:].mean(), "sign"),
    (probing_trajectories.check_answer_nll, nll, lambda p, s: -p[s:].sum(), "a mean"),
    (
        probing_trajectories.check_copied_share,
        copied,
        lambda n, at: (n[0] - n[at]) / (n[0] - n[-1]),
        "*before* the statement",
    ),
    (
        reasoning_efficiency.check_kept_share,
        kept,
        lambda f, s, a: s / f,
        "without thinking as kept",
    ),
    (
        reasoning_efficiency.check_kept_share,
        kept,
        lambda f, s, a: s - a,
        "divide by the gain of the whole",
    ),
    (
        reasoning_efficiency.check_kept_share,
        kept,
        lambda f, s, a: 1 - kept(f, s, a),
        "that is lost",
    ),
    (reasoning_efficiency.check_kept_share, kept, lambda f, s, a: 9, "gain of the short one"),
    (
        reasoning_efficiency.check_words_needed,
        needed,
        lambda b, w: next((k for k, v in b.items() if v > w), None),
        "exactly is enough",
    ),
    (reasoning_efficiency.check_words_needed, needed, lambda b, w: max(b), "smallest number"),
    (
        reasoning_efficiency.check_words_needed,
        needed,
        lambda b, w: needed(b, min(w, 0.8)),
        "return None",
    ),
    (
        landscape_and_path.check_filter_scaled,
        scaled,
        lambda d, w: d * np.linalg.norm(w) / np.linalg.norm(d),
        "one factor for the whole",
    ),
    (
        landscape_and_path.check_filter_scaled,
        scaled,
        lambda d, w: scaled(d.T, w.T).T,
        "you scaled columns",
    ),
    (
        landscape_and_path.check_filter_scaled,
        scaled,
        lambda d, w: d * np.linalg.norm(w, axis=1, keepdims=True),
        "own length too",
    ),
    (
        landscape_and_path.check_filter_scaled,
        scaled,
        lambda d, w: d[0],
        "expected an array of shape",
    ),
    (
        landscape_and_path.check_explained,
        explained,
        lambda p: explained(np.vstack([p, -p])),
        "centre the points",
    ),
    (landscape_and_path.check_explained, explained, lambda p: np.nan, "singular values' squares"),
    (
        token_roles.check_relative_changes,
        lambda n: abs(np.diff(n)) / n[:-1],
        lambda n: abs(np.diff(n)) / n[1:],
        "*before* the token",
    ),
    (
        token_roles.check_relative_changes,
        lambda n: abs(np.diff(n)) / n[:-1],
        lambda n: np.diff(n) / n[:-1],
        "without a sign",
    ),
    (
        token_roles.check_relative_changes,
        lambda n: abs(np.diff(n)) / n[:-1],
        lambda n: abs(np.diff(n)),
        "change itself",
    ),
    (
        token_roles.check_heavy_tail,
        lambda: [0.02, 0.02, 1e-4, 0.02, 0.02],
        lambda: [1, 1e-3, 1, 1, 1],
        "changes L̂ by",
    ),
    (
        token_roles.check_heavy_tail,
        lambda: [0.02, 0.02, 1e-4, 0.02, 0.02],
        lambda: [1.0] * 5,
        "mean relative change is 0",
    ),
    (
        token_roles.check_heavy_tail,
        lambda: [0.02, 0.02, 1e-4, 0.02, 0.02],
        lambda: [1e-4, 0.01] * 2 + [1e-4],
        "once is enough",
    ),
    (
        token_roles.check_heavy_tail,
        lambda: [0.02, 0.02, 1e-4, 0.02, 0.02],
        lambda: [1.0, -1.0],
        "five positive numbers",
    ),
]


@pytest.mark.parametrize(("check", "right", "wrong", "hint"), CASES)
def test_checkers_tell_right_from_wrong_and_say_why(check, right, wrong, hint, capsys):
    assert check(None) is None
    assert "not attempted" in capsys.readouterr().out
    assert check(right) is True
    capsys.readouterr()
    assert check(wrong) is False
    assert hint in capsys.readouterr().out


# None is a right answer of words_needed; test_checking.py asks the landscape's
WATCHED = {
    check.__name__: check
    for check, *_ in CASES
    if check is not reasoning_efficiency.check_words_needed
    and check.__module__ != landscape_and_path.__name__
}


@pytest.mark.parametrize("check", WATCHED.values(), ids=WATCHED)
def test_a_learners_own_error_is_told_in_one_line(check, capsys):
    assert check(lambda *_: undefined) is False  # noqa: F821
    assert "NameError: name 'undefined' is not defined" in capsys.readouterr().out
    assert check(lambda *_: None) is False
    assert "your function returns None" in capsys.readouterr().out
