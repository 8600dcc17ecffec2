"""Writes the rows of one process to its run, in a background thread, in immutable parts.

`append` only queues. The thread turns arrays into Arrow tables, replaces non-finite values by
missing ones with a status bit, numbers repeated samples, and cuts a part when enough rows or
seconds have gathered, or at `flush`. A part that cannot be written stays in memory and is tried
again; the error is raised at the caller's next call.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dynamics.traces.errors import SchemaError, StaleWriterError, TraceError
from dynamics.traces.layout import PartName, content_hash, write_durably, write_json_once
from dynamics.traces.resume import latest_attempt
from dynamics.traces.schema import (
    BLOCK_PREFIX,
    SCHEMA_VERSION,
    TABLES,
    Status,
    Table,
)

Columns = Mapping[str, Any]
"""Column name to array, all of one length."""

_NON_FINITE_BIT = {"loss": Status.NON_FINITE_LOSS, "grad_norm": Status.NON_FINITE_GRAD_NORM}
_GRAD_MISSING = int(Status.ZERO_WEIGHT | Status.NO_BACKWARD)


class TraceWriter:
    """Appends rows to one run from one rank.

    Args:
        folder: Folder of a run that `create_run` made.
        attempt: Number that `begin_attempt` returned.
        rank: Rank of this process.
        max_rows: A part is cut at this many rows.
        max_seconds: A part is cut this long after the one before it; what a crash can lose.
    """

    def __init__(
        self,
        folder: Path,
        *,
        attempt: int,
        rank: int = 0,
        max_rows: int = 1_000_000,
        max_seconds: float = 15.0,
    ) -> None:
        self.folder = folder
        self.attempt = attempt
        self.rank = rank
        self._max_rows = max_rows
        self._max_seconds = max_seconds
        self._buffers: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._sequences = dict.fromkeys(TABLES, 0)
        self._rows = dict.fromkeys(TABLES, 0)
        self._occurrences = OccurrenceCounter()
        self._last_cut = time.monotonic()
        self._error: BaseException | None = None
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=256)
        self._thread = threading.Thread(target=self._work, name="trace-writer", daemon=True)
        self._thread.start()

    def append(self, table: str, columns: Columns) -> None:
        """Queue rows for a table.

        Args:
            table: Name of the table.
            columns: Arrays of one length by column name; columns left out are missing in every row.
        """
        self.append_later(lambda: {table: columns})

    def append_later(self, rows: Callable[[], Mapping[str, Columns]]) -> None:
        """Queue rows that are still on their way, from a device for example.

        Args:
            rows: Called in the writer's thread; returns columns by table.
        """
        self._raise_pending()
        self._queue.put(lambda: self._take(rows()))

    def seen(self, epoch: int, sample_ids: np.ndarray) -> None:
        """Tell the writer which samples an earlier attempt saw in the epoch that goes on now."""
        self._queue.put(lambda: self._count_seen(epoch, sample_ids))

    def flush(self) -> None:
        """Return when every row appended so far is durable.

        Raises:
            TraceError: If rows could not be written; they stay queued for the next try.
        """
        done = threading.Event()

        def cut_and_signal() -> None:
            try:
                self._cut()
            finally:
                done.set()

        self._queue.put(cut_and_signal)
        done.wait()
        self._raise_pending()

    def close(self, *, clean: bool = True) -> None:
        """Flush, stop the thread, and, after a clean end, leave the record that proves it.

        Args:
            clean: Whether training came to its end; False after an exception.
        """
        if not self._thread.is_alive():
            return
        try:
            self.flush()
        finally:
            self._queue.put(None)
            self._thread.join()
        if clean:
            self._record_end()

    def _record_end(self) -> None:
        folder = self.folder / "end"
        folder.mkdir(exist_ok=True)
        tables = {
            name: {"parts": self._sequences[name], "rows": self._rows[name]} for name in TABLES
        }
        write_json_once(
            folder / f"attempt-{self.attempt:04d}-rank-{self.rank:05d}.json", {"tables": tables}
        )

    def _raise_pending(self) -> None:
        error, self._error = self._error, None
        if error is None:
            return
        if isinstance(error, TraceError):
            raise error
        raise TraceError(
            f"Could not write to {self.folder}: {type(error).__name__}: {error}. "
            "The rows are still in memory and are written at the next flush that succeeds."
        ) from error

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                job()
                if self._is_due():
                    self._cut()
            except BaseException as error:  # raised in the caller's thread, at its next call
                self._error = error

    def _is_due(self) -> bool:
        rows = sum(table.num_rows for table in self._buffers["samples"])
        return rows >= self._max_rows or time.monotonic() - self._last_cut >= self._max_seconds

    def _count_seen(self, epoch: int, sample_ids: np.ndarray) -> None:
        self._occurrences.count(epoch, sample_ids)

    def _take(self, rows: Mapping[str, Columns]) -> None:
        for name, columns in rows.items():
            arrays = self._prepare_samples(dict(columns)) if name == "samples" else columns
            self._buffers[name].append(to_arrow(TABLES[name], arrays))

    def _prepare_samples(self, arrays: dict[str, Any]) -> dict[str, Any]:
        n = len(arrays["sample_id"])
        status = np.array(arrays.get("status", np.zeros(n)), dtype=np.int32)
        occurrence = np.zeros(n, dtype=np.int32)
        for epoch in np.unique(arrays["epoch"]):
            rows = arrays["epoch"] == epoch
            occurrence[rows] = self._occurrences.count(int(epoch), arrays["sample_id"][rows])
        status[occurrence > 0] |= Status.REPEAT
        for column, values in arrays.items():
            if np.asarray(values).dtype.kind != "f":
                continue
            missing = ~np.isfinite(values)
            is_norm = column == "grad_norm" or column.startswith(BLOCK_PREFIX)
            odd = missing & ((status & _GRAD_MISSING) == 0) if is_norm else missing.copy()
            if column == "weight":
                odd &= (status & Status.NO_BACKWARD) == 0
            if odd.any():
                key = "grad_norm" if is_norm else column
                status[odd] |= _NON_FINITE_BIT.get(key, Status.NON_FINITE_OUTPUT)
                self._report_non_finite(column, arrays, odd)
            arrays[column] = pa.array(values, mask=missing)
        return {**arrays, "status": status, "occurrence": occurrence}

    def _report_non_finite(self, column: str, arrays: Columns, odd: np.ndarray) -> None:
        first = int(np.flatnonzero(odd)[0])
        event = {
            "step": arrays["step"][first : first + 1],
            "epoch": arrays["epoch"][first : first + 1],
            "name": ["non_finite"],
            "subject": [column],
            "detail": [f"{int(odd.sum())} values, first at sample {arrays['sample_id'][first]}"],
        }
        self._buffers["events"].append(to_arrow(TABLES["events"], event))

    def _cut(self) -> None:
        if latest_attempt(self.folder) > self.attempt:
            raise StaleWriterError(
                f"{self.folder} has been resumed by another process since this one (attempt "
                f"{self.attempt}) began, so this one stops writing. Stop the older job."
            )
        for name, table in TABLES.items():
            if self._buffers[name]:
                self._cut_table(table)
        self._last_cut = time.monotonic()

    def _cut_table(self, table: Table) -> None:
        rows = pa.concat_tables(self._buffers[table.name], promote_options="default")
        rows = rows.sort_by([(column, "ascending") for column in table.sorted_by])
        data = encode_part(rows, table)
        first, last = _step_range(rows)
        sequence = self._sequences[table.name]
        name = PartName(self.attempt, sequence, first, last, content_hash(data))
        folder = self.folder / table.name / f"rank-{self.rank:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder, str(name), data)
        self._sequences[table.name] += 1
        self._rows[table.name] += rows.num_rows
        self._buffers[table.name].clear()


class OccurrenceCounter:
    """Counts, within an epoch, how often each sample has been seen before."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._ids = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)

    def count(self, epoch: int, sample_ids: np.ndarray) -> np.ndarray:
        """Number of earlier rows of the same sample in this epoch, for each row in order."""
        if epoch != self._epoch:
            self._epoch, self._ids, self._counts = epoch, self._ids[:0], self._counts[:0]
        unique, inverse, counts = np.unique(sample_ids, return_inverse=True, return_counts=True)
        before = np.zeros(len(unique), dtype=np.int64)
        at = np.searchsorted(self._ids, unique)
        known = at < len(self._ids)
        known[known] = self._ids[at[known]] == unique[known]
        before[known] = self._counts[at[known]]
        order = np.argsort(inverse, kind="stable")
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        rank = np.empty(len(sample_ids), dtype=np.int64)
        rank[order] = np.arange(len(sample_ids)) - starts
        self._counts[at[known]] += counts[known]
        merged = np.concatenate([self._ids, unique[~known]])
        sorting = np.argsort(merged, kind="stable")
        self._ids = merged[sorting]
        self._counts = np.concatenate([self._counts, counts[~known]])[sorting]
        return rank + before[inverse]


def to_arrow(table: Table, arrays: Columns) -> pa.Table:
    """Arrays as an Arrow table of exactly the stored types; columns left out are missing.

    Args:
        table: The table that the rows belong to.
        arrays: Arrays of one length by column name.

    Returns:
        The rows, columns in stored order.

    Raises:
        SchemaError: If a column is unknown, has another length, does not convert, or is
            missing where the table does not allow it.
    """
    schema = table.schema(arrays)
    n = len(next(iter(arrays.values())))
    columns = []
    for field in schema:
        values = arrays.get(field.name)
        try:
            column = pa.nulls(n, field.type) if values is None else pa.array(values)
            column = column if column.type == field.type else column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise SchemaError(
                f"`{table.name}.{field.name}` is stored as {field.type}, and the values given do "
                f"not convert: {error}."
            ) from None
        if len(column) != n or (column.null_count and not field.nullable):
            raise SchemaError(
                f"`{table.name}.{field.name}` needs {n} values"
                f"{'' if field.nullable else ', none missing'}, but got {len(column)} with "
                f"{column.null_count} missing."
            )
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def encode_part(rows: pa.Table, table: Table) -> bytes:
    """Rows as the bytes of a Parquet file: zstd, page checksums, encodings by type."""
    few_values = {"epoch", "status", "weight", "predicted", "correct", "occurrence"}
    encodings = {}
    dictionary = []
    for field in rows.schema:
        if field.name in few_values or pa.types.is_string(field.type):
            dictionary.append(field.name)
        elif pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        else:
            encodings[field.name] = "DELTA_BINARY_PACKED"
    metadata = {"schema_version": SCHEMA_VERSION, "table": table.name, "written": str(time.time())}
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        compression_level=3,
        row_group_size=131_072,
        use_dictionary=dictionary,
        column_encoding=encodings,
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def _step_range(rows: pa.Table) -> tuple[int, int]:
    if "step" not in rows.column_names:
        return 0, 0
    bounds = pc.min_max(rows["step"]).as_py()
    return bounds["min"], bounds["max"]
