"""Writes the rows of one process to its run, in a background thread, in immutable parts.

`append` only queues. The thread turns arrays into Arrow tables, replaces non-finite values by
missing ones with a status bit, and cuts a part when enough rows or seconds have gathered, or at
`flush`; then repeated samples are numbered. A part that cannot be written stays in memory, encoded,
and is tried again. Rows that do not fit their table are refused as a whole, and that is raised at
the caller's next call.
"""

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from dynamics.traces.errors import SchemaError, StaleWriterError, TraceError
from dynamics.traces.layout import make_folder, write_json_once
from dynamics.traces.occurrence import OccurrenceCounter, number_within_rank
from dynamics.traces.outbox import EncodedFile, Outbox, encode_rows
from dynamics.traces.resume import latest_attempt
from dynamics.traces.rows import Columns, drop_non_finite, flag_non_finite, to_arrow
from dynamics.traces.schema import TABLES
from dynamics.traces.vectors import VECTORS, encode_vector, vector_file_name

OnError = Literal["raise", "disable", "block"]
"""What happens when the trace cannot be written; `TraceWriter` says what each one means."""

KEPT_BYTES = 2**28
"""What a writer keeps in memory while nothing can be written: 256 MiB."""

_KEPT = (
    f"The rows stay in memory (at most {KEPT_BYTES >> 20} MiB of them) until the writer closes; "
    "the next flush that succeeds writes them."
)
_REFUSED = "The rows given were refused and are not recorded."
_PATIENCE_S = 1.0  # between looks at whether the thread is held up
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 15.0  # pauses double in between


class TraceWriter:
    """Appends rows to one run from one rank.

    While nothing can be written, rows are kept in memory up to `KEPT_BYTES`. Rows of `samples` and
    vectors that come when that is full are dropped, oldest kept, and counted in an event
    `rows_dropped` as soon as one can be written.

    Args:
        folder: Folder of a run that `create_run` made.
        attempt: Number that `begin_attempt` returned.
        rank: Rank of this process.
        on_error: What to do when the disk is full, a right or a folder is gone, and the like.
            `raise` raises it at the caller's next call. `disable` raises nothing: `failure` tells,
            and writing is tried again at each flush, every `max_seconds`, and at the close.
            `block` tries again until it succeeds, warns once, and holds the caller up meanwhile.
            Refused rows, and a run that another process has taken over, raise in any case.
        max_rows: A part is cut at this many rows.
        max_seconds: A part is cut this long after its first row came; what a crash can lose.
    """

    def __init__(
        self,
        folder: Path,
        *,
        attempt: int,
        rank: int = 0,
        on_error: OnError = "raise",
        max_rows: int = 1_000_000,
        max_seconds: float = 15.0,
    ) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is one of {get_args(OnError)}, not {on_error!r}.")
        self.folder = folder
        self.attempt = attempt
        self.rank = rank
        self.failure: OSError | None = None
        """Why nothing can be written at present; None while all is well."""
        self._on_error = on_error
        self._max_rows = max_rows
        self._max_seconds = max_seconds
        self._buffers: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._outbox = Outbox()
        self._sequences = dict.fromkeys(TABLES, 0)
        self._rows = dict.fromkeys(TABLES, 0)
        self._n_buffered = 0  # rows of samples
        self._dropped: list[tuple[int, int, int]] = []  # step, epoch, rows
        self._occurrences = OccurrenceCounter()
        self._due_at: float | None = None
        self._error: tuple[BaseException, str] | None = None
        self._give_up = threading.Event()
        self._has_warned = False
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=64)
        self._thread = threading.Thread(target=self._work, name="trace-writer", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Rows that are in memory and not yet durable, those still queued left aside."""
        buffered = sum(t.num_rows for tables in self._buffers.values() for t in tables)
        return buffered + self._outbox.n_rows

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
        self._raise_error()
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
        self._raise_error()

        def encode() -> None:
            if self._is_full():
                self._dropped.append((step, epoch, 0))
                return
            data = encode_vector(values)
            file = vector_file_name(name, data, attempt=self.attempt, step=step, epoch=epoch)
            folder = self.folder / VECTORS / f"rank-{self.rank:05d}"
            self._outbox.add(EncodedFile(VECTORS, folder, file, data, 0))
            self._set_due()

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
        """Return when every row appended so far is durable, or with `disable` has been tried.

        Raises:
            TraceError: If the writer is closed, if rows could not be written (they stay in memory
                for the next try), or if earlier rows were refused.
        """
        done = threading.Event()

        def save_and_signal() -> None:
            self._save()
            done.set()

        self._put(save_and_signal)
        while not done.wait(_PATIENCE_S):
            self._warn_if_blocked()
        self._raise_error()

    def close(self, *, clean: bool = True) -> None:
        """Flush, stop the thread, and, after a clean end, leave the record that proves it.

        With `disable`, rows that cannot be written now are lost; `n_waiting` tells how many.

        Args:
            clean: Whether training came to its end; False after an exception. Then `block` tries
                once more and no longer.

        Raises:
            TraceError: If rows or the record could not be written, or rows were refused.
        """
        if not self._thread.is_alive():
            return
        if not clean:
            self._give_up.set()
        try:
            self.flush()
        finally:
            self._give_up.set()
            self._queue.put(None)
            self._thread.join()
        if clean and self.failure is None:
            self._try(self._record_end, "All rows are written; the run's end is not on record.")
            self._raise_error()

    def _record_end(self) -> None:
        folder = self.folder / "end"
        make_folder(folder)
        tables = {
            name: {"parts": self._sequences[name], "rows": self._rows[name]} for name in TABLES
        }
        write_json_once(
            folder / f"attempt-{self.attempt:04d}-rank-{self.rank:05d}.json", {"tables": tables}
        )

    # Between the caller's thread and the writer's

    def _put(self, job: Callable[[], None]) -> None:
        while True:
            self._warn_if_blocked()
            if not self._thread.is_alive():
                raise TraceError(
                    f"The writer of {self.folder} is closed, so it takes no more rows. Open the "
                    "run again with resume=True to record more."
                )
            try:
                self._queue.put(job, timeout=_PATIENCE_S)
                return
            except queue.Full:
                continue

    def _warn_if_blocked(self) -> None:
        if self._on_error != "block" or self.failure is None or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"Could not write to {self.folder}: {type(self.failure).__name__}: {self.failure}. "
            "Trying again until it succeeds (on_error='block'); training waits once the queue "
            "is full.",
            stacklevel=4,
        )

    def _raise_error(self) -> None:
        if self._error is None:
            return
        (error, consequence), self._error = self._error, None
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
            if self._error is None:
                self._error = error, consequence

    # In the writer's thread

    def _work(self) -> None:
        while True:
            wait = None if self._due_at is None else max(0.0, self._due_at - time.monotonic())
            try:
                job = self._queue.get(timeout=wait)
            except queue.Empty:
                self._save()
                continue
            if job is None:
                return
            job()
            if self._is_due():
                self._save()

    def _is_due(self) -> bool:
        full = self._n_buffered >= self._max_rows and self.failure is None
        return full or (self._due_at is not None and time.monotonic() >= self._due_at)

    def _set_due(self) -> None:
        if self._due_at is None:
            self._due_at = time.monotonic() + self._max_seconds

    def _take(self, rows: Mapping[str, Columns]) -> None:
        try:  # all tables before anything is counted or kept, so that refused rows leave no trace
            tables = {name: to_arrow(TABLES[name], columns) for name, columns in rows.items()}
        except SchemaError as error:
            raise SchemaError(f"{error} {_REFUSED}") from None
        for name, table in tables.items():
            if not table.num_rows:
                continue
            if name == "samples":
                table, events = flag_non_finite(table)
                self._buffers["events"] += events
                if self._is_full():
                    first = table.slice(0, 1).to_pylist()[0]
                    self._dropped.append((first["step"], first["epoch"], table.num_rows))
                    continue
                self._n_buffered += table.num_rows
            self._buffers[name].append(drop_non_finite(table))
            self._set_due()

    def _is_full(self) -> bool:
        if self.failure is None:
            return False
        buffered = sum(table.nbytes for table in self._buffers["samples"])
        return buffered + self._outbox.nbytes > KEPT_BYTES

    def _save(self) -> None:
        """Write all there is, as often as the policy says."""
        pause = _FIRST_RETRY_S
        while True:
            try:
                self._cut()
            except OSError as error:
                self.failure = error
                self._due_at = time.monotonic() + self._max_seconds
                if self._on_error == "disable":
                    return
                if self._on_error == "raise" or self._give_up.wait(pause):
                    self._error = self._error or (error, _KEPT)
                    return
                pause = min(2 * pause, _LAST_RETRY_S)
            except BaseException as error:
                self._due_at = None
                self._error = self._error or (error, _KEPT)
                return
            else:
                self.failure = self._due_at = None
                return

    def _cut(self) -> None:
        if latest_attempt(self.folder) > self.attempt:
            raise StaleWriterError(
                f"{self.folder} has been resumed by another process since this one (attempt "
                f"{self.attempt}) began, so this one stops writing. Stop the older job."
            )
        self._report_dropped()
        for name in TABLES:
            if self._buffers[name] and not self._outbox.holds(name):
                self._encode(name)
        self._outbox.write()

    def _encode(self, name: str) -> None:
        table = TABLES[name]
        rows = pa.concat_tables(self._buffers[name], promote_options="default")
        if name == "samples":
            rows = number_within_rank(rows, self._occurrences)  # sorts them too
            self._n_buffered = 0
        else:
            rows = rows.sort_by([(column, "ascending") for column in table.sorted_by])
        file = encode_rows(
            rows,
            table,
            self.folder,
            attempt=self.attempt,
            rank=self.rank,
            sequence=self._sequences[name],
        )
        self._buffers[name].clear()
        self._outbox.add(file)
        self._sequences[name] += 1
        self._rows[name] += rows.num_rows

    def _report_dropped(self) -> None:
        if not self._dropped or self._outbox.holds("events"):
            return
        (step, epoch, _), (last, _, _) = self._dropped[0], self._dropped[-1]
        n_rows = sum(n for _, _, n in self._dropped)
        vectors = sum(n == 0 for _, _, n in self._dropped)
        event = {"step": [step], "epoch": [epoch], "name": ["rows_dropped"], "subject": ["samples"]}
        event["detail"] = [
            f"{n_rows} rows and {vectors} vectors of steps {step} to {last}: nothing could be "
            f"written, and {KEPT_BYTES >> 20} MiB waited already"
        ]
        self._buffers["events"].append(to_arrow(TABLES["events"], event))
        self._dropped.clear()
