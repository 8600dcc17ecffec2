"""The law of label noise: the papers' numbers, its inverse, and telling it from a line."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import info, write_run, write_study

from dynamics import open_study
from dynamics.noise_law import (
    LAWS,
    compare_laws,
    invert_law,
    law_accuracy,
    law_label_precision,
    noise_table,
)

RATIOS = np.repeat([0.0, 0.2, 0.4, 0.6, 0.8], 3)


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
        assert invert_law(accuracy, kind=kind, n_classes=10) == ratio


def compare(accuracy, ratios=RATIOS, noise=0.01, kind="symmetric", **more):
    errors = np.resize([noise, -noise, 0], len(ratios))  # three runs a ratio: no curve gains by it
    measured = accuracy(ratios) + errors
    return compare_laws(ratios, measured, kind=kind, n_classes=10, draws=100, **more)


def of_law(ratio):
    return law_accuracy(ratio, kind="symmetric", n_classes=10)


def best(comparison):
    return comparison.table.set_index("law")["aicc"].idxmin()


def test_data_on_a_line_are_said_to_lie_on_a_line():
    comparison = compare(lambda r: 0.95 - 0.7 * r)
    assert best(comparison) == "straight line"
    assert comparison.quadratic_over_line.value < 0
    table = comparison.table.set_index("law")
    assert table["probability_best"].idxmax() == "straight line"


def test_data_of_the_law_are_said_to_follow_it():
    comparison = compare(of_law)
    assert best(comparison) == "theory"
    assert comparison.quadratic_over_line.low > 0
    table = comparison.table.set_index("law")
    assert table.loc["straight line", "probability_best"] == 0
    assert table.loc["straight line", "delta_aicc"] > 10
    assert table.loc["theory", "delta_aicc"] == 0


def test_a_law_that_starts_lower_is_told_from_the_law_itself():
    comparison = compare(lambda r: 0.8 * of_law(r))
    assert best(comparison) == "theory × clean accuracy"
    curve = comparison.curves.set_index("ratio")["theory × clean accuracy"]
    assert curve.loc[0.0] == pytest.approx(0.8)


def test_the_numbers_of_a_law_without_parameters_are_those_of_the_formulas():
    rng = np.random.default_rng(1)
    accuracy = of_law(RATIOS) + 0.02 * rng.standard_normal(len(RATIOS))
    comparison = compare_laws(RATIOS, accuracy, kind="symmetric", n_classes=10, draws=10)
    row = comparison.table.set_index("law").loc["theory"]
    residual = accuracy - of_law(RATIOS)
    n, rss = len(RATIOS), (residual**2).sum()
    assert row["rss"] == pytest.approx(rss)
    assert row["aicc"] == pytest.approx(n * np.log(rss / n) + 2 + 4 / (n - 2))
    means = residual.reshape(5, 3).mean(axis=1)
    assert row["largest_deviation"] == pytest.approx(np.abs(means).max())
    assert (comparison.n_runs, comparison.n_ratios) == (15, 5)
    assert comparison.table["law"].tolist() == list(LAWS)
    assert comparison.table["probability_best"].sum() == pytest.approx(1)


def test_the_order_of_runs_changes_no_fit():
    order = np.random.default_rng(0).permutation(len(RATIOS))
    accuracy = of_law(RATIOS) + 0.01 * np.sin(np.arange(len(RATIOS)))
    law = {"kind": "symmetric", "n_classes": 10, "draws": 5}
    first = compare_laws(RATIOS, accuracy, **law).table
    second = compare_laws(RATIOS[order], accuracy[order], **law).table
    columns = ["rss", "largest_deviation", "aicc", "delta_aicc"]
    np.testing.assert_allclose(first[columns], second[columns])


def test_fewer_than_four_ratios_are_refused():
    with pytest.raises(ValueError, match="there are 3"):
        compare(of_law, ratios=np.repeat([0.0, 0.2, 0.4], 5))


@pytest.mark.parametrize("n", [4, 5, 6])
def test_one_run_at_each_of_few_ratios_is_compared_without_a_claim_it_cannot_make(n):
    comparison = compare(of_law, ratios=np.linspace(0, 0.8, n))
    aicc = comparison.table.set_index("law")["aicc"]
    assert np.isfinite(aicc["theory"])
    assert np.isinf(aicc["free quadratic"]) == (n <= 5)
    assert np.isnan(comparison.quadratic_over_line.value) == (n <= 5)


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
    assert table.iloc[0].to_dict() == info_of | {
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
