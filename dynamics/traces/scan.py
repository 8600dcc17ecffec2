"""The rows of `samples` that count: not fenced off, each (epoch, sample, occurrence) once.

`scan` gives them in the order in which they were recorded, `scan_epochs` epoch by epoch. Both hold
a few million rows at most, however the parts are cut and sorted: parts are read by row group, and
where a part holds every epoch, as after compaction, it is read once for every few million rows.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from dynamics.traces.errors import SchemaError
from dynamics.traces.occurrence import number_across_ranks, rank_of
from dynamics.traces.resume import NEVER, Attempt, fences_over, sample_fence
from dynamics.traces.row_groups import (
    THREADS,
    Footer,
    Reading,
    Selection,
    in_threads,
    plan,
    read,
)
from dynamics.traces.schema import BLOCK_PREFIX, SAMPLES, unknown_column

ROWS_IN_MEMORY = 4 * 2**20
_ORDER = ("epoch", "sample_id", "step", "rank", "occurrence")
_TYPES = {column.name: column.type for column in SAMPLES.columns}


def scan(
    footers: Sequence[Footer],
    attempts: Sequence[Attempt],
    columns: Sequence[str] | None,
    selection: Selection,
    *,
    threads: int = THREADS,
) -> Iterator[pa.Table]:
    """Rows that count, about a million at once, in the order in which they were recorded.

    Args:
        footers: Footers of the parts, in that order.
        attempts: Attempts of the run, whose fences are applied.
        columns: Columns wanted beside the keys; all by default. `rank` is one too.
        selection: Rows wanted.
        threads: Threads that decode.

    Yields:
        Tables with those of the columns that hold any value in the part. `occurrence` is as
        recorded: per rank.
    """

    def load(reading: Reading) -> pa.Table:
        part = reading.footer.part
        fence = sample_fence(part.name.attempt, attempts)
        keys = ["epoch", "sample_id", "occurrence", *(["step"] if fence < NEVER else [])]
        wanted = None if columns is None else [*columns, *keys]
        rows = read(reading, wanted, selection.sample_ids)
        counts = selection.holds(rows)
        if fence < NEVER:
            counts &= rows["step"].to_numpy() < fence
        rows = rows if counts.all() else rows.take(np.flatnonzero(counts))
        if columns is not None and "rank" in columns:
            rank = pa.scalar(rank_of(part), pa.int32())
            rows = rows.append_column("rank", pa.repeat(rank, rows.num_rows))
        return rows

    for rows in in_threads(load, plan(footers, selection), threads):
        if rows.num_rows:
            yield rows


def check_columns(columns: Sequence[str]) -> None:
    """Refuse columns that `samples` cannot have.

    Args:
        columns: Names of columns.

    Raises:
        SchemaError: If one is neither a column of the schema nor that of a block.
    """
    for column in columns:
        if column not in _TYPES and not column.startswith(BLOCK_PREFIX):
            raise SchemaError(unknown_column(column, SAMPLES))


def complete(rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """The columns asked for and no others, those that are not there filled with missing values."""
    for name in columns:
        if name not in rows.column_names:
            kind = _TYPES.get(name, pa.float32())
            rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
    return rows.select(columns)


def comes_in_order(footers: Sequence[Footer], attempts: Sequence[Attempt]) -> bool:
    """Whether `scan` gives every sample's rows in the order of their epochs, by the footers.

    It does for a run of one rank, compacted or not. Ranks record the same epochs side by side.

    Args:
        footers: Footers of the parts, in the order of recording.
        attempts: Attempts of the run.

    Returns:
        True if, of two parts with samples in common, the later one starts at no earlier epoch than
        the other ends with.
    """
    if any(attempt.world_size > 1 for attempt in attempts):
        return False
    lasts = [
        min([f.epochs[:, 1].max(), *(e for _, e in fences_over(f.part.name.attempt, attempts))])
        for f in footers
    ]
    last, first = np.array(lasts), np.array([f.epochs[:, 0].min() for f in footers])
    low = np.array([f.sample_ids[:, 0].min() for f in footers])
    high = np.array([f.sample_ids[:, 1].max() for f in footers])
    return not any(
        ((low[:k] <= high[k]) & (high[:k] >= low[k]) & (last[:k] > first[k])).any()
        for k in range(1, len(footers))
    )


def scan_epochs(
    footers: Sequence[Footer],
    attempts: Sequence[Attempt],
    columns: Sequence[str],
    selection: Selection | None = None,
    *,
    threads: int = THREADS,
) -> Iterator[tuple[int, pa.Table]]:
    """Rows that count, one epoch after the other.

    Args:
        footers: Footers of the parts.
        attempts: Attempts of the run.
        columns: Columns wanted.
        selection: Rows wanted; all by default.
        threads: Threads that decode.

    Yields:
        Epoch and its rows: exactly the columns wanted, occurrences numbered over all ranks.
    """
    is_parallel = any(attempt.world_size > 1 for attempt in attempts)
    wanted = [*dict.fromkeys([*columns, *(_ORDER if is_parallel else ())])]
    selection = selection or Selection()
    first, last = selection.between or (-np.inf, np.inf)
    for low, high in epoch_ranges(footers):
        within = replace(selection, between=(max(low, first), min(high, last)))
        # A rank does not know what the others have seen, so an epoch is numbered as a whole.
        recorded = replace(within, is_first=within.is_first and not is_parallel)
        pieces: dict[int, list[pa.Table]] = {}
        for rows in scan(footers, attempts, wanted, recorded, threads=threads):
            for epoch, piece in _split(rows):
                pieces.setdefault(epoch, []).append(piece)
        for epoch in sorted(pieces):
            rows = pa.concat_tables(pieces.pop(epoch), promote_options="default")
            if is_parallel:
                rows = number_across_ranks(rows)
                rows = rows.take(np.flatnonzero(within.holds(rows)))
            yield epoch, complete(rows, columns)


def iter_first(
    footers: Sequence[Footer],
    attempts: Sequence[Attempt],
    columns: Sequence[str],
    *,
    until_epoch: int | None = None,
    sample_range: tuple[int, int] | None = None,
    epoch_by_epoch: bool = False,
    threads: int = THREADS,
) -> Iterator[dict[str, np.ndarray]]:
    """First presentations, one of each (epoch, sample), each sample's in the order of its epochs.

    Args:
        footers: Footers of the parts.
        attempts: Attempts of the run.
        columns: Columns wanted beside `epoch` and `sample_id`.
        until_epoch: Last epoch wanted; all by default.
        sample_range: First and last sample wanted; all by default.
        epoch_by_epoch: Whether one epoch whole must follow the other.
        threads: Threads that decode.

    Yields:
        Arrays by column, missing values NaN; a column without any value may be left out.
    """
    between = None if until_epoch is None else (-np.inf, until_epoch)
    selection = Selection(between=between, sample_range=sample_range, is_first=True)
    if epoch_by_epoch or not comes_in_order(footers, attempts):
        wanted = ["epoch", "sample_id", *columns]
        epochs = scan_epochs(footers, attempts, wanted, selection, threads=threads)
        tables: Iterator[pa.Table] = (rows for _, rows in epochs)
    else:
        tables = scan(footers, attempts, columns, selection, threads=threads)
    for rows in tables:
        present = (c for c in ("epoch", "sample_id", *columns) if c in rows.column_names)
        yield {name: rows[name].to_numpy() for name in present}


def _split(rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    epochs = rows["epoch"].to_numpy()
    if (epochs[1:] < epochs[:-1]).any():
        order = np.argsort(epochs, kind="stable")
        rows, epochs = rows.take(order), epochs[order]
    cuts = [0, *(np.flatnonzero(epochs[1:] != epochs[:-1]) + 1).tolist(), len(epochs)]
    for first, end in itertools.pairwise(cuts):
        yield int(epochs[first]), rows.slice(first, end - first)


def epoch_ranges(footers: Sequence[Footer]) -> Iterator[tuple[int, int]]:
    """Epochs cut into ranges of about `ROWS_IN_MEMORY` rows, or of one epoch if that has more.

    Rows of a row group count as spread evenly over its epochs.

    Args:
        footers: Footers of the parts.

    Yields:
        First and last epoch of each range, ascending.
    """
    if not footers:
        return
    first, last = np.concatenate([footer.epochs for footer in footers]).astype(np.float64).T
    n_rows = np.concatenate([footer.n_rows for footer in footers])

    def count_until(epoch: int) -> float:
        return float(n_rows @ np.clip((epoch - first + 1) / (last - first + 1), 0, 1))

    end = int(last.max())
    start = int(first.min())
    while start <= end:
        most = count_until(start - 1) + ROWS_IN_MEMORY
        low, high = start, end
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count_until(middle) <= most else (low, middle - 1)
        yield start, low
        left = last > low
        start = int(np.maximum(first[left], low + 1).min()) if left.any() else end + 1
