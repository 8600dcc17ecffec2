"""What is known of each sample of the training set: given at the start, or gathered on the way."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


class KnownIds:
    """Which sample ids exist.

    Args:
        sample_id: All of them, each once.
    """

    def __init__(self, sample_id: np.ndarray) -> None:
        self._ids = np.sort(sample_id)
        self.n = len(self._ids)
        self._is_range = self.n > 0 and self._ids[0] == 0 and self._ids[-1] == self.n - 1

    def has_all(self, ordered: np.ndarray) -> bool:
        """Whether all of the given ids, in ascending order and not empty, exist."""
        if self._is_range:
            return bool(ordered[0] >= 0 and ordered[-1] < self.n)
        return not len(self.unknown(ordered))

    def unknown(self, sample_id: np.ndarray) -> np.ndarray:
        """The given ids that do not exist."""
        if self._is_range:
            return sample_id[(sample_id < 0) | (sample_id >= self.n)]
        if not self.n:
            return sample_id
        at = np.searchsorted(self._ids, sample_id).clip(max=self.n - 1)
        return sample_id[self._ids[at] != sample_id]


class LabelLedger:
    """The first label seen for each sample, when no roster was given."""

    def __init__(self) -> None:
        self._seen = np.empty(0, dtype=np.int64)

    def first_seen(self, sample_id: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
        """Roster rows for the samples that were not seen before.

        Args:
            sample_id: Shape (N,).
            label: Shape (N,).

        Returns:
            Columns `sample_id` and `label`, possibly empty.
        """
        ids, first = np.unique(sample_id, return_index=True)
        new = ~np.isin(ids, self._seen, assume_unique=True)
        self._seen = np.union1d(self._seen, ids[new])
        return {"sample_id": ids[new], "label": label[first[new]]}


def check_roster(roster: Mapping[str, Any] | pd.DataFrame) -> pd.DataFrame:
    """The roster as a table of integers.

    Args:
        roster: Columns by name.

    Returns:
        Columns `sample_id`, `label` and those given of `true_label` and `group`.

    Raises:
        ValueError: If a column is unknown or not integers, lengths differ, or an id is repeated or
            negative.
    """
    allowed = ("sample_id", "label", "true_label", "group")
    if unknown := [name for name in roster if name not in allowed]:
        raise ValueError(f"The roster has no column {unknown[0]!r}; it has {', '.join(allowed)}.")
    if "label" not in roster:
        raise ValueError("The roster needs a column `label`: the labels as trained.")
    columns = {str(name): np.asarray(values) for name, values in roster.items()}
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise ValueError(f"The roster's columns differ in length: {lengths}.")
    for name, values in columns.items():
        if values.dtype.kind not in "iu":
            raise ValueError(f"The roster's `{name}` must be integers, but is {values.dtype}.")
    columns.setdefault("sample_id", np.arange(len(columns["label"])))
    ids = columns["sample_id"]
    if len(np.unique(ids)) < len(ids) or (len(ids) and ids.min() < 0):
        raise ValueError("The roster's `sample_id` must be non-negative, each once.")
    return pd.DataFrame({name: columns[name] for name in allowed if name in columns})
