"""Posteriors against truth: by hand, by an oracle, and calibrated ones that were drawn."""

import numpy as np
import pandas as pd
import pytest
from recorded import full_run, write_run
from sklearn.metrics import brier_score_loss

from dynamics.calibration import (
    brier_score,
    calibration_each_epoch,
    calibration_error,
    tabulate_reliability,
)
from dynamics.label_noise import known_flips

POSTERIOR = np.array([0.05, 0.05, 0.15, 1.0, np.nan])
TRUTH = np.array([False, True, False, True, True])


def test_scores_by_hand():
    table = tabulate_reliability(POSTERIOR, TRUTH)
    assert table["n"].tolist() == [2, 1, 1]
    assert table["left"].tolist() == pytest.approx([0, 0.1, 0.9])
    assert table["posterior"].tolist() == pytest.approx([0.05, 0.15, 1])
    assert table["share"].tolist() == pytest.approx([0.5, 0, 1])
    assert (table["low"] <= table["share"]).all()
    assert (table["share"] <= table["high"] + 1e-12).all()
    brier = (0.05**2 + 0.95**2 + 0.15**2 + 0) / 4
    assert brier_score(POSTERIOR, TRUTH).value == pytest.approx(brier)
    assert brier_score(POSTERIOR, TRUTH).n == 4
    assert brier == pytest.approx(brier_score_loss(TRUTH[:4], POSTERIOR[:4]))
    error = (2 * abs(0.5 - 0.05) + 0.15 + 0) / 4
    assert calibration_error(POSTERIOR, TRUTH).value == pytest.approx(error)


def test_a_calibrated_posterior_is_told_from_one_that_is_too_sure():
    rng = np.random.default_rng(0)
    p = rng.random(5000)
    truth = rng.random(5000) < p
    reliable = tabulate_reliability(p, truth, bins=10)
    inside = reliable["posterior"].between(reliable["low"], reliable["high"])
    assert inside.mean() >= 0.8
    sure = p**3 / (p**3 + (1 - p) ** 3)
    assert calibration_error(p, truth).value < 0.03
    assert calibration_error(sure, truth).low > 0.05
    assert brier_score(p, truth).high < brier_score(sure, truth).low
    assert brier_score(p, truth).low < 1 / 6 < brier_score(p, truth).high  # E p(1 − p)


def test_what_is_no_probability_is_refused_and_nothing_known_is_nan():
    with pytest.raises(ValueError, match=r"between 0 and 1, but goes from 0\.5 to 2"):
        brier_score(np.array([0.5, 2.0]), np.array([True, False]))
    nothing = np.full(3, np.nan), np.zeros(3)
    assert np.isnan(brier_score(*nothing).value)
    assert np.isnan(calibration_error(*nothing).value)
    assert tabulate_reliability(*nothing).empty


def test_mixtures_are_judged_in_each_epoch(tmp_path):
    run = full_run(tmp_path / "run")
    flipped = known_flips(run)
    mixtures = ("reference", "moments", "likelihood", "gaussian")
    table = calibration_each_epoch(run, flipped, mixtures=mixtures)
    assert table.groupby("epoch")["mixture"].apply(list).tolist() == [list(mixtures)] * 8
    early = table[table["epoch"] == 3].set_index("mixture")
    assert (early["auc"] > 0.99).all()
    assert (early["accuracy"] > 0.95).all()
    assert early["noise_rate"].to_numpy() == pytest.approx([0.3] * 4, abs=0.05)
    assert (early["n"] == 120).all()
    assert ((early["brier_low"] <= early["brier"]) & (early["brier"] <= early["brier_high"])).all()


def test_a_run_without_losses_has_no_rows(tmp_path):
    columns = {"step": [0], "epoch": [0], "sample_id": [0], "margin": [1.0]}
    run = write_run(tmp_path / "run", {"samples": [columns]})
    table = calibration_each_epoch(run, pd.Series({0: True}))
    assert table.empty
    assert "brier" in table
