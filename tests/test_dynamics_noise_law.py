"""The law of label noise: the papers' numbers, its inverse, and its transition matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.noise_law import (
    highest_ratio,
    invert_law,
    law_accuracy,
    law_label_precision,
    law_label_recall,
    transition_matrix,
)


@pytest.mark.parametrize(
    ("kind", "ratio", "accuracy", "precision"),
    [  # Chen et al., ICML 2019, C = 10
        ("symmetric", 0.2, 0.644, 0.993),
        ("symmetric", 0.5, 0.278, 0.900),
        ("symmetric", 0.8, 0.111, 0.360),
        ("asymmetric", 0.4, 0.520, 0.692),
        ("symmetric", 0.0, 1.0, 1.0),
        ("asymmetric", 0.0, 1.0, 1.0),
    ],
)
def test_the_numbers_of_the_paper(kind, ratio, accuracy, precision):
    law = {"kind": kind, "n_classes": 10}
    assert law_accuracy(ratio, **law) == pytest.approx(accuracy, abs=5e-4)
    assert law_label_precision(ratio, **law) == pytest.approx(precision, abs=5e-4)


def test_a_network_that_predicts_like_the_noise_has_the_accuracy_of_the_law():
    rng = np.random.default_rng(0)
    n, n_classes, ratio = 200_000, 4, 0.45

    def labels():
        return np.where(rng.random(n) < ratio, rng.integers(1, n_classes, n), 0)

    prediction, label = labels(), labels()  # true class 0
    agree = prediction == label
    law = {"kind": "symmetric", "n_classes": n_classes}
    assert agree.mean() == pytest.approx(float(law_accuracy(ratio, **law)), abs=0.005)
    precision = (label[agree] == 0).mean()
    assert precision == pytest.approx(float(law_label_precision(ratio, **law)), abs=0.005)


def test_with_two_classes_both_kinds_are_one():
    grid = np.linspace(0, 1, 11)
    laws = [law_accuracy(grid, kind=kind, n_classes=2) for kind in ("symmetric", "asymmetric")]
    np.testing.assert_allclose(*laws)
    assert laws[0].shape == grid.shape


@given(
    share=st.floats(0, 0.999),
    kind=st.sampled_from(["symmetric", "asymmetric"]),
    n_classes=st.integers(2, 1000),
)
def test_the_law_is_inverted_on_its_falling_branch(share, kind, n_classes):
    law = {"kind": kind, "n_classes": n_classes}
    ratio = share * ((n_classes - 1) / n_classes if kind == "symmetric" else 0.5)
    assert invert_law(float(law_accuracy(ratio, **law)), **law) == pytest.approx(ratio, abs=1e-5)


@pytest.mark.parametrize(("kind", "lowest_at"), [("symmetric", 0.9), ("asymmetric", 0.5)])
def test_accuracies_out_of_range_are_clamped(kind, lowest_at):
    for accuracy, ratio in [(1.0, 0), (1.5, 0), (0.05, lowest_at), (0.0, lowest_at)]:
        assert invert_law(accuracy, kind=kind, n_classes=10) == pytest.approx(ratio)


@given(
    share=st.floats(0, 0.999),
    kind=st.sampled_from(["symmetric", "asymmetric", "class-dependent"]),
    n_classes=st.integers(3, 30),
)
def test_the_formulas_are_those_of_the_transition_matrix(share, kind, n_classes):
    ratio = share * highest_ratio(kind)
    matrix = transition_matrix(ratio, kind=kind, n_classes=n_classes)
    np.testing.assert_allclose(matrix.sum(1), 1)
    assert (1 - np.diag(matrix)).mean() == pytest.approx(ratio)
    law = {"kind": kind, "n_classes": n_classes}
    accuracy, both_clean = (matrix**2).sum(1).mean(), (np.diag(matrix) ** 2).mean()
    assert float(law_accuracy(ratio, **law)) == pytest.approx(accuracy)
    assert float(law_label_precision(ratio, **law)) == pytest.approx(both_clean / accuracy)
    assert float(law_label_recall(ratio, **law)) == pytest.approx(both_clean / (1 - ratio))
