"""Statistics of the kit: Pass@k and mG-Pass@k, bootstrap intervals, paired differences, trend,
smoothing.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats as scipy_stats

from tml_lib.records import Interval

LEVEL = 0.95  # of every interval
_ROWS = 64  # resamples that a nested bootstrap draws at once


def _check_counts(n: int, correct: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k={k} lies outside 1..n={n}: draw at least k samples per question")
    if not 0 <= correct <= n:
        raise ValueError(
            f"correct={correct} lies outside 0..n={n}: count the right answers among the n samples"
        )


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k samples drawn without replacement from n is right (RaML Eq. 22,
    one question).

    1 - C(n-c, k) / C(n, k). Raises ValueError where k or `correct` lies outside 1..n or 0..n.
    """
    _check_counts(n, correct, k)
    return float(scipy_stats.hypergeom.sf(0, n, correct, k))


def mg_pass_at_k(n: int, correct: int, k: int) -> float:
    """Mean over stricter and stricter majorities that k drawn samples are right (RaML Eq. 23, one
    question).

    (2/k) sum_{i=ceil(k/2)+1}^{k} P(X >= i), X ~ hypergeometric(n, c, k). Raises as `pass_at_k`
    does.
    """
    _check_counts(n, correct, k)
    thresholds = np.arange(-(-k // 2) + 1, k + 1)
    return float(2.0 / k * scipy_stats.hypergeom.sf(thresholds - 1, n, correct, k).sum())


def clustered_interval(values, clusters, *, seed: int, n_resamples: int = 9999) -> Interval:
    """Bootstrap interval of a mean whose values are alike within clusters: whole clusters are
    resampled (BCa).

    values: (n,), NaN dropped; clusters: (n,) labels. The estimate is the plain mean. Raises
    ValueError below two clusters.
    """
    values, clusters = np.asarray(values, dtype=float), np.asarray(clusters)
    if values.shape != clusters.shape:
        raise ValueError(
            f"each value needs one cluster label, got shapes {values.shape} and {clusters.shape}"
        )
    values, clusters = values[~np.isnan(values)], clusters[~np.isnan(values)]
    _, index = np.unique(clusters, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index).astype(float)
    if len(sums) < 2:
        raise ValueError(
            f"an interval needs at least 2 clusters, got {len(sums)}: probe questions of more"
            " templates"
        )

    def mean(total, count, axis=-1):
        return total.sum(axis) / count.sum(axis)

    found = scipy_stats.bootstrap(
        (sums, counts),
        mean,
        paired=True,
        confidence_level=LEVEL,
        n_resamples=n_resamples,
        method="BCa" if np.ptp(values) else "percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(values.mean()), float(found.low), float(found.high), len(values))


def bootstrap_interval(
    values, *, seed: int, n_resamples: int = 9999, statistic=np.mean
) -> Interval:
    """Bootstrap interval of a statistic of independent values (BCa; percentile where BCa is
    undefined).

    values: (n,) one per independent unit, NaN dropped. Raises ValueError below two values: nothing
    can be resampled.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        raise ValueError(
            f"an interval needs at least 2 values, got {len(values)}: probe more questions or seeds"
        )
    estimate = float(statistic(values))
    if np.ptp(values) == 0:
        return Interval(estimate, estimate, estimate, len(values))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            # scipy warns where BCa is undefined; the next method then takes over
            warnings.simplefilter("ignore")
            rng = np.random.default_rng(seed)
            result = scipy_stats.bootstrap(
                (values,),
                statistic,
                confidence_level=LEVEL,
                n_resamples=n_resamples,
                method=method,
                rng=rng,
            ).confidence_interval
        if np.isfinite([result.low, result.high]).all():
            break
    return Interval(estimate, float(result.low), float(result.high), len(values))


def nested_interval(groups, *, seed: int, n_resamples: int = 4000) -> Interval:
    """Percentile interval of a mean over groups of values: groups are resampled, and the values
    within each (two levels).

    groups: a sequence of (n_g,) arrays, one per seed, NaN dropped. The estimate is the mean of the
        groups' means. Few groups
    give too narrow an interval: of five that differ much, 95 % intervals cover 84 to 90 %. Raises
    ValueError below two groups, or for an empty one.
    """
    return nested_intervals([groups], seed=seed, n_resamples=n_resamples)[0]


def nested_intervals(tests, *, seed: int, n_resamples: int = 4000) -> list[Interval]:
    """`nested_interval` of each of several tests, to the last bit; those with groups of the same
    sizes share their draws.

    tests: a sequence of what `nested_interval` takes as its groups. Raises as it does.
    """
    kept = [[_without_nan(group) for group in groups] for groups in tests]
    alike: dict[tuple[int, ...], list[int]] = {}
    for k, groups in enumerate(kept):
        sizes = tuple(len(group) for group in groups)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(
                f"a nested interval needs at least 2 groups with values, got sizes {list(sizes)}:"
                " run more seeds"
            )
        alike.setdefault(sizes, []).append(k)
    found: dict[int, Interval] = {}
    for sizes, members in alike.items():
        resampled = _nested_means([kept[k] for k in members], sizes, seed, n_resamples)
        for k, means in zip(members, resampled, strict=True):
            low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            estimate = float(np.mean([group.mean() for group in kept[k]]))
            found[k] = Interval(estimate, float(low), float(high), len(sizes))
    return [found[k] for k in range(len(kept))]


def _without_nan(values) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


def _nested_means(
    tests: list[list[np.ndarray]], sizes: tuple[int, ...], seed: int, n_resamples: int
) -> np.ndarray:
    """Means of resampled groups of resampled values, (tests, n_resamples), where every test has
    groups of these sizes.
    """
    draw = np.random.default_rng(seed)
    chosen = draw.integers(len(sizes), size=(n_resamples, len(sizes)))
    means = np.empty((len(tests), *chosen.shape))
    for k, size in enumerate(sizes):  # resampled anew for each place that the group takes
        places = np.nonzero(chosen == k)
        filled = np.empty((len(tests), len(places[0])))
        values = np.empty((_ROWS, size))
        # in blocks: draws and values stay in the processor's cache
        for start in range(0, len(places[0]), _ROWS):
            part = filled[:, start : start + _ROWS]
            where = draw.integers(size, size=(part.shape[1], size))
            for groups, out in zip(tests, part, strict=True):
                np.add.reduce(
                    groups[k].take(where, out=values[: len(where)], mode="clip"), 1, out=out
                )
        means[:, *places] = filled / size
    return means.mean(2)


def student_interval(values) -> Interval:
    """Mean with Student's t interval, for comparison with the bootstrap: it takes the values as
    normally distributed. values: (n,), NaN left out; ValueError for fewer than two.
    """
    kept = _without_nan(values)
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} values have no interval by Student's t: give at least 2")
    mean = float(np.mean(kept))
    low, high = scipy_stats.t.interval(LEVEL, len(kept) - 1, mean, scipy_stats.sem(kept))
    return Interval(mean, float(low), float(high), len(kept))


def paired_difference(first, second, *, seed: int) -> Interval:
    """Interval of mean(first - second), paired by position; pairs with a NaN on either side are
    dropped.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"paired values need equal shapes, got {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, seed=seed)


def trend(values) -> float:
    """Kendall's tau of a series against its index, the Mann-Kendall trend statistic: -1 falls
    always, +1 rises always.

    values: (n,). NaN below three points; 0 where the series is constant.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 3:
        return float("nan")
    if np.ptp(values) == 0:
        return 0.0
    return float(scipy_stats.kendalltau(np.arange(len(values)), values).statistic)


def changepoint(values) -> int:
    """Where a series breaks: the k in 1..n-1 for which values[:k] and values[k:] lie closest to
    their means (least squares).

    values: (n,), n >= 2. ValueError for fewer.
    """
    series = np.asarray(values, dtype=float)
    if len(series) < 2:
        raise ValueError(f"{len(series)} values have no break: give at least two")
    spread = [
        series[:k].var() * k + series[k:].var() * (len(series) - k) for k in range(1, len(series))
    ]
    return int(np.argmin(spread)) + 1


def smooth(values, alpha: float) -> np.ndarray:
    """Exponential moving average s_i = alpha x_i + (1 - alpha) s_{i-1}, s_0 = x_0; the paper's
    plots use alpha = 0.01.

    values: (n,) -> (n,). Raises ValueError where alpha is not in (0, 1].
    """
    if not 0 < alpha <= 1:
        raise ValueError(
            f"alpha={alpha} is not in (0, 1]: 1 leaves the series as it is, smaller values smooth"
            " more"
        )
    out = np.array(values, dtype=float)
    for i in range(1, len(out)):
        out[i] = alpha * out[i] + (1 - alpha) * out[i - 1]
    return out


def on_grid(positions, values, length: int, grid) -> np.ndarray:
    """A curve over token index, read off at fractions of its length: (n,), (n,), grid (g,) in [0,
    1] -> (g,).
    """
    fractions = np.asarray(positions, dtype=float) / max(length, 1)
    return np.interp(np.asarray(grid, dtype=float), fractions, np.asarray(values, dtype=float))
