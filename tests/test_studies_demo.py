"""The demo, shortened to the epochs before memorisation: what it promises is in its trace."""

from dataclasses import replace

import pytest

import studies.demo
from dynamics import open_run
from dynamics.label_noise import choose_epoch, detection_auc, fit_each_epoch, known_flips
from studies.demo import run_demo

EPOCHS = 12


@pytest.fixture(scope="module")
def run(deterministic_torch, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies.demo, "RECIPE", replace(studies.demo.RECIPE, epochs=EPOCHS))
        run_demo(out)
    return open_run(out)


def test_thirty_percent_of_the_labels_are_wrong(run):
    flipped = known_flips(run)
    assert len(flipped) == 1500
    assert flipped.mean() == 0.3


def test_loss_and_aum_tell_wrong_labels_before_memorisation(run):
    best = detection_auc(run, known_flips(run)).groupby("score")["auc"].max()
    assert best["loss"] >= 0.95
    assert best["aum"] >= 0.95


def test_the_mixture_finds_the_noise_rate_without_being_told(run):
    fits = fit_each_epoch(run).set_index("epoch")
    epoch = choose_epoch(fits.reset_index())
    assert abs(fits.loc[epoch, "noise_rate"] - 0.3) <= 0.05
    assert fits.loc[epoch, "confidence"] >= 0.95


def test_all_four_probes_have_recorded(run):
    rows = run.samples()
    assert len(rows) == EPOCHS * 1500
    assert (
        rows[["loss", "margin", "p_true", "el2n", "predicted", "grad_norm"]].notna().all(axis=None)
    )
    assert (rows["grad_norm"] > 0).all()
    scalars = run.scalars()
    for name in ("fisher_trace", "empirical_fisher_trace"):
        total = scalars[(scalars["name"] == name) & (scalars["block"] == "total")]
        assert set(total["epoch"]) >= {*range(EPOCHS)}
        assert (total["value"] > 0).all()
    shares = scalars[scalars["name"] == "weighted_gradient_share"]
    assert shares.groupby("epoch")["value"].sum().tolist() == pytest.approx([1.0] * EPOCHS)
    blocks = set(scalars[scalars["name"] == "predicted_frac"]["block"])
    assert {"test: class 0", "random noise: class 9"} <= blocks
    assert len(blocks) == 20
    assert {p["probe"] for p in run.info["probes"]} == {
        "FisherTrace",
        "GradNorm",
        "SampleLoss",
        "WeightEffect",
    }


def test_accuracies_are_recorded_and_the_run_has_ended(run):
    accuracy = run.scalars("accuracy").set_index(["block", "epoch"])["value"]
    assert accuracy["test, true labels"].max() >= 0.8
    assert accuracy["train, noisy labels"].notna().sum() == EPOCHS
    assert run.ended_cleanly
    assert run.info["data"]["source"] == "digits"
