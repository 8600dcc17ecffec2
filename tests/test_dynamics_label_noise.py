"""Wrong labels from losses: mixtures that were drawn are found again, flipped samples on top."""

import numpy as np
import pandas as pd
import pytest
from recorded import write_run
from test_dynamics_beta_mixture import draw

from dynamics.label_noise import (
    SEPARATES,
    choose_epoch,
    detection_auc,
    estimate_noise_rate,
    fit_each_epoch,
    known_flips,
    rank_suspects,
)
from dynamics.statistics import area_under_roc
from dynamics.traces import TraceError

N, EPOCHS, MEMORISED = 300, 9, 5  # from MEMORISED on, wrong labels are fitted too


def test_the_interval_of_the_noise_rate_holds_the_estimate_and_the_truth():
    losses, wrong = draw(1500, 0.3)
    estimate = estimate_noise_rate(losses, draws=30)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.low < wrong.mean() < estimate.high
    assert estimate.n == 1500


def simulate(path, *, rate=0.3, grad_norm=True, known=True, n=N):
    """Clean samples are learned at once; from MEMORISED on a loss says nothing about the label."""
    rng = np.random.default_rng(0)
    wrong = np.arange(n) < round(rate * n)
    ids = rng.permutation(10 * n)[:n]  # ids say nothing about the label
    difficulty = rng.lognormal(0, 1, n)
    batches = []
    for epoch in range(EPOCHS):
        early = np.where(wrong, 3.5, 2.3 * np.exp(-epoch / 1.5) + 0.05)
        loss = (early if epoch < MEMORISED else difficulty) * rng.lognormal(0, 0.3, n)
        keys = {"step": np.full(n, epoch), "epoch": np.full(n, epoch), "sample_id": ids}
        columns = {"loss": loss, "margin": 1 - loss, "predicted": np.full(n, epoch)}
        if grad_norm:
            columns["grad_norm"] = 10 * loss
        batches.append(keys | columns)
    roster = {"sample_id": ids, "label": wrong.astype(int)}
    if known:
        roster["true_label"] = np.zeros(n, dtype=int)
    return write_run(path, {"samples": batches, "roster": [roster]}), set(ids[wrong].tolist())


def test_the_epoch_is_chosen_once_the_losses_separate_and_before_memorisation(tmp_path):
    run, _ = simulate(tmp_path / "run")
    fits = fit_each_epoch(run)
    assert fits["epoch"].tolist() == list(range(EPOCHS))
    assert (fits["n"] == 270).all()
    chosen = choose_epoch(fits)
    assert 1 <= chosen <= MEMORISED
    row = fits.set_index("epoch").loc[chosen]
    assert row["confidence"] > SEPARATES
    assert row["noise_rate"] == pytest.approx(0.3, abs=0.03)


def test_choosing_prefers_converged_fits_and_passes_over_the_first_epoch():
    fits = pd.DataFrame({"epoch": [3, 4, 5], "confidence": [0.99, 0.8, 0.9]})
    assert choose_epoch(fits.assign(converged=True)) == 5
    assert choose_epoch(fits.assign(converged=[True, True, False])) == 4
    assert choose_epoch(fits.assign(converged=False)) == 5
    assert choose_epoch(fits.assign(converged=True).head(1)) == 3
    with pytest.raises(TraceError, match="at least 20 samples"):
        choose_epoch(fits.assign(converged=True).head(0))


def test_epochs_that_allow_no_fit_are_left_out(tmp_path):
    run, _ = simulate(tmp_path / "run", n=12)
    fits = fit_each_epoch(run)
    assert fits.empty
    assert list(fits) == ["epoch", "noise_rate", "confidence", "converged", "n_iterations", "n"]


def test_the_flipped_samples_are_the_most_suspect(tmp_path):
    run, wrong = simulate(tmp_path / "run")
    suspects = rank_suspects(run, epoch=3)
    assert set(suspects.index[: len(wrong)]) == wrong
    assert suspects["posterior"].iloc[0] > 0.95
    assert suspects["posterior"].iloc[-1] < 0.05
    assert (np.diff(suspects["posterior"].round(2)) <= 0).all()
    assert (suspects["predicted"] == 3).all()
    surest = suspects[suspects["posterior"].round(2) == 1]
    assert len(surest) > 10
    assert surest["aum"].is_monotonic_increasing


def test_detection_is_near_perfect_before_memorisation_and_not_after_it(tmp_path):
    run, wrong = simulate(tmp_path / "run")
    flipped = known_flips(run)
    assert set(flipped.index[flipped]) == wrong
    table = detection_auc(run, flipped).set_index(["score", "epoch"])
    assert (table["n"] == N).all()
    for score in ("loss", "grad_norm", "aum"):
        auc = table.loc[score, "auc"]
        assert auc.index.tolist() == list(range(EPOCHS))
        assert auc[1:MEMORISED].min() > 0.97, score
    assert table.loc[("loss", EPOCHS - 1), "auc"] < 0.75
    assert table.loc[("aum", EPOCHS - 1), "auc"] > 0.8  # remembers the early epochs
    rows = run.samples(columns=["loss"], epochs=[MEMORISED]).set_index("sample_id")["loss"]
    expected = area_under_roc(rows.to_numpy(), flipped.loc[rows.index].to_numpy())
    assert tuple(table.loc[("loss", MEMORISED), ["auc", "stderr"]]) == pytest.approx(expected)


def test_a_score_that_was_not_recorded_has_no_rows(tmp_path):
    run, _ = simulate(tmp_path / "run", grad_norm=False)
    assert set(detection_auc(run, known_flips(run))["score"]) == {"loss", "aum"}


def test_without_true_labels_nothing_is_known_to_be_flipped(tmp_path):
    run, _ = simulate(tmp_path / "run", known=False)
    assert known_flips(run) is None
