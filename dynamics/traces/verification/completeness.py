"""Which (epoch, sample) a run holds, and which it lacks.

One byte for each sample and epoch: 100 MB for the 102 million rows of ImageNet × 80 epochs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_SEEN, _SEEN_BY_RANK = np.uint8(1), np.uint8(2)
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Gap:
    """Samples that an epoch lacks, though they belong to the run.

    Attributes:
        epoch: The epoch.
        sample_ids: The samples missing, ascending.
        n_expected: Samples that belong to the run.
        n_repeats: Rows of the epoch beyond a sample's first.
    """

    epoch: int
    sample_ids: np.ndarray
    n_expected: int
    n_repeats: int

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch}: {len(self.sample_ids):,} of {self.n_expected:,} samples "
            f"missing, {show_ids(self.sample_ids)}"
        )


def show_ids(sample_ids: np.ndarray) -> str:
    """The first few samples, in words."""
    shown = ", ".join(str(sample_id) for sample_id in sample_ids[:_SHOWN].tolist())
    return f"first {shown}, …" if len(sample_ids) > _SHOWN else f"namely {shown}"


class SeenKeys:
    """Collects the keys of a run, rank after rank.

    Args:
        roster: Samples of the roster, in any order; may be empty.
    """

    def __init__(self, roster: np.ndarray) -> None:
        self._roster = np.unique(roster)
        self._ids = self._roster
        self._seen: dict[int, np.ndarray] = {}
        self._n_repeats: dict[int, int] = {}
        self._repeats: list[np.ndarray] = []

    def add(
        self, epoch: np.ndarray, sample_id: np.ndarray, occurrence: np.ndarray
    ) -> Iterator[str]:
        """Take rows of the rank at hand.

        Args:
            epoch: Epoch of each row.
            sample_id: Sample of each row.
            occurrence: Occurrence of each row.

        Yields:
            A sentence for each epoch in which the rank has a key twice.
        """
        if not len(epoch):
            return
        order = np.argsort(epoch, kind="stable")
        epoch, sample_id, occurrence = epoch[order], sample_id[order], occurrence[order]
        slots = self._slots(sample_id)
        epochs, starts = np.unique(epoch, return_index=True)
        for e, first, end in zip(epochs.tolist(), starts, [*starts[1:], len(epoch)], strict=True):
            repeats = occurrence[first:end] > 0
            at = slots[first:end][~repeats]
            seen = self._seen.setdefault(e, np.zeros(len(self._ids), dtype=np.uint8))
            at = np.sort(at)
            twice = np.r_[at[1:][at[1:] == at[:-1]], at[seen[at] & _SEEN_BY_RANK != 0]]
            if len(twice):
                yield _twice(e, self._ids[np.unique(twice)])
            seen[at] = _SEEN | _SEEN_BY_RANK
            self._n_repeats[e] = self._n_repeats.get(e, 0) + int(repeats.sum())
            keys = [column[first:end][repeats] for column in (epoch, sample_id, occurrence)]
            self._repeats.append(np.stack(keys, axis=1).astype(np.int64))

    def end_rank(self) -> Iterator[str]:
        """Forget which rank saw what, before the keys of the next one.

        Yields:
            A sentence for each epoch in which the rank has a repeat's key twice.
        """
        keys = np.concatenate([np.empty((0, 3), np.int64), *self._repeats])
        unique, counts = np.unique(keys, axis=0, return_counts=True)
        twice = unique[counts > 1]
        for e in np.unique(twice[:, 0]).tolist():
            yield _twice(e, twice[twice[:, 0] == e, 1])
        self._repeats.clear()
        for seen in self._seen.values():
            seen &= _SEEN

    def _slots(self, sample_id: np.ndarray) -> np.ndarray:
        """Places of the samples among all ids, new ones admitted."""
        slots = np.searchsorted(self._ids, sample_id)
        known = slots < len(self._ids)
        known[known] = self._ids[slots[known]] == sample_id[known]
        if known.all():
            return slots
        ids = np.union1d(self._ids, sample_id[~known])
        at = np.searchsorted(ids, self._ids)
        for e, seen in self._seen.items():
            self._seen[e] = np.zeros(len(ids), dtype=np.uint8)
            self._seen[e][at] = seen
        self._ids = ids
        return np.searchsorted(ids, sample_id)

    @property
    def epochs(self) -> list[int]:
        """Epochs with rows, ascending."""
        return sorted(self._seen)

    def never_seen(self) -> np.ndarray:
        """Samples of the roster without a row in any epoch."""
        ever = np.zeros(len(self._ids), dtype=bool)
        for seen in self._seen.values():
            ever |= seen != 0
        return np.intersect1d(self._roster, self._ids[~ever])

    def gaps(self) -> Iterator[Gap]:
        """Epochs that lack a sample which belongs to the run.

        A sample belongs if it is in the roster and was ever seen; without a roster, if it was seen
        in more than half of the epochs. An epoch without any row counts, if most have some.

        Yields:
            The gaps, by epoch.
        """
        n_epochs = np.zeros(len(self._ids), dtype=np.int64)
        for seen in self._seen.values():
            n_epochs += seen != 0
        expected = 2 * n_epochs > len(self._seen)
        if len(self._roster):
            expected = np.isin(self._ids, self._roster) & (n_epochs > 0)
        nothing = np.zeros(len(self._ids), dtype=np.uint8)
        for e in self._epochs_expected():
            missing = expected & (self._seen.get(e, nothing) == 0)
            if missing.any():
                repeats = self._n_repeats.get(e, 0)
                yield Gap(e, self._ids[missing], int(expected.sum()), repeats)

    def _epochs_expected(self) -> list[int]:
        """Epochs with rows; those between them as well, unless only some are recorded by plan."""
        epochs = self.epochs
        between = range(epochs[0], epochs[-1] + 1) if epochs else range(0)
        return list(between) if len(between) < 2 * len(epochs) else epochs


def _twice(epoch: int, sample_ids: np.ndarray) -> str:
    return (
        f"epoch {epoch}: {len(sample_ids):,} samples have the same (epoch, sample_id, occurrence) "
        f"twice, {show_ids(sample_ids)}."
    )
