"""Estimates against other libraries, published numbers, and simulations of what they claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dynamics.statistics import area_under_roc, bootstrap, proportion


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
