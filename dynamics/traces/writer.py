"""Writes the rows of one process to its run, in a background thread, in immutable parts.

`append` only queues. The thread turns arrays into Arrow tables, replaces non-finite values by
missing ones with a status bit, numbers repeated samples, and cuts a part when enough rows or
seconds have gathered, or at `flush`. A part that cannot be written stays in memory and is tried
again; rows that do not fit their table are refused as a whole. Either way the error is raised at
the caller's next call.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.traces.errors import SchemaError, StaleWriterError, TraceError
from dynamics.traces.layout import PartName, content_hash, write_durably, write_json_once
from dynamics.traces.resume import latest_attempt
from dynamics.traces.rows import (
    Columns,
    drop_non_finite,
    encode_part,
    flag_non_finite,
    replace_column,
    to_arrow,
)
from dynamics.traces.schema import TABLES, Status, Table
from dynamics.traces.vectors import encode_vector, write_vector

_KEPT = "The rows stay in memory until the writer closes; the next flush that succeeds writes them."
_REFUSED = "The rows given were refused and are not recorded."


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
        self._vectors: list[tuple[str, int, int, bytes]] = []
        self._occurrences = OccurrenceCounter()
        self._last_cut = time.monotonic()
        self._failure: tuple[BaseException, str] | None = None
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=256)
        self._thread = threading.Thread(target=self._work, name="trace-writer", daemon=True)
        self._thread.start()

    def append(self, table: str, columns: Columns) -> None:
        """Queue rows for a table.

        Args:
            table: Name of the table.
            columns: Arrays of one length by column name; columns left out are missing in every row.

        Raises:
            TraceError: If the writer is closed, or earlier rows were refused or not written.
        """
        self.append_later(lambda: {table: columns})

    def append_later(self, rows: Callable[[], Mapping[str, Columns]]) -> None:
        """Queue rows that are still on their way, from a device for example.

        Args:
            rows: Called in the writer's thread; returns columns by table.

        Raises:
            TraceError: If the writer is closed, or earlier rows were refused or not written.
        """
        self._raise_failure()
        self._put(lambda: self._try(lambda: self._take(rows()), _REFUSED))

    def append_vector(
        self, name: str, values: Mapping[str, np.ndarray], *, step: int, epoch: int
    ) -> None:
        """Queue a vector: one value for each entry of each parameter.

        Args:
            name: What it is, such as fisher_diagonal.
            values: One array for each parameter; not to be changed from now on.
            step: Optimiser updates so far.
            epoch: Epoch in progress or just ended.

        Raises:
            TraceError: If the writer is closed, or earlier rows were refused or not written.
        """
        self._raise_failure()

        def encode() -> None:
            self._vectors.append((name, step, epoch, encode_vector(values)))

        self._put(lambda: self._try(encode, _REFUSED))

    def seen(self, epoch: int, sample_ids: np.ndarray) -> None:
        """Tell the writer which samples an earlier attempt saw in the epoch that goes on now.

        Args:
            epoch: The epoch that goes on.
            sample_ids: Sample of each row that was recorded in it, repeats included.

        Raises:
            TraceError: If the writer is closed.
        """

        def count() -> None:
            self._occurrences.count(epoch, sample_ids)

        self._put(lambda: self._try(count, "Repeats in this epoch may go unnoticed."))

    def flush(self) -> None:
        """Return when every row appended so far is durable.

        Raises:
            TraceError: If the writer is closed, if rows could not be written (they stay in memory
                for the next try), or if earlier rows were refused.
        """
        done = threading.Event()

        def cut_and_signal() -> None:
            self._try(self._cut, _KEPT)
            done.set()

        self._put(cut_and_signal)
        done.wait()
        self._raise_failure()

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

    def _put(self, job: Callable[[], None]) -> None:
        if not self._thread.is_alive():
            raise TraceError(
                f"The writer of {self.folder} is closed, so it takes no more rows. Open the run "
                "again with resume=True to record more."
            )
        self._queue.put(job)

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        (error, consequence), self._failure = self._failure, None
        if isinstance(error, TraceError):
            raise error
        raise TraceError(
            f"Could not write to {self.folder}: {type(error).__name__}: {error}. {consequence}"
        ) from error

    def _try(self, action: Callable[[], None], consequence: str) -> None:
        try:
            action()
        except BaseException as error:  # raised in the caller's thread, at its next call
            # The first is kept: it may tell of rows refused, and a failed cut is tried again.
            if self._failure is None:
                self._failure = error, consequence

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()
            if self._is_due():
                self._try(self._cut, _KEPT)

    def _is_due(self) -> bool:
        rows = sum(table.num_rows for table in self._buffers["samples"])
        return rows >= self._max_rows or time.monotonic() - self._last_cut >= self._max_seconds

    def _take(self, rows: Mapping[str, Columns]) -> None:
        try:  # all tables before anything is counted or kept, so that refused rows leave no trace
            tables = {name: to_arrow(TABLES[name], columns) for name, columns in rows.items()}
        except SchemaError as error:
            raise SchemaError(f"{error} {_REFUSED}") from None
        for name, table in tables.items():
            if name == "samples":
                table, events = flag_non_finite(table)
                self._buffers["events"] += events
                table = self._number_repeats(table)
            if table.num_rows:
                self._buffers[name].append(drop_non_finite(table))

    def _number_repeats(self, samples: pa.Table) -> pa.Table:
        epochs, ids = samples["epoch"].to_numpy(), samples["sample_id"].to_numpy()
        occurrence = np.zeros(len(ids), dtype=np.int32)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            occurrence[rows] = self._occurrences.count(int(epoch), ids[rows])
        status = samples["status"].to_numpy().copy()
        status[occurrence > 0] |= Status.REPEAT
        samples = replace_column(samples, "occurrence", pa.array(occurrence))
        return replace_column(samples, "status", pa.array(status))

    def _cut(self) -> None:
        if latest_attempt(self.folder) > self.attempt:
            raise StaleWriterError(
                f"{self.folder} has been resumed by another process since this one (attempt "
                f"{self.attempt}) began, so this one stops writing. Stop the older job."
            )
        for name, table in TABLES.items():
            if self._buffers[name]:
                self._cut_table(table)
        while self._vectors:
            name, step, epoch, data = self._vectors[0]
            write_vector(
                self.folder,
                name,
                data,
                attempt=self.attempt,
                rank=self.rank,
                step=step,
                epoch=epoch,
            )
            del self._vectors[0]
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


def _step_range(rows: pa.Table) -> tuple[int, int]:
    if "step" not in rows.column_names:
        return 0, 0
    bounds = pc.min_max(rows["step"]).as_py()
    return bounds["min"], bounds["max"]
