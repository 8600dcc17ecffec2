"""Refurbishment: samples that are predicted the same way each time get that label (SELFIE).

Of the last q predictions of a sample, P̂(j) is the share of class j, and

    F(x; q) = −Σ_j P̂(j) log P̂(j) / log C,

0 for a unanimous history and 1 for an even one over all C classes. A sample with F ≤ ε is
refurbishable, and its label becomes the most frequent prediction.

Reference:
    Song, Kim and Lee, ICML 2019, Sec. 3; q = 15 and ε = .05 are theirs. With ε = .05 and up to 134
    classes one dissenting prediction of 15 already forbids it.
"""

import numpy as np
import pandas as pd

from dynamics.sample_reducer import SampleIndex
from dynamics.statistics import area_under_roc, proportion
from dynamics.summary import iter_epochs
from dynamics.traces import Run

_ROWS = 2**16
"""Histories that are counted at once: the memory of it stays at some 50 MB."""


def history_uncertainty(history: np.ndarray, *, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """F(x; q) of prediction histories, and their most frequent class.

    Args:
        history: The last q predicted classes of each sample, in any order, shape (N, q).
        n_classes: Number of classes C, at least 2.

    Returns:
        F, shape (N,), and the most frequent class, the smallest of ties, shape (N,).

    Raises:
        ValueError: If a class is out of range.
    """
    n, q = history.shape
    if history.size and not 0 <= history.min() <= history.max() < n_classes:
        raise ValueError(
            f"Predictions go from {history.min()} to {history.max()}, but n_classes is {n_classes}."
        )
    uncertainty, label = np.zeros(n), np.zeros(n, dtype=np.int64)
    for first in range(0, n, _ROWS):
        rows = np.sort(history[first : first + _ROWS], axis=1)
        count = _count_last(rows)
        is_last = np.ones(rows.shape, dtype=bool)
        is_last[:, :-1] = rows[:, 1:] != rows[:, :-1]
        share = np.where(is_last, count, 0) / q
        entropy = -np.where(share > 0, share * np.log(np.maximum(share, 1 / q)), 0.0).sum(1)
        uncertainty[first : first + _ROWS] = np.maximum(entropy, 0) / np.log(n_classes)
        most = np.where(is_last, count, 0).argmax(1)
        label[first : first + _ROWS] = np.take_along_axis(rows, most[:, None], 1)[:, 0]
    return uncertainty, label


def _count_last(rows: np.ndarray) -> np.ndarray:
    """How often each entry's class came up to it, in rows that are sorted."""
    at = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    starts = np.zeros(rows.shape, dtype=np.int64)
    starts[:, 1:] = np.where(rows[:, 1:] != rows[:, :-1], at[:, 1:], 0)
    return at - np.maximum.accumulate(starts, axis=1) + 1


class PredictionHistory:
    """The last q predictions of each sample: q small integers a sample, however long the run.

    Args:
        q: Length of a history.
        n_classes: Number of classes C, at least 2.
    """

    def __init__(self, q: int, *, n_classes: int) -> None:
        self._n_classes = n_classes
        self._index = SampleIndex()
        self._history = np.zeros((0, q), dtype=np.min_scalar_type(n_classes))
        self._n_seen = np.zeros(0, dtype=np.int64)

    def add(self, sample_ids: np.ndarray, predicted: np.ndarray) -> None:
        """Take one prediction each of some samples.

        Args:
            sample_ids: Samples, each once, shape (M,).
            predicted: Predicted classes, shape (M,); missing ones do not count.

        Raises:
            ValueError: If a class is out of range.
        """
        known = np.isfinite(predicted)
        ids, predicted = sample_ids[known], predicted[known]
        if len(predicted) and not 0 <= predicted.min() <= predicted.max() < self._n_classes:
            raise ValueError(
                f"Predictions go from {predicted.min():g} to {predicted.max():g}, but n_classes is "
                f"{self._n_classes}."
            )
        order = np.argsort(ids, kind="stable")
        slots = self._index.find(ids[order])
        self._make_room()
        place = self._n_seen[slots] % self._history.shape[1]
        self._history[slots, place] = predicted[order]
        self._n_seen[slots] += 1

    def _make_room(self) -> None:
        room, q = self._history.shape
        if len(self._index) > room:
            grown = max(len(self._index), room * 3 // 2) - room
            fresh = np.zeros((grown, q), self._history.dtype)
            self._history = np.concatenate([self._history, fresh])
            self._n_seen = np.concatenate([self._n_seen, np.zeros(grown, np.int64)])

    def table(self) -> pd.DataFrame:
        """Uncertainty and label of each sample so far.

        Returns:
            Index `sample_id`; `n_seen` (presentations), `uncertainty` F(x; q), missing before q
            presentations, and `label`, the most frequent prediction, −1 before.
        """
        slots, ids = self._index.ordered()
        n_seen = self._n_seen[slots]
        full = n_seen >= self._history.shape[1]
        uncertainty, label = np.full(len(ids), np.nan), np.full(len(ids), -1)
        uncertainty[full], label[full] = history_uncertainty(
            self._history[slots[full]], n_classes=self._n_classes
        )
        columns = {"n_seen": n_seen, "uncertainty": uncertainty, "label": label}
        return pd.DataFrame(columns, index=pd.Index(ids, name="sample_id"))


def refurbish(
    histories: pd.DataFrame, labels: pd.Series, *, threshold: float = 0.05
) -> pd.DataFrame:
    """Which samples are refurbishable, and what becomes of their labels.

    Args:
        histories: What `PredictionHistory.table` returned.
        labels: Label of each sample as trained, index `sample_id`.
        threshold: Largest uncertainty ε of a refurbishable sample.

    Returns:
        Index `sample_id`; `uncertainty, refurbishable, label` (the new one where refurbishable, as
        trained elsewhere) and `changed`.
    """
    trained = labels.reindex(histories.index)
    refurbishable = histories["uncertainty"] <= threshold
    label = trained.where(~refurbishable, histories["label"])
    return pd.DataFrame(
        {
            "uncertainty": histories["uncertainty"],
            "refurbishable": refurbishable,
            "label": label,
            "changed": refurbishable & (label != trained),
        }
    )


def refurbishment_each_epoch(
    run: Run, *, n_classes: int, q: int = 15, threshold: float = 0.05
) -> pd.DataFrame:
    """How many samples are refurbishable after each epoch, and how many of their labels are true.

    Histories are of the recorded `predicted`, one entry an epoch. A sample with fewer than q is
    not refurbishable; the authors' code fills such a history with class 0, and hides that behind a
    warm-up of 25 epochs. Here each epoch is judged by itself; their training keeps a label once
    refurbished. One pass; q integers a sample.

    Args:
        run: A run with `predicted` recorded and labels in the roster.
        n_classes: Number of classes C, at least 2.
        q: Length of a history.
        threshold: Largest uncertainty ε of a refurbishable sample.

    Returns:
        One row per epoch: `epoch, n, n_refurbishable, share` (of the samples seen) with its
        interval `share_low, share_high`, `n_changed` (new label differs), and, where the roster
        knows true labels, `precision` (new label is true) of the refurbishable with `low, high`,
        `precision_changed` of those changed, `auc` of F for wrong labels and its `auc_stderr`.
        Intervals are Wilson's.
    """
    roster = run.roster()
    history = PredictionHistory(q, n_classes=n_classes)
    records = []
    for epoch, rows in iter_epochs(run, ["predicted"]):
        history.add(rows.index.to_numpy(), rows["predicted"].to_numpy(dtype=np.float64))
        new = refurbish(history.table(), roster["label"], threshold=threshold)
        records.append({"epoch": epoch} | _count(new) | _judge(new, roster))
    columns = ["epoch", "n", "n_refurbishable", "share", "share_low", "share_high", "n_changed"]
    columns += ["precision", "low", "high", "precision_changed", "auc", "auc_stderr"]
    return pd.DataFrame(records, columns=columns)


def _count(new: pd.DataFrame) -> dict[str, float]:
    share = proportion(int(new["refurbishable"].sum()), len(new))
    counts = {"n": len(new), "n_refurbishable": int(new["refurbishable"].sum())}
    counts |= {"n_changed": int(new["changed"].sum())}
    return counts | {"share": share.value, "share_low": share.low, "share_high": share.high}


def _judge(new: pd.DataFrame, roster: pd.DataFrame) -> dict[str, float]:
    truth = roster[["label", "true_label"]].reindex(new.index)
    known = truth["true_label"].notna()
    chosen, changed = new["refurbishable"] & known, new["changed"] & known
    is_true = new["label"] == truth["true_label"]
    precision = proportion(int(is_true[chosen].sum()), int(chosen.sum()))
    of_changed = proportion(int(is_true[changed].sum()), int(changed.sum()))
    wrong = (truth["label"] != truth["true_label"])[known].to_numpy()
    auc, stderr = area_under_roc(new["uncertainty"][known].to_numpy(), wrong)
    record = {"precision": precision.value, "low": precision.low, "high": precision.high}
    return record | {"precision_changed": of_changed.value, "auc": auc, "auc_stderr": stderr}
