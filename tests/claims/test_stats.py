"""Statistics against enumeration, hand-computed values and known properties."""

import itertools
import math
import warnings

import numpy as np
import pytest

from tml_lib.claims import stats

COUNTS = [(n, c, k) for n in range(1, 8) for c in range(n + 1) for k in range(1, n + 1)]


def right_answers_in_each_draw(n, c, k):
    """How many of the k drawn samples are right, for all C(n, k) draws from n samples of which c
    are right.
    """
    return [sum(draw) for draw in itertools.combinations([1] * c + [0] * (n - c), k)]


# --- Pass@k and mG-Pass@k -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "c", "k"), COUNTS)
def test_pass_at_k_equals_enumeration(n, c, k):
    hits = right_answers_in_each_draw(n, c, k)
    assert stats.pass_at_k(n, c, k) == pytest.approx(np.mean([h >= 1 for h in hits]), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), COUNTS)
def test_mg_pass_at_k_equals_enumeration(n, c, k):
    hits = right_answers_in_each_draw(n, c, k)
    thresholds = range(math.ceil(k / 2) + 1, k + 1)  # RaML Eq. 23
    wanted = 2 / k * sum(np.mean([h >= i for h in hits]) for i in thresholds)
    assert stats.mg_pass_at_k(n, c, k) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k", "wanted"),
    [
        (4, 1, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (10, 3, 5, 11 / 12),  # 1 - C(7,5)/C(10,5) = 1 - 21/252
        (5, 4, 2, 1.0),  # C(1,2) = 0: any two samples hold a right one
        (64, 0, 8, 0.0),
        (16, 3, 1, 3 / 16),
    ],
)
def test_pass_at_k_by_hand(n, c, k, wanted):
    assert stats.pass_at_k(n, c, k) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "c", "k", "wanted"),
    [
        (8, 6, 4, 1 / 2),  # i = 3, 4: (40 + 15)/70 and 15/70; times 2/4
        (4, 3, 4, 1 / 2),  # the one draw has 3 right: P(>=3) = 1, P(>=4) = 0; times 2/4
        (5, 3, 3, 1 / 15),  # i = 3 only: 1/C(5,3) = 1/10; times 2/3
        (9, 9, 1, 0.0),  # the sum from 2 to 1 is empty
    ],
)
def test_mg_pass_at_k_by_hand(n, c, k, wanted):
    assert stats.mg_pass_at_k(n, c, k) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("k", range(1, 13))
def test_mg_pass_at_k_of_a_perfect_model_is_its_closed_value(k):
    assert stats.mg_pass_at_k(12, 12, k) == pytest.approx(2 * (k // 2) / k, abs=1e-12)


@pytest.mark.parametrize("metric", [stats.pass_at_k, stats.mg_pass_at_k])
@pytest.mark.parametrize("k", [2, 5, 8])
def test_more_right_samples_never_lower_a_pass_rate(metric, k):
    series = [metric(16, c, k) for c in range(17)]
    assert np.all(np.diff(series) >= -1e-12)
    assert series[-1] > series[0]


@pytest.mark.parametrize("metric", [stats.pass_at_k, stats.mg_pass_at_k])
@pytest.mark.parametrize(
    ("n", "c", "k", "named"),
    [(4, 1, 5, "k=5"), (4, 1, 0, "k=0"), (4, 5, 2, "correct=5"), (4, -1, 2, "correct=-1")],
)
def test_impossible_counts_are_refused_by_value(metric, n, c, k, named):
    with pytest.raises(ValueError, match=named):
        metric(n, c, k)


# --- bootstrap ------------------------------------------------------------------------------------


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [
        stats.bootstrap_interval(rng.normal(3.0, 2.0, 30), seed=k, n_resamples=400)
        for k in range(200)
    ]
    assert 0.88 <= np.mean([i.low <= 3.0 <= i.high for i in intervals]) <= 0.985


def test_bootstrap_interval_has_the_normal_theory_width_on_normal_data():
    values = np.random.default_rng(1).normal(0.0, 1.0, 400)
    found = stats.bootstrap_interval(values, seed=0)
    assert found.estimate == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std(ddof=1) / 20, rel=0.05)


def test_bootstrap_interval_is_fixed_by_its_seed():
    values = np.random.default_rng(0).normal(size=25)
    assert stats.bootstrap_interval(values, seed=3) == stats.bootstrap_interval(values, seed=3)
    assert stats.bootstrap_interval(values, seed=3) != stats.bootstrap_interval(values, seed=4)


def test_nan_values_are_dropped_and_not_counted():
    clean = stats.bootstrap_interval([1.0, 2.0, 4.0], seed=0)
    assert stats.bootstrap_interval([1.0, math.nan, 2.0, 4.0, math.nan], seed=0) == clean
    assert clean.n == 3


def test_constant_values_give_a_point():
    found = stats.bootstrap_interval([0.7] * 5, seed=0)
    assert (found.estimate, found.low, found.high, found.n) == (0.7, 0.7, 0.7, 5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan]])
def test_fewer_than_two_values_are_refused(values):
    with pytest.raises(ValueError, match=f"got {np.isfinite(values).sum():.0f}"):
        stats.bootstrap_interval(values, seed=0)


def test_a_statistic_without_bca_interval_gets_a_percentile_interval():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stats.bootstrap_interval([1.0, 1.0, 1.0, 2.0], seed=0, statistic=np.median)
    assert (found.low, found.estimate, found.high) == (1.0, 1.0, 2.0)


def test_falling_back_to_percentile_is_silent():
    stats.bootstrap_interval([1.0, 1.0, 1.0, 2.0], seed=0, statistic=np.median)


def test_paired_difference_is_the_bootstrap_of_the_differences():
    first, second = (
        np.array([1.0, 2.5, 3.0, math.nan, 7.0]),
        np.array([0.5, 2.0, 3.5, 1.0, math.nan]),
    )
    assert stats.paired_difference(first, second, seed=5) == stats.bootstrap_interval(
        [0.5, 0.5, -0.5], seed=5
    )


def test_pairs_of_unequal_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        stats.paired_difference([1.0, 2.0], [1.0, 2.0, 3.0], seed=0)


# --- trend, smoothing, grid -----------------------------------------------------------------------


def kendall_by_pairs(values):
    """tau-b against the index, over all pairs: concordant minus discordant, normalised for ties
    among the values.
    """
    signs = [np.sign(b - a) for a, b in itertools.combinations(values, 2)]
    pairs = len(signs)
    return sum(signs) / math.sqrt(pairs * (pairs - signs.count(0)))


@pytest.mark.parametrize("seed", range(8))
def test_trend_equals_kendalls_tau_counted_by_pairs(seed):
    rng = np.random.default_rng(seed)
    # small integers, so that ties occur
    values = rng.integers(0, 6, size=rng.integers(3, 12)).astype(float)
    values[0] = 9.0  # not constant
    assert stats.trend(values) == pytest.approx(kendall_by_pairs(values.tolist()), abs=1e-12)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([3.0, 2.0, 1.0], -1.0),
        ([1.0, 2.0, 5.0, 6.0], 1.0),
        ([2.0, 2.0, 2.0], 0.0),
        ([1.0, 3.0, 2.0], 1 / 3),
    ],
)
def test_trend_by_hand(values, wanted):
    assert stats.trend(values) == pytest.approx(wanted)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_trend_of_fewer_than_three_points_is_nan(values):
    assert math.isnan(stats.trend(values))


def test_smooth_by_hand():
    np.testing.assert_allclose(stats.smooth([4.0, 0.0, 2.0], 0.25), [4.0, 3.0, 2.75])


def test_smooth_leaves_its_input_alone():
    values = np.array([4.0, 0.0, 2.0])
    stats.smooth(values, 0.5)
    assert values.tolist() == [4.0, 0.0, 2.0]


def test_smooth_with_alpha_one_changes_nothing():
    assert stats.smooth([4.0, 0.0, 2.0], 1.0).tolist() == [4.0, 0.0, 2.0]


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.5, math.nan])
def test_smooth_refuses_an_alpha_outside_its_range(alpha):
    with pytest.raises(ValueError, match="alpha="):
        stats.smooth([1.0, 2.0], alpha)


def test_on_grid_reads_between_the_probed_positions():
    np.testing.assert_allclose(
        stats.on_grid([0, 2, 8], [4.0, 2.0, 5.0], 8, [0, 0.125, 0.25, 0.625, 1]), [4, 3, 2, 3.5, 5]
    )


def test_on_grid_of_an_empty_trajectory_is_its_only_value():
    assert stats.on_grid([0], [3.0], 0, [0.0, 0.5, 1.0]).tolist() == [3.0, 3.0, 3.0]


def test_clusters_are_resampled_whole_and_widen_the_interval():
    values, clusters = np.repeat(np.arange(10.0), 20), np.repeat(np.arange(10), 20)
    whole = stats.clustered_interval(values, clusters, seed=0)
    single = stats.bootstrap_interval(values, seed=0)
    of_means = stats.bootstrap_interval(np.arange(10.0), seed=0)
    assert (whole.estimate, whole.n) == (4.5, 200)
    assert whole.high - whole.low > 3 * (single.high - single.low)
    assert (whole.low, whole.high) == pytest.approx((of_means.low, of_means.high), abs=0.15)


def test_clusters_of_one_give_the_plain_bootstrap_and_drop_nan():
    values = [1.0, 4.0, float("nan"), 2.0, 8.0, 5.0]
    own = stats.clustered_interval(values, list("abcdef"), seed=0)
    plain = stats.bootstrap_interval(values, seed=0)
    assert own.n == 5
    assert (own.estimate, own.low, own.high) == pytest.approx(
        (plain.estimate, plain.low, plain.high), abs=0.2
    )


@pytest.mark.parametrize(
    ("clusters", "message"), [(["a"] * 3, "at least 2 clusters"), (["a"], "one cluster label")]
)
def test_unusable_clusters_are_refused(clusters, message):
    with pytest.raises(ValueError, match=message):
        stats.clustered_interval([1.0, 2.0, 3.0], clusters, seed=0)


# --- nested intervals -----------------------------------------------------------------------------


def test_a_nested_interval_has_the_width_of_both_levels():
    rng = np.random.default_rng(0)
    groups = [rng.normal(centre, 6.0, 40) for centre in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    found = stats.nested_interval(groups, seed=1)
    means = np.array([group.mean() for group in groups])
    spread = np.sqrt(means.var() / 5 + np.mean([group.var() / 40 for group in groups]) / 5)
    assert found.estimate == pytest.approx(means.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.08)
    assert found.n == 5


def test_nested_intervals_together_are_those_of_each_alone_to_the_last_bit():
    draw = np.random.default_rng(4)
    tests = [
        draw.normal(size=(3, 150)),
        draw.normal(size=(3, 150)),
        [draw.normal(size=n) for n in (1, 7, 90)],
    ]
    tests[1][0, :5] = np.nan
    for found, groups in zip(stats.nested_intervals(tests, seed=2), tests, strict=True):
        kept = [np.asarray(group)[~np.isnan(group)] for group in groups]
        again = np.random.default_rng(2)  # the same resamples, drawn all at once
        chosen = again.integers(3, size=(4000, 3))
        means = np.empty(chosen.shape)
        for k, group in enumerate(kept):
            places = chosen == k
            means[places] = group[again.integers(len(group), size=(places.sum(), len(group)))].mean(
                1
            )
        assert (found.low, found.high) == tuple(
            np.quantile(means.mean(1), [(1 - 0.95) / 2, (1 + 0.95) / 2])
        )
        assert found == stats.nested_interval(groups, seed=2)
    assert stats.nested_intervals([], seed=0) == []


def test_a_nested_interval_of_five_seeds_covers_nine_times_in_ten():
    """Five groups are few: 95 % intervals cover about 90 % where groups differ, and the docstring
    says so.
    """
    rng, covered = np.random.default_rng(3), 0
    for repetition in range(200):
        centres = np.clip(rng.normal(0.6, 0.05, 5), 0, 1)
        groups = [(rng.random(100) < centre).astype(float) for centre in centres]
        found = stats.nested_interval(groups, seed=repetition, n_resamples=400)
        covered += found.low <= 0.6 <= found.high
    assert 0.84 < covered / 200 < 0.98


def test_nested_groups_drop_nan_and_must_be_two_and_filled():
    groups = [[1.0, np.nan, 3.0], [2.0, 2.0]]
    assert stats.nested_interval(groups, seed=0).estimate == 2.0
    assert stats.nested_interval(groups, seed=0) == stats.nested_interval(groups, seed=0)
    with pytest.raises(ValueError, match=r"at least 2 groups with values, got sizes \[2\]"):
        stats.nested_interval(groups[:1], seed=0)
    with pytest.raises(ValueError, match=r"sizes \[2, 0\]"):
        stats.nested_interval([[1.0, 2.0], [np.nan]], seed=0)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([2, 2, 2, 0, 0], 3),
        ([0, 5], 1),
        ([1, 1, 9, 9, 9, 9], 2),
        ([4, 3, 2, 1], 2),
        ([5, 0, 0, 0], 1),
    ],
)
def test_a_series_breaks_where_two_levels_fit_best(values, wanted):
    assert stats.changepoint(values) == wanted


def test_one_value_has_no_break():
    with pytest.raises(ValueError, match="1 values have no break"):
        stats.changepoint([3.0])


def test_students_interval_is_the_textbooks():
    """Mean 3, standard deviation sqrt(2.5), n = 5; t of 4 degrees at 97.5 % is 2.776."""
    found = stats.student_interval([1, 2, np.nan, 3, 4, 5])
    assert (found.estimate, found.n) == (3, 5)
    assert found.high - 3 == pytest.approx(2.7764 * (2.5 / 5) ** 0.5, rel=1e-4)
    assert found.low == pytest.approx(6 - found.high)
    with pytest.raises(ValueError, match="1 values have no interval"):
        stats.student_interval([1.0])
