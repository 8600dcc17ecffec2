"""Emphasis: closed forms are L1 norms of numerical gradients, and are found again from weights."""

from functools import partial

import numpy as np
import pytest
from recorded import full_run, write_run
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from dynamics.emphasis import (
    beside_closed_form,
    cross_entropy_emphasis,
    dm_emphasis,
    emphasis_density,
    emphasis_each_epoch,
    emphasis_mode,
    gce_emphasis,
    imae_emphasis,
    mae_emphasis,
    mse_emphasis,
    tabulate_emphasis,
    weight_on_cross_entropy,
)

GCE, DM = partial(gce_emphasis, q=0.7), partial(dm_emphasis, mode=0.5, variance=4.0)
LOSSES = {
    "cross-entropy": (lambda p: -np.log(p), cross_entropy_emphasis, 0),
    "mae": (lambda p: 1 - p, mae_emphasis, 1 / 2),
    "mse": (lambda p: (1 - p) ** 2, mse_emphasis, 1 / 3),
    "gce": (lambda p: (1 - p**0.7) / 0.7, GCE, 0.7 / 1.7),
}


@pytest.mark.parametrize("name", LOSSES)
def test_emphasis_is_the_l1_norm_of_the_gradient_at_the_logits(name):
    loss, emphasis, _ = LOSSES[name]
    z = np.random.default_rng(0).normal(size=(20, 5)) * 2
    gradient = np.empty_like(z)
    for j in range(5):
        h = 1e-5 * (np.arange(5) == j)
        up, down = (loss(softmax(x, axis=1)[:, 2]) for x in (z + h, z - h))
        gradient[:, j] = (up - down) / 2e-5
    p = softmax(z, axis=1)[:, 2]
    np.testing.assert_allclose(emphasis(p), np.abs(gradient).sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_mode_is_the_papers(name):
    _, emphasis, mode = LOSSES[name]
    found = minimize_scalar(lambda p: -emphasis(p), bounds=(0, 1), method="bounded").x
    assert found == pytest.approx(mode, abs=1e-4)


@pytest.mark.parametrize("mode", [0, 0.5, 1, 2])
def test_derivative_manipulation_has_its_mode_where_it_says(mode):
    found = minimize_scalar(lambda p: -dm_emphasis(p, mode, 8), bounds=(0, 1), method="bounded").x
    assert found == pytest.approx(emphasis_mode(mode), abs=1e-4)
    assert dm_emphasis(np.array([0.1, 0.9]), mode, 0).tolist() == [1, 1]


def test_the_variance_over_a_uniform_p_is_the_papers():
    """Of the slides' table: cross-entropy .33, MAE (4p(1 − p)) .09, IMAE 4.55."""
    p = (np.arange(100_000) + 0.5) / 100_000
    assert cross_entropy_emphasis(p).var() == pytest.approx(1 / 3, abs=1e-4)
    assert (2 * mae_emphasis(p)).var() == pytest.approx(0.09, abs=2e-3)
    assert imae_emphasis(p).var() == pytest.approx(4.546, abs=2e-3)


def test_a_density_integrates_to_one_and_weights_give_the_emphasis_back():
    for emphasis in (cross_entropy_emphasis, GCE, DM):
        assert quad(lambda p, w=emphasis: emphasis_density(p, w), 0, 1)[0] == pytest.approx(1)
    p = np.array([0.0, 0.3, 0.9])
    weight = weight_on_cross_entropy(p, DM)
    np.testing.assert_allclose(weight * 2 * (1 - p), DM(p))


@pytest.mark.parametrize("emphasis", [cross_entropy_emphasis, GCE, DM, imae_emphasis])
def test_the_density_of_a_scheme_is_found_from_what_was_weighted(emphasis):
    p = np.random.default_rng(0).beta(2, 1, 200_000)
    table = tabulate_emphasis(p, weight_on_cross_entropy(p, emphasis), bins=20)
    expected = beside_closed_form(table, emphasis)
    np.testing.assert_allclose(table["density"], expected, rtol=0.02, atol=0.02)
    assert table["density"].sum() / 20 == pytest.approx(1)
    assert expected.sum() / 20 == pytest.approx(1)
    assert table["share"].sum() == pytest.approx(1)


def test_emphasis_by_hand_and_bins_that_are_empty():
    p, weight = np.array([0.1, 0.2, 0.9, np.nan]), np.array([1.0, 2, 5, 1])
    table = tabulate_emphasis(p, weight, bins=4)
    assert table["n"].tolist() == [2, 0, 0, 1]
    assert table.loc[[0, 3], "emphasis"].tolist() == pytest.approx([2.5, 1])
    assert table.loc[0, "stderr"] == pytest.approx(np.std([1.8, 3.2], ddof=1) / np.sqrt(2))
    assert table.loc[[1, 2], ["p", "emphasis", "density", "share"]].isna().all(axis=None)
    assert table.loc[[0, 3], "density"].tolist() == pytest.approx([2.5 * 4 / 3.5, 4 / 3.5])
    assert table.loc[[0, 3], "share"].tolist() == pytest.approx([5 / 6, 1 / 6])
    expected = beside_closed_form(table, cross_entropy_emphasis)
    assert np.isnan(expected[1:3]).all()
    assert expected[0] / expected[3] == pytest.approx((1 - 0.15) / (1 - 0.9))
    assert np.nansum(expected) / 4 == pytest.approx(1)


def test_each_epoch_of_a_run_has_its_bins(tmp_path):
    run = full_run(tmp_path / "run")
    table = emphasis_each_epoch(run, bins=5)
    assert len(table) == 8 * 5
    rows = run.samples(columns=["p_true", "weight"], epochs=[2])
    alone = tabulate_emphasis(rows["p_true"].to_numpy(), rows["weight"].to_numpy(), bins=5)
    of_epoch = table[table["epoch"] == 2].drop(columns="epoch").reset_index(drop=True)
    np.testing.assert_allclose(of_epoch, alone)
    empty = emphasis_each_epoch(write_run(tmp_path / "empty", {}))
    assert empty.empty
    assert "density" in empty
