"""Rise, peak and fall of Fisher traces, on hand-made studies with the answer known in the head."""

import math

import pandas as pd
import pytest
from recorded import fisher_run, write_fisher_study

from dynamics.plasticity import (
    curves_over_seeds,
    plasticity_curves,
    plasticity_table,
    summarise_plasticity,
)

RISING = [0.5, 0.6, 0.8, 0.9]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Epochs −1 to 3. The second seed does not fall by half, the wide network has no peak."""
    runs = [
        fisher_run("reference", 0, [1, 10, 8, 6, 4], [1, 9, 3, 1, 0.09], RISING),
        fisher_run("reference", 1, [1, 10, 8, 7, 6], [1, 9, 3, 1, 0.9], RISING),
        fisher_run("wide", 0, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], RISING),
    ]
    return write_fisher_study(tmp_path_factory.mktemp("study") / "fisher", runs)


def test_a_run_that_rises_and_falls(study):
    row = plasticity_table(study).set_index("run").loc["reference-seed0"]
    assert (row["first"], row["peak"], row["last"]) == (1, 10, 4)
    assert row["peak_epoch"] == 0
    assert row["last_over_peak"] == pytest.approx(0.4)
    # ratio · √((0.1/4)² + (0.1/10)²)
    assert row["last_over_peak_stderr"] == pytest.approx(0.4 * math.hypot(0.025, 0.01))
    assert row["empirical_last_over_peak"] == pytest.approx(0.01)
    assert (row["train_accuracy_at_peak"], row["train_accuracy"]) == (0.5, 0.9)
    assert row["test_accuracy"] == pytest.approx(0.45)
    assert row["has_interior_peak"] & row["falls"] & row["still_learns"] & row["rises_and_falls"]


def test_what_is_missing_for_a_fall_is_told_apart(study):
    table = plasticity_table(study).set_index("run")
    second, wide = table.loc["reference-seed1"], table.loc["wide-seed0"]
    assert second["has_interior_peak"]
    assert not second["falls"]
    assert not second["rises_and_falls"]
    assert not wide["has_interior_peak"]
    assert wide["last_over_peak"] == 1
    assert not wide["still_learns"]  # its peak is at the end, so accuracy has no time to rise


def test_a_trace_that_falls_when_accuracy_has_settled_does_not_count(tmp_path):
    runs = [fisher_run("reference", 0, [1, 10, 8, 6, 4], None, [0.9, 0.9, 0.9, 0.91])]
    row = plasticity_table(write_fisher_study(tmp_path / "study", runs)).iloc[0]
    assert row["has_interior_peak"]
    assert row["falls"]
    assert not row["still_learns"]
    assert not row["rises_and_falls"]
    assert "empirical_last_over_peak" not in row


def test_a_peak_within_the_error_does_not_count(tmp_path):
    runs = [fisher_run("reference", 0, [9.9, 10, 1], None, RISING[:2], stderr=0.5)]
    row = plasticity_table(write_fisher_study(tmp_path / "study", runs)).iloc[0]
    assert not row["has_interior_peak"]


def test_settings_are_summed_up_over_seeds(study):
    summary = summarise_plasticity(plasticity_table(study)).set_index("setting")
    reference = summary.loc["reference"]
    assert (reference["n"], reference["n_rises_and_falls"], reference["n_falls"]) == (2, 1, 1)
    assert reference["n_has_interior_peak"] == 2
    assert reference["last_over_peak"] == pytest.approx(0.5)
    assert reference["empirical_last_over_peak"] == pytest.approx((0.01 + 0.1) / 2)
    assert 0 < reference["low"] < 0.5 < reference["high"] < 1
    assert list(summary.index) == ["reference", "wide"]


def test_curves_hold_totals_only_and_the_middle_of_seeds(study):
    curves = plasticity_curves(study)
    assert set(curves["curve"]) == {
        "fisher_trace",
        "empirical_fisher_trace",
        "train_accuracy",
        "test_accuracy",
    }
    mine = curves[(curves["run"] == "reference-seed1") & (curves["curve"] == "fisher_trace")]
    assert mine["epoch"].tolist() == [-1, 0, 1, 2, 3]
    assert mine["value"].tolist() == [1, 10, 8, 7, 6]
    middle = curves_over_seeds(curves).set_index(["setting", "curve", "epoch"])
    last = middle.loc[("reference", "fisher_trace", 3)]
    assert (last["n"], last["mean"], last["median"]) == (2, 5, 5)
    assert last["stderr"] == pytest.approx(1.0)  # sd √2 of 4 and 6, over √2
    assert pd.isna(middle.loc[("wide", "fisher_trace", 3), "stderr"])


def test_runs_without_the_trace_are_left_out(tmp_path):
    runs = [
        fisher_run("reference", 0, [1, 3, 2], None, RISING[:2]),
        fisher_run("reference", 1, [], None, RISING[:2]),
    ]
    table = plasticity_table(write_fisher_study(tmp_path / "study", runs))
    assert table["run"].tolist() == ["reference-seed0"]
