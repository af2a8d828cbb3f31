"""Checkers for the exercises on published numbers: the error of an average over runs, and a
comparison matched by size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say
from tml_lib.studies import published


@checker
def check_averaged_error(attempt: Callable | None) -> bool | None:
    """Exercise: error(chances, runs), the standard error of an accuracy when n fixed questions are
    each asked `runs` times.

    chances: (n,), that a question is answered rightly. The wanted number is √(Σ p(1 - p) / runs) /
    n.
    """
    if attempt is None:
        return say("not attempted")
    for chances, runs in (([0.1, 0.5, 0.9, 1.0], 1), ([0.2, 0.6, 0.6], 32)):
        p = np.array(chances)
        n, inner = len(p), float(np.sum(p * (1 - p)))
        got, wanted = float(attempt(p.copy(), runs)), np.sqrt(inner / runs) / n
        if np.isclose(got, wanted, rtol=1e-4):
            continue
        hints = {
            np.sqrt(
                p.mean() * (1 - p.mean()) / (n * runs)
            ): "that takes all questions as equally hard; sum p(1 - p) by question",
            np.sqrt(inner) / n: "that is of one run; a mean of more runs varies less",
            np.sqrt(inner)
            / n
            / runs: "the variance of a mean falls with runs, its root with the root of runs",
            wanted**2: "that is the variance; take its root",
            np.sqrt(
                inner / runs
            ): "that is of the number of right answers; an accuracy divides it by n",
            np.sqrt(
                inner / n / runs
            ): "that is of one question; a mean over n independent ones varies less",
            p.std()
            / np.sqrt(
                n
            ): "that is the spread over questions; they are fixed here, and only answers vary",
            p.std(ddof=1)
            / np.sqrt(
                n
            ): "that is the spread over questions; they are fixed here, and only answers vary",
        }
        hint = next(
            (text for value, text in hints.items() if np.isclose(got, value, rtol=1e-4)),
            "compare with simulated runs",
        )
        return say(
            f"not yet: for {chances} and runs={runs} you return {got:.4g}, not {wanted:.4g};"
            f" {hint}",
            False,
        )
    return say("right: and with all p equal it is the binomial formula", True)


@checker
def check_matched(attempt: Callable | None) -> bool | None:
    """Exercise: differences(models), of each off-policy model on no more questions than the best
    on-policy one, minus that one.

    models: a list of `published.Published`; those without a number of questions take no part.
    """
    if attempt is None:
        return say("not attempted")
    made = (
        ("a", "off-policy", 0.5, 100),
        ("b", "on-policy", 0.45, 3000),
        ("c", "both", 0.65, 50),
        ("d", "off-policy", 0.9, 2000),
        ("e", "on-policy", 0.55, 1000),
        ("f", "off-policy", 0.61, 1000),
        ("g", "on-policy", 0.7, None),
        ("h", "base", 0.1, None),
        ("i", "off-policy", 0.8, None),
    )
    models = [
        published.Published(name, "x", group, accuracy, questions=size)
        for name, group, accuracy, size in made
    ]
    got = [float(x) for x in attempt(list(models))]
    wanted = np.asarray(published.estimands(models)["C13.over_best"])
    if len(got) == len(wanted) and np.allclose(got, wanted):
        return say(
            "right: and one missing number of questions has moved the bar that they must clear",
            True,
        )
    accuracy = {m.name: m.accuracy for m in models}
    wrong = {
        "on-policy minus off-policy; the claim is about the other way round": -wanted,
        "subtract the best on-policy accuracy, not the mean": [accuracy[k] - 0.5 for k in "af"],
        "an on-policy model without a number of questions takes no part, however good": [
            accuracy[k] - 0.7 for k in "af"
        ],
        "keep models on no more questions than the best on-policy one has": [
            accuracy[k] - 0.55 for k in "adf"
        ],
        "a set of equal size is no larger: use <=": [accuracy["a"] - 0.55],
        "a model trained on both kinds belongs to neither group": [
            accuracy[k] - 0.55 for k in "acf"
        ],
        "the best is the most accurate one, not the one with most questions": [
            accuracy[k] - 0.45 for k in "adf"
        ],
    }
    found = (
        text
        for text, values in wrong.items()
        if len(values) == len(got) and np.allclose(got, values)
    )
    hint = next(
        found, f"expected are {len(wanted)} numbers, one per kept model, in the order of the list"
    )
    return say(
        f"not yet: for the made-up models you return {np.round(got, 3).tolist()}; {hint}", False
    )
