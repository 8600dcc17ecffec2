"""INCV's arithmetic: the law inverted, selections counted by hand, ratios of simulated networks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.label_selection import (
    estimate_noise_ratio,
    label_precision,
    label_recall,
    select_labels,
    selected_noise_ratio,
)
from dynamics.noise_law import law_label_precision


def memorised(ratio, kind, n=40_000, seed=0):
    """Labels of a held-out half, and predictions of a network that errs as its labels did."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 10, n)

    def corrupt():
        shift = rng.integers(1, 10, n) if kind == "symmetric" else 1
        return np.where(rng.random(n) < ratio, (true + shift) % 10, true)

    return corrupt(), corrupt(), true


@pytest.mark.parametrize(
    ("kind", "ratio"), [("symmetric", 0.2), ("symmetric", 0.5), ("asymmetric", 0.4)]
)
def test_the_ratio_precision_and_recall_of_a_network_that_predicts_like_the_noise(kind, ratio):
    predicted, labels, true = memorised(ratio, kind)
    found = estimate_noise_ratio(predicted, labels, kind=kind, n_classes=10)
    assert found.low < ratio < found.high
    assert found.high - found.low < 0.05
    selected, clean = predicted == labels, labels == true
    precision, recall = label_precision(selected, clean), label_recall(selected, clean)
    law = law_label_precision(ratio, kind=kind, n_classes=10)
    assert precision.low < law < precision.high
    assert recall.low < 1 - ratio < recall.high
    left = selected_noise_ratio(ratio, kind=kind, n_classes=10)
    assert left == pytest.approx(1 - law, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "ratio", "precision"),
    [
        ("symmetric", 0.2, 0.993),
        ("symmetric", 0.5, 0.900),
        ("symmetric", 0.8, 0.360),
        ("asymmetric", 0.4, 0.692),
    ],
)
def test_the_papers_values(kind, ratio, precision):
    left = selected_noise_ratio(ratio, kind=kind, n_classes=10)
    assert 1 - left == pytest.approx(precision, abs=5e-4)


def test_a_selection_by_hand():
    labels, predicted = np.arange(6), np.array([0, 1, 2, 9, 9, 9])
    losses = np.array([0.1, 9.0, 0.2, 0.3, 7.0, 8.0])
    found = select_labels(predicted, labels, losses, noise_ratio=0.5, kind="symmetric")
    # ⌊1 · 3⌋ = 3 worst: samples 1 (selected, so it stays), 5 and 4
    assert found.selected.tolist() == [True] * 3 + [False] * 3
    assert found.discarded.tolist() == [False] * 4 + [True] * 2
    assert (found.n_selected, found.n_discarded, found.n_left) == (3, 2, 1)
    kept = select_labels(predicted, labels, losses, noise_ratio=0.5, kind="asymmetric")
    assert (kept.n_selected, kept.n_discarded, kept.n_left) == (3, 0, 3)
    clean = np.array([True, False, True, True, False, False])
    assert label_precision(found.selected, clean).value == pytest.approx(2 / 3)
    assert label_recall(found.selected, clean).value == pytest.approx(2 / 3)


@pytest.mark.parametrize(("ratio", "n_worst"), [(0.0, 0), (0.1, 0), (0.25, 1), (0.5, 3), (0.9, 6)])
def test_no_more_is_discarded_than_twice_the_selected_and_none_where_the_number_is_0(
    ratio, n_worst
):
    labels, predicted = np.zeros(12), np.repeat([0, 1], [3, 9])
    found = select_labels(predicted, labels, np.arange(12.0), noise_ratio=ratio, kind="symmetric")
    assert found.n_discarded == n_worst
    assert found.discarded[12 - n_worst :].all()


@given(seed=st.integers(0, 999), ratio=st.floats(0, 1), n=st.integers(0, 40))
def test_a_sample_is_selected_discarded_or_left(seed, ratio, n):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, 3, (2, n))
    found = select_labels(predicted, labels, rng.random(n), noise_ratio=ratio, kind="symmetric")
    assert not (found.selected & found.discarded).any()
    assert found.n_selected + found.n_discarded + found.n_left == n


def test_what_makes_no_sense_is_refused_and_nothing_gives_nan():
    zeros = np.zeros(3)
    with pytest.raises(ValueError, match=r"between 0 and 1, but is 1\.5"):
        select_labels(zeros, zeros, zeros, noise_ratio=1.5, kind="symmetric")
    with pytest.raises(ValueError, match="one is missing"):
        select_labels(zeros, zeros, np.full(3, np.nan), noise_ratio=0.2, kind="symmetric")
    empty = estimate_noise_ratio(zeros[:0], zeros[:0], kind="symmetric", n_classes=3)
    assert np.isnan(empty.value)
