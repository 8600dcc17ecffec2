"""Analysis of weighting schemes, on hand-made runs whose shares can be added up in the head."""

import numpy as np
import pandas as pd
import pytest
from made_weighting import made_run, write_weighting_study

from dynamics.weighting import (
    accuracy_curves,
    corrected_labels,
    pull_curves,
    pull_over_seeds,
    pull_shares,
    sample_groups,
    summarise_schemes,
    weighting_table,
)

CLEAN_P = [0.9, 0.8, 0.7, 0.1, 0.9, 0.8]  # sample 3 is the hard one


@pytest.fixture
def study(tmp_path):
    """Plain training, random weights, and a scheme that leaves wrong labels out in epoch 1."""
    p = np.array([[*CLEAN_P, 0.2, 0.3], [*CLEAN_P, 0.95, 0.85]])
    select = np.array([[1.0] * 8, [4 / 3] * 6 + [0.0, 0.0]])
    runs = []
    for seed in (0, 1, 2):
        shift = 0.01 * seed
        plain = made_run("uniform", seed=seed, p_true=p, test=[0.9, 0.6 + shift])
        told = {"weights": select, "norms": np.full((2, 8), 0.5), "test": [0.8, 0.78 + shift]}
        scheme = made_run("selfie", seed=seed, p_true=p, seconds=2.0, prepared=5.0, **told)
        scheme["corrected"] = (0.5, 0.9)
        control = made_run("random", seed=seed, p_true=p, test=[0.5, 0.5])
        runs += [plain, scheme, control]
    return write_weighting_study(tmp_path / "study", runs)


def run_of(study, name):
    return next(run for run in study.runs if run.name == name)


def test_pull_is_weight_times_norm_and_shares_add_up(tmp_path):
    weights = [[2, 2, 2, 2, 1, 1, 4, 0], [0] * 8]
    norms = [[1, 1, 1, 1, 3, 1, 2, 9], [1] * 8]
    made = made_run("reweight", weights=weights, norms=norms)
    run = write_weighting_study(tmp_path / "s", [made]).runs[0]
    shares = pull_shares(run, sample_groups(run)).set_index(["epoch", "group"])
    # epoch 0: clean weight 10 and pull 12; wrong weight 4 and pull 8; nothing pulls in epoch 1
    assert shares.loc[(0, "wrong label"), "weight_share"] == pytest.approx(4 / 14)
    assert shares.loc[(0, "wrong label"), "pull_share"] == pytest.approx(8 / 20)
    assert shares.loc[(0, "clean"), "pull_share"] == pytest.approx(12 / 20)
    assert shares["n"].tolist() == [6, 2, 6, 2]
    assert shares.loc[1, ["weight_share", "pull_share"]].isna().all(axis=None)


def test_groups_partition_the_samples(study, tmp_path):
    plain = run_of(study, "noise-0.4-uniform-seed0")
    assert sample_groups(plain).value_counts().to_dict() == {"clean": 6, "wrong label": 2}
    groups = sample_groups(plain, plain)
    assert groups[groups == "wrong label"].index.tolist() == [6, 7]
    assert set(groups[groups == "hard"].index) == {2, 3}  # p .1 and .7 of six: quantile 1/4 is .725
    rare = made_run("uniform", task="imbalance", level=3)
    run = write_weighting_study(tmp_path / "rare", [rare]).runs[0]
    assert sample_groups(run).tolist() == ["rare"] * 2 + ["common"] * 6


def test_a_row_per_run_has_drop_areas_and_cost(study):
    table = weighting_table(study).set_index(["scheme", "seed"])
    plain, scheme = table.loc[("uniform", 1)], table.loc[("selfie", 1)]
    assert plain["drop"] == pytest.approx(0.9 - 0.61)
    assert plain["best_epoch"] == 0
    assert scheme["final"] == pytest.approx(0.79)
    assert plain["cost"] == 1
    assert scheme["cost"] == pytest.approx((5 + 2 * 20) / 20)
    # epoch 0: wrong labels' p, .2 and .3, are above one of the six clean ones each
    assert plain["peak_auc"] == pytest.approx(10 / 12)
    assert scheme["weight_auc"] == 1
    assert plain["weight_auc"] == 0.5
    assert scheme["suspect_share"] == 0
    assert plain["suspect_share"] == pytest.approx(2 / 8)
    assert np.isnan(plain["rare_final"])
    assert plain["fit"] == pytest.approx(0.8)


def test_the_last_epochs_area_counts_pairs(study):
    """Wrong p .95, .85 against clean .9 .8 .7 .1 .9 .8: below clean in 0 and 2 of 6 pairs."""
    table = weighting_table(study).set_index(["scheme", "seed"])
    assert table.loc[("uniform", 0), "final_auc"] == pytest.approx(2 / 12)


def test_without_plain_training_cost_and_difference_are_missing(tmp_path):
    table = weighting_table(write_weighting_study(tmp_path / "s", [made_run("gce")]))
    assert table["cost"].isna().all()
    summary = summarise_schemes(table).iloc[0]
    assert np.isnan(summary["over_plain"])
    assert summary["over_plain_n"] == 0


def test_runs_that_have_not_ended_are_left_out(tmp_path):
    runs = [made_run("gce"), made_run("mae", clean=False)]
    study = write_weighting_study(tmp_path / "s", runs)
    assert weighting_table(study)["scheme"].tolist() == ["gce"]
    assert set(pull_curves(study)["scheme"]) == {"gce"}
    empty = write_weighting_study(tmp_path / "none", [made_run("gce", clean=False)])
    for table in (weighting_table(empty), pull_curves(empty), accuracy_curves(empty)):
        assert table.empty
        assert "scheme" in table
    assert pull_over_seeds(pull_curves(empty)).empty


def test_differences_are_paired_by_seed(study):
    summary = summarise_schemes(weighting_table(study)).set_index("scheme")
    assert summary.index[0] == "selfie"  # best at the end first
    scheme = summary.loc["selfie"]
    assert scheme["over_plain"] == pytest.approx(0.18)
    assert scheme["over_plain_high"] - scheme["over_plain_low"] == pytest.approx(0, abs=1e-6)
    assert scheme["drop_saved"] == pytest.approx((0.3 - 0.02), abs=0.01)
    assert scheme["over_random"] == pytest.approx(0.29)
    assert scheme["final_high"] > scheme["final"] + 0.01  # the seeds differ, the pairs do not
    assert summary.loc["uniform", "over_plain"] == 0
    assert (summary["n_seeds"] == 3).all()


def test_curves_over_seeds_are_means_with_students_interval(study):
    curves = pull_curves(study)
    assert set(curves["group"]) == {"easy", "hard", "wrong label"}
    assert curves.groupby(["scheme", "seed", "epoch"])["pull_share"].sum().round(9).eq(1).all()
    middle = pull_over_seeds(curves)
    rows = middle[(middle["scheme"] == "selfie") & (middle["group"] == "wrong label")]
    assert rows["value"].tolist() == [pytest.approx(2 / 8), 0]
    assert rows["n"].tolist() == [3, 3]
    accuracy = accuracy_curves(study)
    last = accuracy[(accuracy["scheme"] == "uniform") & (accuracy["epoch"] == 1)].iloc[0]
    assert last["value"] == pytest.approx(0.61)
    assert last["high"] - last["value"] == pytest.approx(4.3027 * 0.01 / np.sqrt(3), rel=1e-3)


def test_corrected_labels_are_read_where_a_scheme_has_corrected_any(study):
    corrected = corrected_labels(study)
    assert set(corrected["scheme"]) == {"selfie"}
    assert len(corrected) == 6
    assert corrected[["fraction", "precision"]].drop_duplicates().values.tolist() == [[0.5, 0.9]]


def test_the_rare_class_is_measured_in_the_task_imbalance(tmp_path):
    weights = np.array([[3.0, 3.0] + [1.0] * 6] * 2)
    made = made_run("class-ratio", task="imbalance", level=3, weights=weights)
    row = weighting_table(write_weighting_study(tmp_path / "s", [made])).iloc[0]
    assert row["weight_auc"] == 1
    assert row["suspect_share"] == pytest.approx(0.5)
    assert row["rare_final"] == pytest.approx(0.35)
    assert pd.isna(row["peak_auc"])
