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

from dynamics.traces.buffer import KEPT_BYTES, REFUSED, RowBuffer
from dynamics.traces.errors import StaleWriterError, TraceError
from dynamics.traces.layout import make_folder, write_json_once
from dynamics.traces.resume import latest_attempt
from dynamics.traces.rows import Columns
from dynamics.traces.schema import TABLES

OnError = Literal["raise", "disable", "block"]
"""What happens when the trace cannot be written; `TraceWriter` says what each one means."""

_KEPT = (
    f"The rows stay in memory (at most {KEPT_BYTES >> 20} MiB of them) until the writer closes; "
    "the next flush that succeeds writes them."
)
_PATIENCE_S = 1.0  # between looks at whether the thread is held up
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 15.0  # pauses double in between


class TraceWriter:
    """Appends rows to one run from one rank.

    While nothing can be written, rows are kept in memory up to 256 MiB. Rows of `samples` and
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
        self._buffer = RowBuffer(folder, attempt=attempt, rank=rank)
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
        return self._buffer.n_rows

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

        def take() -> None:
            self._buffer.take(rows(), drop=self._must_drop())
            self._set_due()

        self._put(lambda: self._try(take, REFUSED))

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

        def take() -> None:
            self._buffer.take_vector(name, values, step=step, epoch=epoch, drop=self._must_drop())
            self._set_due()

        self._put(lambda: self._try(take, REFUSED))

    def seen(self, epoch: int, sample_ids: np.ndarray) -> None:
        """Tell the writer which samples an earlier attempt saw in the epoch that goes on now.

        Args:
            epoch: The epoch that goes on.
            sample_ids: Sample of each row that was recorded in it, repeats included.

        Raises:
            TraceError: If the writer is closed.
        """

        def count() -> None:
            self._buffer.seen(epoch, sample_ids)

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
            try:
                self._record_end()
            except OSError as error:
                self.failure = error
                if self._on_error != "disable":
                    self._error = error, "All rows are written; the run's end is not on record."
            self._raise_error()

    def _record_end(self) -> None:
        folder = self.folder / "end"
        make_folder(folder)
        tables = {
            name: {"parts": self._buffer.parts[name], "rows": self._buffer.rows[name]}
            for name in TABLES
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
        full = self._buffer.n_samples >= self._max_rows and self.failure is None
        return full or (self._due_at is not None and time.monotonic() >= self._due_at)

    def _must_drop(self) -> bool:
        return self.failure is not None and self._buffer.is_full

    def _set_due(self) -> None:
        if self._due_at is None:
            self._due_at = time.monotonic() + self._max_seconds

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
        self._buffer.write()
