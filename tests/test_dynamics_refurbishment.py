"""Refurbishment: F of histories that are counted by hand or by `Counter`, and a run's labels."""

from collections import Counter, deque

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import full_run, write_run

import dynamics.refurbishment
from dynamics.refurbishment import (
    PredictionHistory,
    history_uncertainty,
    refurbish,
    refurbishment_each_epoch,
)


def entropy(history, n_classes):
    shares = [count / len(history) for count in Counter(history).values()]
    return -sum(s * np.log(s) for s in shares) / np.log(n_classes)


@pytest.mark.parametrize(
    ("history", "n_classes", "expected"),
    [
        ([3] * 15, 10, 0.0),
        ([3] * 14 + [7], 10, 0.1064),
        ([3] * 14 + [7], 100, 0.0532),
        ([3] * 14 + [7], 200, 0.0462),
        (list(range(10)), 10, 1.0),
        ([0, 1], 2, 1.0),
    ],
)
def test_uncertainty_of_the_papers_setting(history, n_classes, expected):
    uncertainty, _ = history_uncertainty(np.array([history]), n_classes=n_classes)
    assert uncertainty[0] == pytest.approx(expected, abs=1e-4)


@given(seed=st.integers(0, 10_000), n=st.integers(0, 30), q=st.integers(1, 9), c=st.integers(2, 6))
def test_uncertainty_and_label_are_those_of_a_count(seed, n, q, c):
    history = np.random.default_rng(seed).integers(0, c, (n, q))
    uncertainty, label = history_uncertainty(history, n_classes=c)
    for row, f, y in zip(history.tolist(), uncertainty, label, strict=True):
        assert f == pytest.approx(entropy(row, c), abs=1e-12)
        assert (f == 0) == (len(set(row)) == 1)
        most = max(Counter(row).values())
        assert y == min(k for k, count in Counter(row).items() if count == most)


def test_many_histories_are_counted_a_piece_at_a_time(monkeypatch):
    history = np.random.default_rng(0).integers(0, 4, (50, 5))
    whole = history_uncertainty(history, n_classes=4)
    monkeypatch.setattr(dynamics.refurbishment, "_ROWS", 7)
    np.testing.assert_array_equal(history_uncertainty(history, n_classes=4), whole)


@given(seed=st.integers(0, 10_000), q=st.integers(1, 4))
def test_a_history_keeps_the_last_q_predictions_of_each_sample(seed, q):
    rng = np.random.default_rng(seed)
    history, kept, n_seen = PredictionHistory(q, n_classes=5), {}, Counter()
    for _ in range(rng.integers(1, 9)):
        ids = rng.permutation([0, 5, 9, 10**12, -3])[: rng.integers(1, 6)]
        predicted = np.where(rng.random(len(ids)) < 0.2, np.nan, rng.integers(0, 5, len(ids)))
        history.add(ids, predicted)
        for i, p in zip(ids.tolist(), predicted.tolist(), strict=True):
            if np.isfinite(p):
                kept.setdefault(i, deque(maxlen=q)).append(p)
                n_seen[i] += 1
    table = history.table()
    assert set(table.index) == set(kept)
    for i, row in table.iterrows():
        assert row["n_seen"] == n_seen[i]
        if n_seen[i] < q:
            assert np.isnan(row["uncertainty"])
            assert row["label"] == -1
        else:
            assert row["uncertainty"] == pytest.approx(entropy(kept[i], 5), abs=1e-12)


def test_a_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match="from 0 to 7, but n_classes is 4"):
        history_uncertainty(np.array([[0, 7]]), n_classes=4)
    with pytest.raises(ValueError, match="from 4 to 4, but n_classes is 4"):
        PredictionHistory(3, n_classes=4).add(np.array([1]), np.array([4.0]))


def test_labels_change_where_the_history_is_sure_of_another():
    histories = pd.DataFrame(
        {"uncertainty": [0.0, 0.0, 0.05, 0.06, np.nan], "label": [1, 2, 3, 4, -1]}
    )
    new = refurbish(histories, pd.Series([1, 9, 9, 9, 9]))
    assert new["refurbishable"].tolist() == [True, True, True, False, False]
    assert new["label"].tolist() == [1, 2, 3, 9, 9]
    assert new["changed"].tolist() == [False, True, True, False, False]


def test_refurbished_labels_are_precise_until_the_noise_is_memorised(tmp_path):
    """Until epoch 5 wrong labels are predicted as they truly are, then as they were given."""
    table = refurbishment_each_epoch(full_run(tmp_path / "run"), n_classes=4, q=3)
    table = table.set_index("epoch")
    assert table.loc[1, "n_refurbishable"] == 0
    assert np.isnan(table.loc[1, "precision"])
    for epoch in (2, 3, 4):
        assert table.loc[epoch, ["share", "precision", "precision_changed"]].tolist() == [1, 1, 1]
        assert table.loc[epoch, "n_changed"] == 36  # 30 % of 120
    assert table.loc[6, "n_refurbishable"] == 84
    assert table.loc[6, "auc"] == 1  # mixed histories are those of wrong labels
    assert table.loc[7, "precision"] == pytest.approx(0.7)
    assert table.loc[7, "n_changed"] == 0
    assert table.loc[7, "low"] < 0.7 < table.loc[7, "high"]


def test_without_true_labels_nothing_is_precise(tmp_path):
    columns = {"step": [0, 0], "epoch": [0, 0], "sample_id": [0, 1], "predicted": [1, 0]}
    roster = {"sample_id": [0, 1], "label": [1, 1]}
    run = write_run(tmp_path / "run", {"samples": [columns], "roster": [roster]})
    row = refurbishment_each_epoch(run, n_classes=2, q=1).iloc[0]
    assert row[["n", "n_refurbishable", "n_changed"]].tolist() == [2, 2, 1]
    assert np.isnan(row["precision"])
