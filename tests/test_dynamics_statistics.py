"""Estimates against other libraries, published numbers, and simulations of what they claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from dynamics.statistics import (
    area_under_roc,
    bootstrap,
    equivalence,
    hierarchical_bootstrap,
    holm,
    mean_over_seeds,
    paired_difference,
    permutation_test,
    proportion,
    rank_correlation,
)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_that_of_scikit_learn_ties_included(pairs):
    scores, positive = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    area, stderr = area_under_roc(scores, positive)
    if positive.all() or not positive.any():
        assert np.isnan(area)
        assert np.isnan(stderr)
    else:
        assert area == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        assert stderr >= 0


@pytest.mark.parametrize(("n_pos", "n_neg", "shift"), [(60, 90, 1.0), (15, 200, 0.5)])
def test_the_standard_error_is_the_spread_over_repeated_samples(n_pos, n_neg, shift):
    rng = np.random.default_rng(0)
    positive = np.arange(n_pos + n_neg) < n_pos
    found = np.array(
        [
            area_under_roc(shift * positive + rng.standard_normal(len(positive)), positive)
            for _ in range(1000)
        ]
    )
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(ddof=1), rel=0.15)


def test_perfect_reversed_and_uninformative_scores():
    positive = np.array([False, False, True, True])
    assert area_under_roc(np.array([1.0, 2, 3, 4]), positive) == (1, 0)
    assert area_under_roc(np.array([4.0, 3, 2, 1]), positive) == (0, 0)
    assert area_under_roc(np.ones(4), positive) == (0.5, 0)


def test_samples_without_a_score_are_left_out():
    scores = np.array([1.0, np.nan, 3.0, 2.0, np.nan])
    positive = np.array([False, True, True, True, False])
    known = np.isfinite(scores)
    assert area_under_roc(scores, positive) == area_under_roc(scores[known], positive[known])


def test_one_sample_of_a_class_still_has_an_area():
    area, stderr = area_under_roc(np.array([1.0, 2, 3]), np.array([False, True, False]))
    assert area == 0.5
    assert np.isfinite(stderr)


def test_the_bootstrap_interval_of_a_mean_covers_it():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        x = rng.exponential(size=80)
        estimate = bootstrap(lambda rows, x=x: x[rows].mean(), len(x), seed=seed)
        assert estimate.value == x.mean()
        covered += estimate.low <= 1 <= estimate.high
    assert 0.90 <= covered / 200 <= 0.98


def test_the_bootstrap_repeats_itself_and_narrows_with_the_level():
    x = np.random.default_rng(0).standard_normal(50)

    def mean(rows):
        return float(x[rows].mean())

    wide, again = bootstrap(mean, 50, seed=3), bootstrap(mean, 50, seed=3)
    assert wide == again
    assert bootstrap(mean, 50, seed=4) != wide
    narrow = bootstrap(mean, 50, seed=3, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (wide.level, narrow.level, wide.n) == (0.95, 0.5, 50)


def test_resamples_without_a_value_are_left_out_of_the_interval():
    x = np.array([np.nan, 1.0, 2.0])
    estimate = bootstrap(lambda rows: x[rows].sum() if (rows > 0).all() else np.nan, 3)
    assert np.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (3, 6)
    failed = bootstrap(lambda rows: np.nan, 3)
    assert np.isnan(failed.low)
    assert failed.method == "bootstrap failed"


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17, 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_of_a_share_is_wilsons(count, n, low, high):
    estimate = proportion(count, n)
    assert estimate.value == count / n
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


def test_the_share_of_nothing_is_missing():
    assert all(np.isnan([proportion(0, 0).value, proportion(0, 0).low, proportion(0, 0).high]))
    assert proportion(20, 20).high == pytest.approx(1)


def mean_of_means(groups):
    return float(np.mean([group.mean() for group in groups]))


def test_the_mean_over_seeds_is_students():
    values = np.array([1.0, 2.0, 6.0, np.nan])
    found = mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 2, 3, stats.sem(values[:3]))
    assert (found.value, found.n) == (3, 3)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert np.isnan(mean_over_seeds(np.array([2.0])).low)
    assert mean_over_seeds(np.array([])).n == 0


def test_a_paired_difference_is_scipys_and_leaves_half_pairs_out():
    a, b = np.array([1.0, 3.0, 2.0, 5.0]), np.array([0.5, 2.0, 2.5, np.nan])
    found = paired_difference(a, b)
    expected = stats.ttest_rel(a[:3], b[:3]).confidence_interval(0.95)
    assert found.n == 3
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="shapes are"):
        paired_difference(a, b[:2])


def test_the_hierarchical_bootstrap_of_a_mean_is_students_interval_of_the_seeds_means():
    rng = np.random.default_rng(1)
    groups = [rng.normal(size=30) + mean for mean in (0.0, 0.3, 0.1, 0.7, 0.2)]
    found = hierarchical_bootstrap(mean_of_means, groups, draws=4000)
    expected = mean_over_seeds(np.array([group.mean() for group in groups]))
    assert found.value == pytest.approx(expected.value)
    assert found.low == pytest.approx(expected.low, abs=0.02)
    assert found.high == pytest.approx(expected.high, abs=0.02)
    assert found.n == 5


def test_with_one_seed_its_samples_are_drawn_and_the_method_says_so():
    group = np.random.default_rng(0).normal(size=400)
    found = hierarchical_bootstrap(mean_of_means, [group], draws=2000)
    assert "samples of the only seed" in found.method
    assert found.n == 400
    assert found.high - found.low == pytest.approx(2 * 1.966 * stats.sem(group), rel=0.08)
    with pytest.raises(ValueError, match="at least one"):
        hierarchical_bootstrap(mean_of_means, [])


@pytest.mark.parametrize(("n_seeds", "between"), [(3, 0.5), (5, 0.0), (5, 0.5), (10, 0.2)])
def test_intervals_over_seeds_cover_what_they_promise(n_seeds, between):
    """92 to 98 % of 500 simulated studies, whether seeds or samples differ more."""
    rng = np.random.default_rng(n_seeds)
    covered = {"bootstrap": 0, "mean": 0, "pairs": 0}
    for seed in range(500):
        groups = [rng.normal(1 + between * rng.normal(), 1, 20) for _ in range(n_seeds)]
        means = np.array([group.mean() for group in groups])
        other = means - 1 - 0.2 * rng.normal(size=n_seeds)
        found = {
            "bootstrap": hierarchical_bootstrap(mean_of_means, groups, draws=150, seed=seed),
            "mean": mean_over_seeds(means),
            "pairs": paired_difference(means, other),
        }
        for name, estimate in found.items():
            covered[name] += estimate.low <= 1 <= estimate.high
    assert all(460 <= count <= 490 for count in covered.values()), covered


def test_an_exact_permutation_test_counts_all_permutations():
    """Of the 70 ways to choose four of eight, two are as extreme as 1-4 against 5-8."""
    a, b = np.arange(4.0), np.arange(4.0, 8)
    found = permutation_test(lambda x, y: float(np.mean(x) - np.mean(y)), a, b)
    assert (found.statistic, found.n) == (-4, 8)
    assert found.p_value == pytest.approx(2 / 70)
    paired = permutation_test(lambda x, y: float(np.mean(x - y)), a, b, kind="samples")
    assert paired.p_value == pytest.approx(2 / 2**4)


def test_permutation_tests_raise_few_false_alarms():
    rng = np.random.default_rng(0)
    alarms = 0
    for seed in range(300):
        x, y = rng.normal(size=8), rng.normal(size=8)
        found = permutation_test(
            lambda u, v: float(np.corrcoef(u, v)[0, 1]), x, y, kind="pairings", draws=99, seed=seed
        )
        alarms += found.p_value <= 0.05
    assert 3 <= alarms <= 21  # 1 to 7 %


def test_rank_correlation_is_spearmans_with_an_interval_that_covers():
    rng = np.random.default_rng(2)
    covered, truth = 0, 6 / np.pi * np.arcsin(0.6 / 2)  # of a normal pair with correlation .6
    for _ in range(500):
        x = rng.normal(size=40)
        y = 0.6 * x + 0.8 * rng.normal(size=40)
        found = rank_correlation(x, y)
        covered += found.low <= truth <= found.high
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert 460 <= covered <= 490
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)).value)
    assert rank_correlation(np.array([1, 2, np.nan]), np.array([3, 1, 9])).value == pytest.approx(
        -1
    )


def test_equivalence_is_two_one_sided_tests():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=12), rng.normal(size=12)
    found = equivalence(a, b, 0.8)
    above = stats.ttest_1samp(a - b, -0.8, alternative="greater").pvalue
    below = stats.ttest_1samp(a - b, 0.8, alternative="less").pvalue
    assert found.p_value == pytest.approx(max(above, below))
    inside = found.difference.low > -0.8 and found.difference.high < 0.8
    assert found.equivalent == inside
    assert equivalence(np.ones(3), np.ones(3), 0.1).equivalent
    assert not equivalence(np.ones(1), np.ones(1), 0.1).equivalent
    with pytest.raises(ValueError, match="above 0"):
        equivalence(a, b, 0)


def test_conditions_that_differ_by_the_margin_are_seldom_called_equivalent():
    rng = np.random.default_rng(4)
    found = [equivalence(rng.normal(0.5, 0.3, 5), np.zeros(5), 0.5).equivalent for _ in range(1000)]
    assert 20 <= sum(found) <= 70


def test_holm_adjusts_step_by_step():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert len(holm([])) == 0
