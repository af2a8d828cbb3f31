"""The interval of each test of an evidence record, and those of both arms where a test compares
two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tml_lib import files
from tml_lib.claims.stats import bootstrap_interval, clustered_interval, nested_intervals
from tml_lib.records import Arms, Interval


def with_arms(record: dict, place: str, *, bootstrap_seed: int) -> dict:
    """A record as JSON holds it: differences where its values are `Arms`, and the intervals of both
    arms under 'arms', made as the test's own is.
    """
    compared = {
        test: seeds
        for test, seeds in record["values"].items()
        if isinstance(seeds, list) and any(isinstance(seed, Arms) for seed in seeds)
    }
    differences = {test: [np.asarray(seed) for seed in compared[test]] for test in compared}
    plain = rounded(files.plain(record | {"values": record["values"] | differences}, place))
    if compared:
        pairs = {test: [seed.paired() for seed in seeds] for test, seeds in compared.items()}
        sides = [[pair[k] for pair in seeds] for seeds in pairs.values() for k in (0, 1)]
        arms = rounded(files.plain(sides, place))
        found = [
            rounded([interval.estimate, interval.low, interval.high])
            for interval, _ in of_tests(arms, plain, bootstrap_seed=bootstrap_seed)
        ]
        plain["arms"] = dict(zip(pairs, zip(found[::2], found[1::2], strict=True), strict=True))
    return plain


def of_tests(
    every: list[list[list[float | None]]], record: dict, *, bootstrap_seed: int
) -> list[tuple[Interval, list[list[float]]]]:
    """Interval and numbers (seeds, questions to which the test applies) of each of several tests of
    a record, by the record's way: nested, by templates or over seeds.
    """
    kept = [[[x for x in seed if x is not None] for seed in seeds] for seeds in every]
    several = [
        k for k, seeds in enumerate(kept) if record.get("nested") and len(seeds) >= 2 and all(seeds)
    ]
    # together, as they share draws
    nested = nested_intervals([kept[k] for k in several], seed=bootstrap_seed)
    found = dict(zip(several, nested, strict=True))
    labels = record.get("templates")
    for k, seeds in enumerate(kept):
        units = (
            seeds[0] if len(seeds) == 1 else [math.fsum(seed) / len(seed) for seed in seeds if seed]
        )
        if k in found:
            continue
        told = [] if labels is None or len(seeds) != 1 else _labelled(every[k][0], labels)
        if len({label for _, label in told}) >= 2:
            found[k] = clustered_interval(*zip(*told, strict=True), seed=bootstrap_seed)
        elif len(units) >= 2:
            found[k] = bootstrap_interval(units, seed=bootstrap_seed)
        else:
            found[k] = Interval(units[0] if units else math.nan, math.nan, math.nan, len(units))
    return [(found[k], seeds) for k, seeds in enumerate(kept)]


def _labelled(numbers: Sequence[float | None], labels: Sequence[str]) -> list[tuple[float, str]]:
    """The numbers that there are, each with the label of its question."""
    return [(x, label) for x, label in zip(numbers, labels, strict=True) if x is not None]


def better(arms: Sequence[Sequence[float | None]]) -> tuple[float | None, float | None]:
    """Estimate and low end of the better of two arms, of equal ones that with the higher low end;
    None where there are none.
    """
    known = [(estimate, low) for estimate, low, _ in arms if estimate is not None]
    return max(known, key=lambda arm: (arm[0], arm[1] or 0.0), default=(None, None))


def rounded(item):
    """Numbers as evidence holds them: five digits after the point, None for one that is none."""
    if isinstance(item, float):
        return None if math.isnan(item) else round(item, 5)
    if isinstance(item, dict):
        return {key: rounded(part) for key, part in item.items()}
    if isinstance(item, list | tuple):
        return [rounded(part) for part in item]
    return item
