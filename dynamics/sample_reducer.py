"""Running sums per sample: what `summarise_samples` keeps while rows stream past.

Rows of one sample must arrive in the order of their epochs. All arithmetic is on whole arrays:
rows are brought into segments, one for each sample, and each segment is reduced at once.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dynamics.traces.resume import Attempt
from dynamics.traces.row_groups import THREADS, Footer
from dynamics.traces.scan import iter_first

MEANS = ("margin", "el2n", "grad_norm")
SPREADS = ("loss", "p_true")
BYTES_PER_SAMPLE = 320
"""State, result and room to grow, with every column recorded; measured."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Rows of which those of a sample follow one another.

    Attributes:
        slots: Slot of each row's sample, shape (M,).
        starts: Where each segment starts, shape (S,); None if each is one row.
    """

    slots: np.ndarray
    starts: np.ndarray | None

    @property
    def heads(self) -> np.ndarray:
        """Slot of each segment."""
        return self.slots if self.starts is None else self.slots[self.starts]

    def only(self, rows: np.ndarray) -> "Segments":
        """Segments of some of the rows, given as a mask; samples without any are gone."""
        slots = self.slots[rows]
        if self.starts is None:
            return Segments(slots, None)
        return Segments(slots, _starts(slots))

    def counts(self) -> np.ndarray | int:
        """Rows of each segment."""
        if self.starts is None:
            return 1
        return np.diff(self.starts, append=len(self.slots))

    def total(self, x: np.ndarray) -> np.ndarray:
        """Sum over each segment."""
        return x if self.starts is None or not len(x) else np.add.reduceat(x, self.starts)

    def first(self, x: np.ndarray) -> np.ndarray:
        """First value of each segment."""
        return x if self.starts is None else x[self.starts]

    def last(self, x: np.ndarray) -> np.ndarray:
        """Last value of each segment."""
        return x if self.starts is None else x[np.append(self.starts[1:], len(x)) - 1]


def _starts(values: np.ndarray) -> np.ndarray:
    """Where runs of one value start."""
    changes = np.ones(len(values), dtype=bool)
    changes[1:] = values[1:] != values[:-1]
    return np.flatnonzero(changes)


def _initial(columns: Collection[str], n: int = 0) -> dict[str, np.ndarray]:
    """State of n samples that no row has been seen of."""
    state: dict[str, np.ndarray] = {"n_observed": np.zeros(n, dtype=np.int32)}
    for name in columns:
        if name == "correct":
            state |= {"n_correct": np.zeros(n, np.int32), "n_forgotten": np.zeros(n, np.int32)}
            state |= {"was_right": np.zeros(n, np.bool_), "first_learned": np.full(n, np.nan)}
            continue
        state |= {f"n_missing_{name}": np.zeros(n, np.int32), f"sum_{name}": np.zeros(n)}
        if name in SPREADS:
            state |= {f"first_{name}": np.full(n, np.nan), f"sum_sq_{name}": np.zeros(n)}
    if "loss" in columns:
        state["last_loss"] = np.full(n, np.nan, np.float32)
    return state


class SampleReducer:
    """Reduces rows to one row per sample, in arrays that grow with the samples seen.

    Args:
        columns: Columns of `MEANS` and `SPREADS`, or `correct`, that hold a value in some row.
        memory_limit: Bytes that it may take.
    """

    def __init__(self, columns: Collection[str], *, memory_limit: int) -> None:
        self._columns = columns
        self._index = SampleIndex()
        self._memory_limit = memory_limit
        self._state = _initial(columns)

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Take rows, in any order; none of an epoch before one that its sample has had.

        Args:
            rows: `sample_id`, `epoch` and the columns that hold any value, missing ones NaN.

        Raises:
            MemoryError: If there are more samples than the limit has room for.
        """
        for at, is_once in _turns(rows["sample_id"], rows["epoch"]):
            ids = rows["sample_id"][at]
            starts = None if is_once else _starts(ids)
            slots = self._index.find(ids if starts is None else ids[starts])
            self._make_room()
            if starts is not None:
                slots = np.repeat(slots, np.diff(starts, append=len(ids)))
            columns = {name: values[at] for name, values in rows.items() if name != "sample_id"}
            self._fold(Segments(slots, starts), columns)

    def _make_room(self) -> None:
        needed = len(self._index) * BYTES_PER_SAMPLE
        if needed > self._memory_limit:
            raise MemoryError(
                f"A summary of {len(self._index):,} samples and more takes over {needed:,} bytes, "
                f"but memory_limit is {self._memory_limit:,}. Raise the limit, or take "
                'engine="duckdb", which writes to disk what does not fit.'
            )
        room = len(self._state["n_observed"])
        if len(self._index) <= room:
            return
        fresh = _initial(self._columns, max(len(self._index), room * 3 // 2) - room)
        self._state = {k: np.concatenate([v, fresh[k]]) for k, v in self._state.items()}

    def _fold(self, segments: Segments, columns: Mapping[str, np.ndarray]) -> None:
        self._state["n_observed"][segments.heads] += segments.counts()
        for name in self._columns:
            if name == "correct":
                if name in columns:
                    known = ~np.isnan(columns[name])
                    right = columns[name][known] == 1
                    self._learn(segments.only(known), right, columns["epoch"][known])
            elif name not in columns:
                self._miss(segments, name)
            else:
                self._sum(segments, name, columns[name])

    def _miss(self, segments: Segments, name: str) -> None:
        n_missing = self._state[f"n_missing_{name}"]
        n_missing[segments.heads] += segments.counts()

    def _sum(self, segments: Segments, name: str, x: np.ndarray) -> None:
        missing = np.isnan(x)
        if missing.any():
            self._miss(segments.only(missing), name)
            segments, x = segments.only(~missing), x[~missing]
        if name in SPREADS:
            self._spread(segments, x, name)
        else:
            total = segments.total(x.astype(np.float64))
            self._state[f"sum_{name}"][segments.heads] += total

    def _spread(self, segments: Segments, x: np.ndarray, name: str) -> None:
        """Sums of d and d², d the distance to the sample's first value.

        That value is one of those summed, so Σd² is at most 2n times the sum of squares about the
        mean, and subtracting the mean's share loses no more digits than n has.
        """
        heads = segments.heads
        first = self._state[f"first_{name}"]
        origin = first[heads]
        new = np.isnan(origin)
        if new.any():
            origin[new] = segments.first(x)[new]
            first[heads] = origin
        d = x - (origin if segments.starts is None else first[segments.slots])
        self._state[f"sum_{name}"][heads] += segments.total(d)
        self._state[f"sum_sq_{name}"][heads] += segments.total(d * d)
        if name == "loss":
            self._state["last_loss"][heads] = segments.last(x)

    def _learn(self, segments: Segments, right: np.ndarray, epochs: np.ndarray) -> None:
        heads = segments.heads
        was_right = self._state["was_right"]
        before = np.empty_like(right)
        before[1:] = right[:-1]
        before[slice(None) if segments.starts is None else segments.starts] = was_right[heads]
        forgotten = (before & ~right).astype(np.int32)
        self._state["n_forgotten"][heads] += segments.total(forgotten)
        self._state["n_correct"][heads] += segments.total(right.astype(np.int32))
        was_right[heads] = segments.last(right)
        first_learned = self._state["first_learned"]
        learned = segments.only(right)
        new = np.isnan(first_learned[learned.heads])
        first_learned[learned.heads[new]] = learned.first(epochs[right])[new]

    def result(self) -> pd.DataFrame:
        """The summary so far, as `summarise_samples` describes it."""
        order, ids = self._index.ordered()
        missing = np.full(len(ids), np.nan)

        def final(name: str, default: np.ndarray) -> np.ndarray:
            return self._state[name][order] if name in self._state else default

        zeros = np.zeros(len(ids), dtype=np.int64)
        n_observed = final("n_observed", zeros).astype(np.int64)
        mean, variance = {}, {}
        for name in (*MEANS, *SPREADS):
            n_missing = final(f"n_missing_{name}", zeros)
            n = (n_observed - n_missing).astype(np.float64)
            n[n == 0] = np.nan
            mean[name] = final(f"sum_{name}", missing) / n
            if name in SPREADS:
                variance[name] = final(f"sum_sq_{name}", missing) / n - mean[name] ** 2
                mean[name] += final(f"first_{name}", missing)
        columns = {
            "n_observed": n_observed,
            "mean_loss": mean["loss"],
            "var_loss": np.maximum(variance["loss"], 0),
            "first_loss": final("first_loss", missing),
            "last_loss": final("last_loss", missing).astype(np.float64),
            "first_learned": final("first_learned", missing),
            "n_forgotten": final("n_forgotten", zeros).astype(np.int64),
            "n_correct": final("n_correct", zeros).astype(np.int64),
            "aum": mean["margin"],
            "mean_p_true": mean["p_true"],
            "std_p_true": np.sqrt(np.maximum(variance["p_true"], 0)),
            "mean_el2n": mean["el2n"],
            "mean_grad_norm": mean["grad_norm"],
        }
        return pd.DataFrame(columns, index=pd.Index(ids, name="sample_id"), copy=False)


def reduce_rows(
    footers: Sequence[Footer],
    attempts: Sequence[Attempt],
    *,
    memory_limit: int,
    until_epoch: int | None = None,
    sample_range: tuple[int, int] | None = None,
    threads: int = THREADS,
) -> pd.DataFrame:
    """The summary of the rows of parts, of some samples or all.

    Args:
        footers: Footers of the parts, in the order of recording.
        attempts: Attempts of the run.
        memory_limit: Bytes for the arrays.
        until_epoch: Last epoch to look at; the last recorded one by default.
        sample_range: First and last sample; all by default.
        threads: Threads that decode.

    Returns:
        The summary, index `sample_id`.

    Raises:
        MemoryError: If there are more samples than the limit has room for.
    """
    filled = {name for footer in footers for name in footer.filled}
    columns = [name for name in (*MEANS, *SPREADS, "correct") if name in filled]
    reducer = SampleReducer(columns, memory_limit=memory_limit)
    for rows in iter_first(
        footers,
        attempts,
        columns,
        until_epoch=until_epoch,
        sample_range=sample_range,
        threads=threads,
    ):
        reducer.add(rows)
    return reducer.result()


def _turns(ids: np.ndarray, epochs: np.ndarray) -> Iterator[tuple[slice | np.ndarray, bool]]:
    """Cut rows up so that those of a sample follow one another, in the order of their epochs.

    Rows sorted by epoch and sample, as training writes them, fall into stretches of ascending
    samples. Any others are sorted by sample and epoch first.

    Yields:
        Rows to fold, and whether each sample is among them only once.
    """
    falls = np.flatnonzero(ids[1:] <= ids[:-1]) + 1
    if len(falls) <= 1 + len(ids) // 1000 and (epochs[1:] >= epochs[:-1]).all():
        edges = [0, *falls.tolist(), len(ids)]
        yield from ((slice(a, b), True) for a, b in itertools.pairwise(edges))
        return
    is_sorted = (ids[1:] > ids[:-1]) | ((ids[1:] == ids[:-1]) & (epochs[1:] >= epochs[:-1]))
    yield (slice(None) if is_sorted.all() else np.lexsort((epochs, ids))), False


class SampleIndex:
    """Slot of each sample in arrays that grow, in the order in which samples came.

    Ids that lie close together are looked up in a table; others by bisection.
    """

    def __init__(self) -> None:
        self._ids = np.empty(0, dtype=np.int64)  # ascending
        self._slots = np.empty(0, dtype=np.int32)
        self._table = np.empty(0, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._ids)

    def ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots in order of the ids, and the ids."""
        return self._slots, self._ids

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Slots of samples, new ones given the next.

        Args:
            ids: Samples, ascending and each once.

        Returns:
            One slot for each.
        """
        slots = self._look_up(ids)
        new = slots < 0
        if new.any():
            slots[new] = np.arange(len(self), len(self) + np.count_nonzero(new), dtype=np.int32)
            self._admit(ids[new], slots[new])
        return slots

    def _look_up(self, ids: np.ndarray) -> np.ndarray:
        slots = np.full(len(ids), -1, dtype=np.int32)
        if len(self._table):
            first = self._ids[0]
            inside = slice(
                np.searchsorted(ids, first), np.searchsorted(ids, self._ids[-1], side="right")
            )
            slots[inside] = self._table[ids[inside] - first]
        elif len(self):
            at = np.minimum(np.searchsorted(self._ids, ids), len(self) - 1)
            slots = np.where(self._ids[at] == ids, self._slots[at], slots)
        return slots

    def _admit(self, ids: np.ndarray, slots: np.ndarray) -> None:
        merged = np.concatenate([self._ids, ids])
        order = np.argsort(merged, kind="stable")
        self._ids, self._slots = merged[order], np.concatenate([self._slots, slots])[order]
        span = int(self._ids[-1]) - int(self._ids[0]) + 1
        self._table = np.empty(0, dtype=np.int32)
        if span <= 4 * len(self._ids) + 1000:
            self._table = np.full(span, -1, dtype=np.int32)
            self._table[self._ids - self._ids[0]] = self._slots
