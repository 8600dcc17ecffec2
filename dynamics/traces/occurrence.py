"""How often a sample has been seen before in its epoch, and which row counts.

Of the rows of one (epoch, sample), the one of the lowest step is occurrence 0, and at one step that
of the lowest rank. A writer sees the rows of its own rank only, so what it stores is right where
one process trained. `DistributedSampler` pads with samples that another rank sees too, so where
several trained, readers number again.
"""

import itertools
import re

import numpy as np
import pyarrow as pa

from dynamics.traces.parts import Part
from dynamics.traces.rows import replace_column
from dynamics.traces.schema import Status

_RANK_FOLDER = re.compile(r"rank-(\d+)")


class OccurrenceCounter:
    """Counts, within an epoch, how often each sample has been seen before.

    Holds 16 bytes for each sample of the epoch. One call costs O(n log n) for its n rows, and one
    pass over the samples seen in the epoch before.
    """

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._ids = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)

    def count(self, epoch: int, sample_ids: np.ndarray) -> np.ndarray:
        """Number of earlier rows of the same sample in this epoch, for each row in order."""
        order = np.argsort(sample_ids, kind="stable")
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = self.count_sorted(epoch, np.asarray(sample_ids)[order])
        return rank

    def count_sorted(self, epoch: int, sample_ids: np.ndarray) -> np.ndarray:
        """The same for samples in ascending order."""
        if epoch != self._epoch:
            self._epoch, self._ids, self._counts = epoch, self._ids[:0], self._counts[:0]
        starts = _group_starts(sample_ids)
        unique, counts = sample_ids[starts], np.diff(starts, append=len(sample_ids))
        at = np.searchsorted(self._ids, unique)
        known = at < len(self._ids)
        known[known] = self._ids[at[known]] == unique[known]
        before = np.zeros(len(unique), dtype=np.int64)
        before[known] = self._counts[at[known]]
        more = self._counts.copy()  # not in place: `copy.copy` of a counter must stay as it is
        more[at[known]] += counts[known]
        self._ids = np.insert(self._ids, at[~known], unique[~known])
        self._counts = np.insert(more, at[~known], counts[~known])
        return np.arange(len(sample_ids)) + np.repeat(before - starts, counts)


def number_within_rank(samples: pa.Table, counter: OccurrenceCounter) -> pa.Table:
    """Number the rows that one rank is about to write.

    Args:
        samples: Rows of `samples`, in the order in which they were taken.
        counter: What that rank has seen before in the epoch that goes on.

    Returns:
        The rows ordered by epoch, sample and step, with `occurrence`, and `REPEAT` in `status`.
    """
    samples, epochs, ids = _by_epoch_and_sample(samples, "step")
    bounds = [*_group_starts(epochs), len(epochs)]
    found = [counter.count_sorted(int(epochs[a]), ids[a:b]) for a, b in itertools.pairwise(bounds)]
    return _set_occurrence(samples, np.concatenate([*found, np.empty(0, np.int64)]))


def rank_of(part: Part) -> int:
    """Rank that recorded a part, by the name of its folder; -1 for a bucket of a compacted run."""
    match = _RANK_FOLDER.fullmatch(part.path.parent.name)
    return -1 if match is None else int(match[1])


def number_across_ranks(rows: pa.Table) -> pa.Table:
    """Number the rows of all ranks, in the order of step, rank and what the rank itself counted.

    Args:
        rows: All rows that count of some epochs, with `rank`.

    Returns:
        The rows without `rank`, ordered by epoch, sample and occurrence.
    """
    rows, epochs, ids = _by_epoch_and_sample(rows, "step", "rank", "occurrence")
    rows = rows.drop_columns("rank")
    starts = _group_starts(epochs, ids)
    sizes = np.diff(starts, append=rows.num_rows)
    return _set_occurrence(rows, np.arange(rows.num_rows) - np.repeat(starts, sizes))


def _by_epoch_and_sample(rows: pa.Table, *then: str) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Rows ordered by epoch, sample and further keys, and their epochs and samples."""
    rows = rows.combine_chunks()
    epochs, ids = rows["epoch"].to_numpy(), rows["sample_id"].to_numpy()
    if not rows.num_rows:
        return rows, epochs, ids
    order = _argsort_pairs(epochs, ids)
    same = (np.diff(epochs[order]) == 0) & (np.diff(ids[order]) == 0)
    # Few, as a rule, so that the further keys cost little.
    repeated = np.append(same, False) | np.insert(same, 0, False)
    again = order[repeated]
    keys = [rows[key].to_numpy()[again] for key in reversed(then)]
    order[repeated] = again[np.lexsort([*keys, ids[again], epochs[again]])]
    return rows.take(pa.array(order)), epochs[order], ids[order]


def _argsort_pairs(major: np.ndarray, minor: np.ndarray) -> np.ndarray:
    """Stable order by two whole numbers: one sort of single numbers, much faster, if they fit."""
    n = len(major)
    low_major, low_minor = int(major.min()), int(minor.min())
    span_major, span_minor = int(major.max()) - low_major + 1, int(minor.max()) - low_minor + 1
    if span_major * span_minor * n >= 2**63:
        return np.lexsort((minor, major))
    packed = (major.astype(np.int64) - low_major) * span_minor + (minor - low_minor)
    packed *= n
    packed += np.arange(n)
    packed.sort()
    return packed % n


def _set_occurrence(samples: pa.Table, occurrence: np.ndarray) -> pa.Table:
    if "status" in samples.column_names:
        status = samples["status"].to_numpy() & ~int(Status.REPEAT)
        status |= np.where(occurrence > 0, np.int32(Status.REPEAT), np.int32(0))
        samples = replace_column(samples, "status", pa.array(status))
    return replace_column(samples, "occurrence", pa.array(occurrence.astype(np.int32)))


def _group_starts(*sorted_keys: np.ndarray) -> np.ndarray:
    """Where a new combination of keys begins."""
    new = np.zeros(len(sorted_keys[0]), dtype=bool)
    new[:1] = True
    for key in sorted_keys:
        new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)
