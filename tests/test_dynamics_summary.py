"""A trace reduced to a row per sample or per epoch, against answers known in the head."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import write_run

from dynamics import open_run
from dynamics.summary import count_missing, iter_epochs, summarise_epochs, summarise_samples
from dynamics.traces import TraceWriter, begin_attempt, create_run

NA = np.nan
VALUES = ("loss", "margin", "p_true", "el2n", "grad_norm", "correct")


def batch(epoch, ids, **columns):
    keys = {"step": np.full(len(ids), epoch), "epoch": np.full(len(ids), epoch)}
    return keys | {"sample_id": np.array(ids)} | {k: np.array(v) for k, v in columns.items()}


def record(path, batches, *, max_rows=1_000_000):
    create_run(path, {})
    attempt = begin_attempt(path, from_step=0, from_epoch=0)
    writer = TraceWriter(path, attempt=attempt, max_rows=max_rows, max_seconds=1e9)
    for columns in batches:
        writer.append("samples", columns)
    writer.close()
    return open_run(path)


#            sample: 0  1  2  3  4   5
CORRECT = np.array([[1, 0, 1, 0, 0, 1],  # epoch 0
                    [1, 1, 0, 0, 0, NA],
                    [1, 0, 1, 0, 1, 0],
                    [1, 1, 0, 0, 1, 1]])  # fmt: skip
LOSS = np.array([[4, 1, 0, 2, 8, NA],
                 [3, 1, 2, 2, 0, 5],
                 [2, 1, 0, 2, NA, 7],
                 [1, 1, 2, 2, NA, NA]])  # fmt: skip
MARGIN = np.array([[0, -1, 3, -8, NA, 2],
                   [2, 1, -3, -8, NA, 2],
                   [4, -1, 3, -8, NA, 2],
                   [6, 1, -3, -8, NA, 10]])  # fmt: skip
P_TRUE = np.array([[0.5, 0, 0.75, 0, 1, NA],
                   [0.5, 1, 0.25, 0, 1, 0.5],
                   [0.5, 0, 0.75, 0, 0, NA],
                   [0.5, 1, 0.25, 0, 0, NA]])  # fmt: skip


@pytest.fixture
def run(tmp_path):
    batches = [
        batch(e, range(6), correct=CORRECT[e], loss=LOSS[e], margin=MARGIN[e], p_true=P_TRUE[e])
        for e in range(4)
    ]
    roster = {"sample_id": range(6), "label": [0, 1, 0, 1, 0, 1], "true_label": [0, 1, 0, 0, 0, 1]}
    return write_run(tmp_path / "run", {"samples": batches, "roster": [roster]})


KNOWN = {
    "n_observed": [4, 4, 4, 4, 4, 4],
    "mean_loss": [2.5, 1, 1, 2, 4, 6],
    "var_loss": [1.25, 0, 1, 0, 16, 1],
    "first_loss": [4, 1, 0, 2, 8, 5],
    "last_loss": [1, 1, 2, 2, 0, 7],
    "first_learned": [0, 1, 0, NA, 2, 0],
    "n_forgotten": [0, 1, 2, 0, 0, 1],
    "n_correct": [4, 2, 2, 0, 2, 2],
    "aum": [3, 0, 0, -8, NA, 4],
    "mean_p_true": [0.5, 0.5, 0.5, 0, 0.5, 0.5],
    "std_p_true": [0, 0.5, 0.25, 0, 0.5, 0],
    "mean_el2n": [NA] * 6,
    "mean_grad_norm": [NA] * 6,
}


def test_every_column_of_a_trace_small_enough_to_check_by_hand(run):
    summary = summarise_samples(run)
    assert summary.index.tolist() == list(range(6))
    assert summary.index.name == "sample_id"
    assert list(summary) == ["label", "true_label", "group", *KNOWN]
    assert summary["label"].tolist() == [0, 1, 0, 1, 0, 1]
    for column, expected in KNOWN.items():
        np.testing.assert_allclose(summary[column], expected, atol=1e-12, err_msg=column)


def test_only_epochs_up_to_the_one_named_count(run):
    summary = summarise_samples(run, until_epoch=1)
    assert summary["n_observed"].tolist() == [2] * 6
    np.testing.assert_array_equal(summary["first_learned"], [0, 1, 0, NA, NA, 0])
    assert summary["n_forgotten"].tolist() == [0, 0, 1, 0, 0, 0]
    assert summary["n_correct"].tolist() == [2, 1, 1, 0, 0, 1]
    np.testing.assert_array_equal(summary["last_loss"], [3, 1, 2, 2, 0, 5])
    np.testing.assert_array_equal(summary["aum"], [1, 0, 0, -8, NA, 2])


def test_a_repeat_within_an_epoch_does_not_count(tmp_path):
    run = record(tmp_path / "run", [batch(0, [0, 1, 0], loss=[1.0, 2.0, 9.0])])
    summary = summarise_samples(run)
    assert summary["n_observed"].tolist() == [1, 1]
    assert summary["mean_loss"].tolist() == [1, 2]


def test_a_sample_of_the_roster_that_was_never_seen_has_no_values(tmp_path):
    roster = {"sample_id": [0, 1], "label": [5, 6]}
    tables = {"samples": [batch(0, [0], loss=[1.0])], "roster": [roster]}
    summary = summarise_samples(write_run(tmp_path / "run", tables))
    assert summary["label"].tolist() == [5, 6]
    assert np.isnan(summary.loc[1, "mean_loss"])


def random_trace(seed):
    """Batches of 7 samples over 5 epochs, some left out, and values some of which are missing."""
    rng = np.random.default_rng(seed)
    batches = []
    for epoch in range(5):
        ids = rng.permutation(7)[: rng.integers(0, 8)]
        for part in np.array_split(ids, 2):
            values = {name: rng.integers(0, 9, len(part)) / 4 for name in VALUES}
            values["correct"] = rng.integers(0, 2, len(part)).astype(float)
            for value in values.values():
                value[rng.random(len(part)) < 0.3] = np.nan
            if len(part):
                batches.append(batch(epoch, part, **values))
    return batches


def naive_summary(batches):
    rows = pd.concat([pd.DataFrame(columns) for columns in batches]).sort_values("epoch")
    records = {}
    for sample, of_sample in rows.groupby("sample_id"):
        loss, p_true = of_sample["loss"].dropna(), of_sample["p_true"].dropna()
        right = of_sample.dropna(subset="correct")
        learned = right.loc[right["correct"] == 1, "epoch"]
        records[sample] = {
            "n_observed": len(of_sample),
            "mean_loss": loss.mean(),
            "var_loss": loss.var(ddof=0),
            "first_loss": loss.iloc[0] if len(loss) else np.nan,
            "last_loss": loss.iloc[-1] if len(loss) else np.nan,
            "first_learned": learned.min(),
            "n_forgotten": (right["correct"].diff() == -1).sum(),
            "n_correct": right["correct"].sum(),
            "aum": of_sample["margin"].mean(),
            "mean_p_true": p_true.mean(),
            "std_p_true": p_true.std(ddof=0),
            "mean_el2n": of_sample["el2n"].mean(),
            "mean_grad_norm": of_sample["grad_norm"].mean(),
        }
    return pd.DataFrame.from_dict(records, orient="index").sort_index()


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), max_rows=st.integers(1, 12))
def test_a_random_trace_in_random_parts_is_summarised_as_by_pandas(seed, max_rows):
    batches = random_trace(seed)
    if not batches:
        return
    with tempfile.TemporaryDirectory() as folder:
        summary = summarise_samples(record(Path(folder), batches, max_rows=max_rows))
    expected = naive_summary(batches)
    assert summary.index.tolist() == expected.index.tolist()
    for column in KNOWN:
        np.testing.assert_allclose(summary[column], expected[column], atol=1e-9, err_msg=column)


def test_the_order_of_rows_within_a_part_changes_nothing(tmp_path):
    batches = random_trace(1)
    rng = np.random.default_rng(0)
    shuffled = []
    for columns in batches:
        order = rng.permutation(len(columns["sample_id"]))
        shuffled.append({name: values[order] for name, values in columns.items()})
    first = summarise_samples(record(tmp_path / "a", batches))
    second = summarise_samples(record(tmp_path / "b", shuffled))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("max_rows", [1, 5, 6, 7, 11, 100])
def test_each_epoch_comes_once_and_whole_however_parts_are_cut(tmp_path, max_rows):
    batches = [batch(e, [2 * t, 2 * t + 1], loss=[e, t]) for e in range(4) for t in range(3)]
    run = record(tmp_path / "run", batches, max_rows=max_rows)
    epochs = list(iter_epochs(run, ["loss"]))
    assert [epoch for epoch, _ in epochs] == [0, 1, 2, 3]
    for epoch, rows in epochs:
        assert sorted(rows.index) == list(range(6))
        assert rows["loss"].sort_index().tolist() == [epoch, 0, epoch, 1, epoch, 2]


def test_the_distribution_of_an_epoch_is_that_of_numpy(tmp_path):
    x = np.random.default_rng(0).exponential(size=(2, 30)).astype(np.float32).astype(np.float64)
    x[1, :4] = NA
    run = record(tmp_path / "run", [batch(e, range(30), loss=x[e]) for e in range(2)])
    table = summarise_epochs(run, "loss")
    assert table[["epoch", "group", "n"]].to_numpy().tolist() == [[0, "all", 30], [1, "all", 26]]
    for row, known in zip(table.itertuples(), (x[0], x[1, 4:]), strict=True):
        assert row.mean == pytest.approx(known.mean())
        assert row.stderr == pytest.approx(known.std(ddof=1) / np.sqrt(len(known)))
        quantiles = [row.q05, row.q25, row.median, row.q75, row.q95]
        np.testing.assert_allclose(quantiles, np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95]))


def test_groups_are_summarised_apart_and_samples_of_no_group_left_out(tmp_path):
    run = record(tmp_path / "run", [batch(0, [3, 0, 2, 1], loss=[40.0, 1.0, 3.0, 2.0])])
    groups = pd.Series({0: "a", 2: "a", 1: "b"})
    table = summarise_epochs(run, "loss", groups=groups).set_index("group")
    assert table["n"].to_dict() == {"a": 2, "b": 1}
    assert table["mean"].to_dict() == {"a": 2, "b": 2}
    assert table.loc["a", "stderr"] == pytest.approx(1)
    assert np.isnan(table.loc["b", "stderr"])


def test_a_column_that_was_not_recorded_has_no_rows(run):
    assert summarise_epochs(run, "grad_norm").empty
    assert "median" in summarise_epochs(run, "grad_norm")


@pytest.mark.parametrize("max_rows", [1, 100])
def test_missing_values_are_counted_from_the_first_one_on(tmp_path, max_rows):
    batches = [
        {"step": [0], "epoch": [0], "sample_id": [9], "loss": [NA], "p_true": [1.0]},
        {"step": [1], "epoch": [0], "sample_id": [3], "loss": [NA], "p_true": [1.0]},
        {"step": [2], "epoch": [1], "sample_id": [5], "loss": [1.0], "p_true": [np.inf]},
        {"step": [3], "epoch": [1], "sample_id": [9], "loss": [NA], "p_true": [0.5]},
    ]
    batches = [{name: np.array(v) for name, v in columns.items()} for columns in batches]
    table = count_missing(record(tmp_path / "run", batches, max_rows=max_rows))
    assert sorted(table.to_numpy().tolist()) == [["loss", 3, 0, 9], ["output", 1, 1, 5]]


def test_a_run_without_missing_values_has_none_to_count(tmp_path):
    run = record(tmp_path / "run", [batch(0, [0], loss=[1.0])])
    assert count_missing(run).empty
