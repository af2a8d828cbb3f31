"""Checkers for the exercises on the replication report: a verdict from an interval, and how often
intervals miss.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.claims.rulebook import verdict
from tml_lib.lessons.exercises.checking import checker, say
from tml_lib.records import Interval


@checker
def check_verdict(attempt: Callable | None) -> bool | None:
    """Exercise: verdict(low, high, side, threshold), 'holds', 'contradicted' or 'inconclusive', as
    claims.toml says.
    """
    if attempt is None:
        return say("not attempted")
    cases = [(0.1, 0.2, "above", 0.05), (0.01, 0.2, "above", 0.05), (0.01, 0.03, "above", 0.05)]
    cases += [(-0.4, -0.2, "below", -0.1), (-0.3, 0.1, "below", -0.1), (-0.05, 0.1, "below", -0.1)]
    for low, high, side, threshold in cases:
        wanted = verdict(Interval((low + high) / 2, low, high, 2), side, threshold)
        got = attempt(low, high, side, threshold)
        if got == wanted:
            continue
        hint = "where does the whole interval lie with respect to the threshold?"
        if got == "holds" and low <= threshold <= high:
            hint = (
                "an estimate beyond the threshold is not enough: the whole interval must lie there"
            )
        elif got == "inconclusive" and low > 0 and wanted == "contradicted":
            hint = "an effect that is there but smaller than what matters contradicts the claim"
        elif side == "below":
            hint = "side 'below' mirrors 'above': the claimed side lies left of the threshold"
        return say(
            f"not yet: [{low:g}, {high:g}], {side} {threshold:g} is {wanted}, you say {got!r};"
            f" {hint}",
            False,
        )
    return say("right: and nothing beside the interval decides", True)


@checker
def check_misses(attempt: Callable | None) -> bool | None:
    """Exercise: misses(n, level), the chance that one or more of n independent intervals miss the
    truth.
    """
    if attempt is None:
        return say("not attempted")
    for n, level in ((1, 0.95), (10, 0.95), (75, 0.95), (5, 0.5)):
        got, wanted = float(attempt(n, level)), 1 - level**n
        if np.isclose(got, wanted, atol=1e-6):
            continue
        hints = {
            level**n: "that is the chance that none misses",
            n * (1 - level): "that is the expected number of misses, which can exceed 1",
            (1 - level) ** n: "that is the chance that all of them miss",
        }
        hint = next(
            (text for value, text in hints.items() if np.isclose(got, value)),
            "when does none of them miss?",
        )
        return say(
            f"not yet: for {n} intervals of level {level:g} you return {got:.3g}, not {wanted:.3g};"
            f" {hint}",
            False,
        )
    return say("right: with many intervals some miss, and nobody knows which", True)
