"""Reading the row groups of `samples` that a question needs, and no others.

The first time a run is read, each part is hashed whole and its footer kept. From then on a read
opens the file by that kept footer, takes only the row groups whose least and largest epoch and
sample allow a match, and checks the checksum of every page of them. So the footer that prunes is
one that was proved, and a byte that rots between two reads is found where it would be averaged in.
Hashing takes about 0.7 s a gigabyte and core, once for each `Run`.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.traces.limits import decoding
from dynamics.traces.parts import Part, PartGoneError, Verified, is_block, open_part, part_gone
from dynamics.traces.schema import BLOCK_PREFIX, SAMPLES

ROWS_PER_READ = 2**20
THREADS = 2
"""Threads that decode ahead of the one that asks."""
_EVERYTHING = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Footer:
    """What a part's footer says, after the bytes of the part have been proved.

    Attributes:
        part: The part.
        metadata: The footer itself.
        stamp: Size, time of change and inode of the file that was proved.
        filled: Known columns that hold any value, in stored order.
        n_rows: Rows of each row group, shape (G,).
        epochs: Least and largest epoch of each row group, shape (G, 2).
        sample_ids: The same of `sample_id`.
    """

    part: Part
    metadata: pq.FileMetaData
    stamp: tuple[int, int, int]
    filled: tuple[str, ...]
    n_rows: np.ndarray
    epochs: np.ndarray
    sample_ids: np.ndarray


@dataclass(frozen=True, slots=True)
class Reading:
    """Row groups of one part that are read together."""

    footer: Footer
    groups: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Rows in the row groups."""
        return int(self.footer.n_rows[list(self.groups)].sum())


def read_footers(
    parts: Sequence[Part],
    known: dict[Part, Footer],
    verified: Verified,
    *,
    threads: int = THREADS,
) -> list[Footer]:
    """Footers of parts, each hashed before it is parsed.

    Args:
        parts: The parts.
        known: Footers read before; those of files that have not changed since are taken from it,
            and new ones are added.
        verified: Files whose hash has been compared; these join them.
        threads: Parts that are hashed at a time.

    Returns:
        One footer for each part, in order.

    Raises:
        CorruptTraceError: If a part's bytes are not those written.
    """
    stale = [p for p in parts if p not in known or known[p].stamp != _stamp(p)]
    found = in_threads(lambda part: _read_footer(part, verified), stale, threads)
    known.update(zip(stale, found, strict=True))
    return [known[part] for part in parts]


def block_columns(footers: Iterable[Footer]) -> list[str]:
    """Columns `grad_norm/<block>` that any of the parts has, in the order of their appearance."""
    names = (name for footer in footers for name in footer.metadata.schema.names)
    return list(dict.fromkeys(name for name in names if name.startswith(BLOCK_PREFIX)))


def _stamp(part: Part) -> tuple[int, int, int]:
    try:
        state = part.path.lstat()
    except FileNotFoundError:
        raise PartGoneError(part_gone(part)) from None
    return state.st_size, state.st_mtime_ns, state.st_ino


def _read_footer(part: Part, verified: Verified) -> Footer:
    stamp = _stamp(part)
    metadata = open_part(part, verified=verified).metadata
    names = metadata.schema.names
    groups = range(metadata.num_row_groups)

    def is_filled(column: int, name: str) -> bool:
        if name not in SAMPLES.column_names and not is_block(name, SAMPLES):
            return False  # of a later minor version
        chunks = (metadata.row_group(g).column(column) for g in groups)
        return any(_count_values(chunk) > 0 for chunk in chunks)

    return Footer(
        part=part,
        metadata=metadata,
        stamp=stamp,
        filled=tuple(name for i, name in enumerate(names) if is_filled(i, name)),
        n_rows=np.array([metadata.row_group(g).num_rows for g in groups], dtype=np.int64),
        epochs=_bounds(metadata, names.index("epoch")),
        sample_ids=_bounds(metadata, names.index("sample_id")),
    )


def _count_values(chunk: pq.ColumnChunkMetaData) -> int:
    statistics = chunk.statistics
    known = statistics is not None and statistics.has_null_count
    return chunk.num_values - statistics.null_count if known else chunk.num_values


def _bounds(metadata: pq.FileMetaData, column: int) -> np.ndarray:
    bounds = []
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(column).statistics
        known = statistics is not None and statistics.has_min_max
        bounds.append((statistics.min, statistics.max) if known else _EVERYTHING)
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)


def _is_among(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """As `np.isin`, which for one value takes ten times as long."""
    return values == wanted[0] if len(wanted) == 1 else np.isin(values, wanted)


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows that a question is about.

    Attributes:
        epochs: Epochs wanted, ascending; None for all.
        sample_ids: Samples wanted, ascending; None for all.
        between: First and last epoch wanted; None for all.
        sample_range: First and last sample wanted; None for all.
        is_first: Whether only rows of occurrence 0 are wanted.
    """

    epochs: np.ndarray | None = None
    sample_ids: np.ndarray | None = None
    between: tuple[float, float] | None = None
    sample_range: tuple[int, int] | None = None
    is_first: bool = False

    def may_hold(self, footer: Footer) -> np.ndarray:
        """Whether each row group of a part may hold such rows, by its bounds; shape (G,)."""
        wanted = np.ones(len(footer.n_rows), dtype=bool)
        for bounds, values in ((footer.epochs, self.epochs), (footer.sample_ids, self.sample_ids)):
            if values is not None:  # whether any value lies within the bounds
                first = np.searchsorted(values, bounds[:, 0], side="left")
                wanted &= first < np.searchsorted(values, bounds[:, 1], side="right")
        for bounds, limits in (
            (footer.epochs, self.between),
            (footer.sample_ids, self.sample_range),
        ):
            if limits is not None:
                wanted &= (bounds[:, 0] <= limits[1]) & (bounds[:, 1] >= limits[0])
        return wanted

    def holds(self, rows: pa.Table) -> np.ndarray:
        """Whether each row is such a row, shape (N,)."""
        wanted = np.ones(rows.num_rows, dtype=bool)
        if self.epochs is not None:
            wanted &= _is_among(rows["epoch"].to_numpy(), self.epochs)
        if self.sample_ids is not None:
            wanted &= _is_among(rows["sample_id"].to_numpy(), self.sample_ids)
        for name, limits in (("epoch", self.between), ("sample_id", self.sample_range)):
            if limits is not None:
                values = rows[name].to_numpy()
                wanted &= (values >= limits[0]) & (values <= limits[1])
        if self.is_first:
            wanted &= rows["occurrence"].to_numpy() == 0
        return wanted


def plan(footers: Iterable[Footer], selection: Selection) -> list[Reading]:
    """Row groups that may hold the rows wanted, in order, about a million rows at once.

    Args:
        footers: Footers of the parts.
        selection: The rows wanted.

    Returns:
        What to read.
    """
    readings = []
    for footer in footers:
        groups = np.flatnonzero(selection.may_hold(footer))
        share = (np.cumsum(footer.n_rows[groups]) - 1) // ROWS_PER_READ
        pieces = np.split(groups, np.flatnonzero(np.diff(share)) + 1)
        readings += [Reading(footer, tuple(piece.tolist())) for piece in pieces if len(piece)]
    return readings


def read(
    reading: Reading, columns: Sequence[str] | None, sample_ids: np.ndarray | None = None
) -> pa.Table:
    """Read row groups, verifying the checksum of each page.

    Args:
        reading: Which.
        columns: Columns wanted; all by default.
        sample_ids: If given, row groups that hold none of these samples are left out: where parts
            overlap, half of those whose bounds would allow one.

    Returns:
        Those of the columns that hold any value in the part.

    Raises:
        CorruptTraceError: If a page is not what was written.
    """
    footer, groups = reading.footer, list(reading.groups)
    filled = [c for c in footer.filled if columns is None or c in columns]
    _stamp(footer.part)  # raises if a compaction has removed it
    with (
        decoding(footer.part.path, "sound part any more"),
        pq.ParquetFile(
            footer.part.path,
            metadata=footer.metadata,
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
        ) as file,
    ):
        if sample_ids is not None:
            ids = file.read_row_groups(groups, columns=["sample_id"], use_threads=False)
            found = _is_among(ids["sample_id"].to_numpy(), sample_ids)
            starts = np.cumsum(footer.n_rows[groups]) - footer.n_rows[groups]
            groups = list(itertools.compress(groups, np.logical_or.reduceat(found, starts)))
        rows = file.read_row_groups(groups, columns=filled, use_threads=False)
        rows = rows.select(filled)  # a name before a dot selects more than itself
        rows.validate(full=True)
        return rows


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int = THREADS
) -> Iterator[Result]:
    """Results of a function in the order of its arguments, worked out a little ahead, in threads.

    Args:
        function: What to do.
        items: Its arguments.
        threads: How many; with 1, the one that asks does the work itself.

    Yields:
        Its results.
    """
    if threads == 1:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="trace-reader") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
