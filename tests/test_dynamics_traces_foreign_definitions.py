"""Confidence, variability, correctness, AUM, forgetting and first learned, as computed by hand."""

import numpy as np
import pytest

from dynamics import import_log
from dynamics.summary import summarise_samples
from tests import foreign_logs as log


def by_name(run):
    """The summary, by the name that the log gives each sample."""
    return summarise_samples(run).set_index("key").sort_index()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("logs")
    log.write_cartography(place / "cartography")
    log.write_csv(place / "plain.csv", log.plain_rows())
    np.savez(place / "forgetting.npz", **log.forgetting_arrays())
    sources = {"cartography": "cartography", "plain": "plain.csv", "forgetting": "forgetting.npz"}
    return {name: import_log(place / at, place / f"run-{name}") for name, at in sources.items()}


@pytest.mark.parametrize("source", ["cartography", "plain", "forgetting"])
def test_forgetting_and_learning_are_those_counted_by_hand(runs, source):
    summary = by_name(runs[source])
    assert summary["n_observed"].to_dict() == log.N_OBSERVED
    assert summary["n_correct"].to_dict() == log.N_CORRECT
    assert summary["n_forgotten"].to_dict() == log.N_FORGOTTEN
    assert summary["first_learned"].dropna().to_dict() == log.FIRST_LEARNED
    assert summary.index[summary["first_learned"].isna()].tolist() == ["c", "f"]  # never learned


@pytest.mark.parametrize("source", ["cartography", "plain"])
def test_confidence_and_variability_are_those_computed_by_hand(runs, source):
    summary = by_name(runs[source])
    assert summary["mean_p_true"].to_dict() == pytest.approx(log.CONFIDENCE, abs=1e-7)
    variability = summary["std_p_true"][list(log.VARIABILITY)]
    assert variability.to_dict() == pytest.approx(log.VARIABILITY, abs=1e-7)


@pytest.mark.parametrize("source", ["cartography", "plain", "forgetting"])
def test_aum_is_that_computed_by_hand(runs, source):
    expected = {name: value * log.LN2 for name, value in log.AUM_IN_LN2.items()}
    assert by_name(runs[source])["aum"].to_dict() == pytest.approx(expected, abs=1e-7)


def test_loss_and_el2n_of_logits_are_those_computed_by_hand(runs):
    summary = by_name(runs["cartography"])
    # c: p = (1/4, 1/2, 1/4) with the label first: −ln 1/4, and ‖(−3/4, 1/2, 1/4)‖ = √(14/16)
    assert summary.loc["c", "mean_loss"] == pytest.approx(2 * log.LN2, abs=1e-6)
    assert summary.loc["c", "mean_el2n"] == pytest.approx(np.sqrt(14) / 4, abs=1e-6)
    # e: p = 1/3 each: ln 3, and ‖(−2/3, 1/3, 1/3)‖ = √6/3
    assert summary.loc["e", "mean_loss"] == pytest.approx(np.log(3), abs=1e-6)
    assert summary.loc["e", "mean_el2n"] == pytest.approx(np.sqrt(6) / 3, abs=1e-6)


def test_a_tie_goes_to_the_first_class_and_has_margin_zero(runs):
    rows = runs["cartography"].samples().merge(runs["cartography"].roster()["key"], on="sample_id")
    ties = rows[rows["key"].isin(["e", "f"])]
    assert (ties["margin"] == 0).all()
    assert (ties["predicted"] == 0).all()
    assert (ties["correct"] == (ties["key"] == "e")).all()


def test_an_epoch_without_a_row_is_told_and_a_second_row_is_a_repeat(runs):
    imported = runs["cartography"].info["imported"]
    assert imported["missing_rows"] == 2 + 3  # g misses two epochs, h three
    assert imported["repeats"] == 1
    repeats = runs["cartography"].samples(repeats=True).query("occurrence > 0")
    keys = runs["cartography"].roster()["key"]
    assert keys[repeats["sample_id"]].tolist() == ["i"]
    assert repeats["epoch"].tolist() == [2]
    assert repeats["correct"].tolist() == [0]  # the first of the two, R1, is the one that counts


@pytest.mark.parametrize("swapped", [False, True])
def test_aum_records_count_presentations_and_not_epochs(tmp_path, swapped):
    log.write_csv(tmp_path / "full_aum_records.csv", log.aum_records(swapped=swapped))
    summary = by_name(import_log(tmp_path / "full_aum_records.csv", tmp_path / "run"))
    # The second look at i in an epoch is a presentation like any other: margins
    # (−2−1+1−1+1+1)/6, forgotten once. g's third presentation is its third, whatever the epoch.
    expected = log.AUM_IN_LN2 | {"i": -1 / 6}
    aum = {name: value * log.LN2 for name, value in expected.items()}
    assert summary["aum"].to_dict() == pytest.approx(aum, abs=1e-7)
    assert summary["n_forgotten"].to_dict() == log.N_FORGOTTEN | {"i": 1}
    assert summary["n_correct"].to_dict() == log.N_CORRECT
    assert summary["label"].to_dict() == log.LABELS
    assert summary.loc["h", "first_learned"] == 1  # its second presentation
    final = {row["sample_id"]: row["aum"] for row in log.aum_records()}  # what the package says
    assert summary["aum"].to_dict() == pytest.approx(final, abs=1e-7)
