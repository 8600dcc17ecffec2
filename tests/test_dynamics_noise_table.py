"""The tables of a noise-ratio study: which epoch of which run, and what is told from it."""

import pandas as pd
import pytest
from recorded import info, write_run, write_study

from dynamics import open_study
from dynamics.noise_table import compare_arms, memorisation_needed, noise_table


def rows(epoch, values):
    """Rows of `scalars` as (name, block, value, stderr)."""
    names, blocks, value, stderr = zip(*values, strict=True)
    place = {"step": [10 * epoch] * len(values), "epoch": [epoch] * len(values)}
    return place | {"name": names, "block": blocks, "value": value, "stderr": stderr}


def test_the_noise_table_holds_the_last_epoch_of_every_run_with_values(tmp_path):
    study = write_study(tmp_path / "s", [], name="noise-ratio")
    info_of = {"noise": "symmetric", "ratio": 0.2, "seed": 7}
    path = study.path / "study.json"
    path.write_text(path.read_text().replace('"noise": []', '"noise": ["symmetric"]'))
    early = rows(0, [("accuracy", "held-out, noisy labels", 0.1, 0.01)])
    late = rows(
        3,
        [
            ("accuracy", "train, noisy labels", 0.99, 0.01),
            ("accuracy", "held-out, noisy labels", 0.64, 0.02),
            ("accuracy", "held-out, true labels", 0.8, 0.03),
            ("label_precision", "held-out", 0.98, 0.04),
            ("label_recall", "held-out", 0.79, 0.05),
        ],
    )
    write_run(study.path / "a", {"scalars": [late, early]}, about=info(config=info_of))
    write_run(study.path / "b", {}, about=info(config=info_of), clean=False)
    write_run(study.path / "c", {"scalars": [early]}, about=info(config=info_of), clean=False)
    table = noise_table(open_study(study.path))
    assert table["run"].tolist() == ["a", "c"]
    assert table["arm"].tolist() == ["memorised"] * 2
    assert table.iloc[0].drop(["arm", "true_class", "width"]).to_dict() == info_of | {
        "run": "a", "ended_cleanly": True, "epochs": 4, "train_accuracy": 0.99,
        "held_out_noisy": 0.64, "held_out_noisy_stderr": 0.02, "held_out_true": 0.8,
        "label_precision": 0.98, "label_recall": 0.79,
    }  # fmt: skip
    unfinished = table.iloc[1]
    assert (unfinished["held_out_noisy"], unfinished["epochs"]) == (0.1, 1)
    assert pd.isna(unfinished["train_accuracy"])
    assert not unfinished["ended_cleanly"]


def test_the_noise_table_of_a_study_without_values_is_empty_with_columns(tmp_path):
    table = noise_table(write_study(tmp_path / "s", []))
    assert table.empty
    assert {"run", "noise", "ratio", "held_out_noisy", "label_recall"} <= set(table)


def folds(epoch, a, b):
    values = [("accuracy", "train, noisy labels", 0.5 + 0.1 * epoch, 0.01)]
    for fold, value in (("held-out", (a + b) / 2), ("held-out a", a), ("held-out b", b)):
        values.append(("accuracy", f"{fold}, noisy labels", value, 0.02))
    return rows(epoch, values)


def test_the_early_stopped_epoch_is_chosen_on_one_fold_and_measured_on_the_other(tmp_path):
    study = write_study(tmp_path / "s", [], name="noise-ratio")
    config = {"noise": "symmetric", "ratio": 0.2, "seed": 0}
    epochs = [folds(0, 0.5, 0.4), folds(1, 0.6, 0.3), folds(2, 0.1, 0.7), folds(3, 0.0, 0.0)]
    write_run(study.path / "a", {"scalars": epochs}, about=info(config=config))
    table = noise_table(open_study(study.path)).set_index("arm")
    # fold a is best at epoch 1, where b has .3; fold b is best at epoch 2, where a has .1
    assert table.loc["early-stopped", "held_out_noisy"] == pytest.approx(0.2)
    assert table.loc["early-stopped", "train_accuracy"] == pytest.approx(0.65)
    assert table.loc["memorised", "held_out_noisy"] == 0


def test_the_true_class_included_makes_the_ratio_that_of_wrong_labels(tmp_path):
    study = write_study(tmp_path / "s", [], name="noise-ratio")
    config = {"noise": "symmetric", "ratio": 0.5, "seed": 0, "true_class": "included"}
    tables = {
        "scalars": [folds(0, 0.5, 0.4)],
        "roster": [{"sample_id": [0, 1], "label": [9, 0], "true_label": [1, 0]}],
    }
    write_run(study.path / "a", tables, about=info(config=config))
    assert noise_table(open_study(study.path))["ratio"].tolist() == pytest.approx([0.45] * 2)


def test_the_training_accuracy_needed_is_the_lowest_above_every_failure():
    table = pd.DataFrame(
        {"train_accuracy": [1.0, 0.9, 0.8, 0.7], "deviation": [0.01, -0.05, 0.2, 0.0]}
    )
    assert memorisation_needed(table, tolerance=0.06) == 0.9
    assert memorisation_needed(table, tolerance=0.3) == 0.7
    assert pd.isna(memorisation_needed(table.iloc[2:], tolerance=0.06))


def test_an_arm_is_paired_with_memorised_runs_of_its_seed():
    base = {"noise": "symmetric", "ratio": 0.2, "width": 8}
    table = pd.DataFrame(
        [base | {"arm": arm, "seed": seed, "held_out_noisy": 0.1 * seed + gain}
         for arm, gain in (("memorised", 0.0), ("dropout", 0.05)) for seed in range(3)]
    )  # fmt: skip
    (row,) = compare_arms(table, arm="dropout", n_classes=10).to_dict("records")
    assert row["above_memorised"] == pytest.approx(0.05)
    assert row["above_memorised_low"] == pytest.approx(0.05)
    assert row["n_seeds"] == 3
