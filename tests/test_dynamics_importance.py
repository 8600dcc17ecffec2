"""Importance sampling: identities of the paper to 1e-9, and draws that agree with the formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import full_run, write_run
from scipy.special import softmax

from dynamics.importance import (
    importance_each_epoch,
    output_bound,
    proposals_each_epoch,
    sampling_distribution,
    sampling_error,
    sampling_weights,
    second_moment_ratio,
    switch_threshold,
    variance_reduction,
)

SCORES = st.lists(st.floats(0, 1e6), min_size=1, max_size=40).map(np.array)


def test_the_bound_is_the_gradient_at_the_logits():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 4)), np.array([0, 1, 2, 3, 0, 1])

    def loss(logits):
        return -np.log(softmax(logits, axis=1)[np.arange(6), y])

    gradient = np.empty_like(z)
    for j in range(4):
        h = 1e-5 * (np.arange(4) == j)
        gradient[:, j] = (loss(z + h) - loss(z - h)) / 2e-5
    p = softmax(z, axis=1)
    np.testing.assert_allclose(output_bound(p, y), np.linalg.norm(gradient, axis=1), atol=1e-6)
    l1 = np.abs(gradient).sum(axis=1)
    np.testing.assert_allclose(l1, 2 * (1 - p[np.arange(6), y]), atol=1e-6)


@given(SCORES)
def test_tau_is_that_of_the_variation_and_of_the_authors_formula(scores):
    tau = variance_reduction(scores)
    p, uniform = sampling_distribution(scores), 1 / len(scores)
    assert p.sum() == pytest.approx(1, abs=1e-9)
    authors = 1 / np.sqrt(1 - ((p - uniform) ** 2).sum() / (p**2).sum())
    assert tau.value == pytest.approx(authors, abs=1e-9, rel=1e-9)
    if scores.max() > 1e-300:
        scaled = scores / scores.max()
        variation = scaled.std() / scaled.mean()
        assert tau.value == pytest.approx(np.sqrt(1 + variation**2), rel=1e-9)
    assert 1 - 1e-12 <= tau.value <= np.sqrt(len(scores)) + 1e-9


def test_tau_by_hand():
    assert variance_reduction(np.ones(7)).value == pytest.approx(1)
    assert variance_reduction(np.zeros(7)).value == pytest.approx(1)
    assert variance_reduction(np.array([0, 0, 0, 5.0])).value == pytest.approx(2)
    assert variance_reduction(np.array([1.0, 3.0, np.nan])).value == pytest.approx(np.sqrt(1.25))
    assert np.isnan(variance_reduction(np.array([np.nan])).value)


@pytest.mark.parametrize("draw", ["exponential", "lognormal"])
def test_the_interval_of_tau_covers_as_it_says(draw):
    """Of an exponential τ = √2, of a log-normal with σ = ½ it is exp(⅛)."""
    rng = np.random.default_rng(0)
    sizes = (400, 500)
    if draw == "exponential":
        truth, scores = np.sqrt(2), rng.exponential(size=sizes)
    else:
        truth, scores = np.exp(1 / 8), rng.lognormal(0, 0.5, sizes)
    found = [variance_reduction(row) for row in scores]
    covered = np.mean([tau.low <= truth <= tau.high for tau in found])
    assert 0.90 <= covered <= 0.98


@pytest.mark.parametrize(
    ("presample", "batch", "expected"), [(3, 1, 2), (640, 128, 8 / 3), (1, 1, 4 / 3)]
)
def test_the_threshold_is_the_papers(presample, batch, expected):
    assert switch_threshold(presample, batch) == pytest.approx(expected, abs=1e-9)


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="are 0 and 5"):
        switch_threshold(0, 5)
    for scores in ([], [-1.0], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="finite scores of 0 or more"):
            sampling_distribution(np.array(scores))


@given(SCORES)
def test_the_weighted_mean_is_unbiased(scores):
    p = sampling_distribution(scores)
    values, drawn = np.arange(len(p)) + 1.0, p > 1e-300
    expected = (p[drawn] * sampling_weights(p)[drawn] * values[drawn]).sum()
    assert expected == pytest.approx(values[drawn].sum() / len(p))


def test_the_second_moment_is_that_of_sampled_gradients():
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(30, 3)) * rng.exponential(size=(30, 1))
    norms = np.linalg.norm(gradients, axis=1)
    for scores in (norms, norms**2 + 0.1, np.ones(30)):
        p = sampling_distribution(scores)
        drawn = rng.choice(30, 200_000, p=p)
        sampled = gradients[drawn] * sampling_weights(p)[drawn][:, None]
        np.testing.assert_allclose(sampled.mean(0), gradients.mean(0), atol=0.02)
        moment = (sampled**2).sum(1).mean() / (gradients**2).sum(1).mean()
        assert second_moment_ratio(norms, scores) == pytest.approx(moment, rel=0.02)
    tau = variance_reduction(norms).value
    assert second_moment_ratio(norms, norms) == pytest.approx(1 / tau**2)


@given(norms=SCORES, seed=st.integers(0, 999))
def test_no_proposal_beats_the_full_norm(norms, seed):
    scores = np.random.default_rng(seed).random(len(norms)) + 1e-3
    best = second_moment_ratio(norms, norms)
    if norms.max() > 0:
        assert best <= second_moment_ratio(norms, scores) + 1e-9
        assert best <= 1 + 1e-9
        assert second_moment_ratio(norms, np.full(len(norms), 3.0)) == pytest.approx(1)
    assert sampling_error(norms, norms) == 0
    assert sampling_error(norms, scores) >= 0


def test_a_sample_that_is_never_drawn_costs_everything_also_with_a_loss_of_minus_zero():
    assert second_moment_ratio(np.array([1.0, 1.0]), np.array([1.0, -0.0])) == np.inf
    assert second_moment_ratio(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == pytest.approx(0.5)


def test_a_run_says_when_sampling_would_pay(tmp_path):
    run = full_run(tmp_path / "run")
    table = importance_each_epoch(run, presample=30, batch=10)
    assert table["score"].unique().tolist() == ["loss", "bound", "grad_norm"]
    assert (table["threshold"] == 2).all()
    assert (table["pays"] == (table["tau"] > 2)).all()
    rows = run.samples(columns=["el2n", "loss"], epochs=[4])
    by = table[table["epoch"] == 4].set_index("score")["tau"]
    assert by["bound"] == pytest.approx(variance_reduction(rows["el2n"].to_numpy()).value)
    assert by["loss"] == pytest.approx(variance_reduction(rows["loss"].to_numpy()).value)
    table = proposals_each_epoch(run).set_index(["epoch", "score"])
    at = table.loc[4]
    assert at.loc["bound", "correlation"] == pytest.approx(1)  # grad_norm is 10 el2n in this run
    assert at.loc["bound", "sampling_error"] == pytest.approx(0, abs=1e-9)
    assert at.loc["uniform", "second_moment"] == pytest.approx(1)
    assert at.loc["grad_norm", "second_moment"] < at.loc["loss", "second_moment"] < 1


def test_the_bound_is_output_grad_norm_where_recorded_and_a_negative_loss_is_no_score(tmp_path):
    columns = {"step": [0] * 3, "epoch": [0] * 3, "sample_id": [0, 1, 2]}
    columns |= {"loss": [-1.0, 2, 3], "el2n": [1.0, 1, 1], "output_grad_norm": [0.0, 0, 2]}
    run = write_run(tmp_path / "run", {"samples": [columns]})
    table = importance_each_epoch(run, presample=3, batch=1)
    assert table["score"].tolist() == ["bound"]
    assert table["tau"].tolist() == pytest.approx([np.sqrt(3)])
    assert proposals_each_epoch(run).empty
