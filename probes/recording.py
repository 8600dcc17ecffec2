"""What one process writes of a run: its attempt, begun with the first row, and its writer."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dynamics.traces import TraceError, TraceWriter, begin_attempt, open_run
from dynamics.traces.resume import find_attempt
from dynamics.traces.writer import OnError
from probes.batch import ObservedBatch
from probes.findings import finding_rows
from probes.launch import Launch
from probes.probe import Finding, Vector
from probes.roster import LabelLedger
from probes.staging import Staging, copy_to_host

_PAUSE_S = 0.5  # between tries to begin, with on_error="block"


class Recording:
    """The trace of one process while it is recorded.

    Args:
        path: Folder of the run.
        launch: The processes that record it.
        roster: The training samples, if known; rank 0 writes them.
        on_error: As for `Recorder`.
        seen: Told the rows of samples as they are written.

    Attributes:
        launch: The processes that record it.
    """

    def __init__(
        self,
        path: Path,
        launch: Launch,
        roster: pd.DataFrame | None,
        on_error: OnError,
        seen: Callable[[Mapping[str, np.ndarray]], None] = lambda columns: None,
    ) -> None:
        self._path = path
        self.launch = launch
        self._roster = roster
        self._on_error = on_error
        self._seen = seen
        self._begin_failure: OSError | None = None
        self._start: tuple[int, int] | None = None
        self._held: list[tuple[str, Mapping[str, Any]]] = []
        self._writer: TraceWriter | None = None
        self._staging: Staging | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the attempt stands, so that it is settled where training restarts."""
        return self._start is not None

    @property
    def failure(self) -> OSError | None:
        """Why nothing can be written at present; None while all is well."""
        return self._begin_failure if self._writer is None else self._writer.failure

    def begin(self, step: int, epoch: int) -> None:
        """Begin the attempt, unless it has begun; readers leave out what earlier ones hold past it.

        Args:
            step: Optimiser updates done when training (re)starts.
            epoch: Epoch that it (re)starts with.

        Raises:
            TraceError: If the attempt cannot be written and `on_error` is `raise`.
        """
        if self._start is None:
            self._start = step, epoch
            self._begin()

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        """Write rows; before the attempt has begun, they wait for it.

        Args:
            table: Name of the table.
            columns: Columns by name.
        """
        if self._writer is None:
            self._held.append((table, columns))
        else:
            self._writer.append(table, columns)

    def append_findings(self, findings: Sequence[Finding], step: int, epoch: int) -> None:
        """Write what probes, the recorder or the user found.

        Args:
            findings: Scalars, events and vectors.
            step: Optimiser updates so far.
            epoch: Epoch in progress or just ended.
        """
        for table, columns in finding_rows(findings, step=step, epoch=epoch):
            self.append(table, columns)
        for found in findings:
            if isinstance(found, Vector) and self._writer is not None:
                arrive = copy_to_host(found.values)
                self._writer.append_vector(found.name, arrive(), step=step, epoch=epoch)

    def add(self, batch: ObservedBatch) -> None:
        """Write the rows of a finished batch.

        Args:
            batch: The batch; its columns are final.
        """
        batch.columns["sample_id"] = batch.sample_id
        if self._roster is None and batch.labels is not None:
            batch.columns["label"] = batch.labels
        batch.logits = None
        if self._staging is not None:
            self._staging.add(batch)

    def drain(self) -> None:
        """Hand everything over to the writer's thread."""
        if self._staging is not None:
            self._staging.drain()

    def flush(self) -> None:
        """Return when all is durable, or, with `disable`, has been tried."""
        self._begin_again()
        self.drain()
        if self._writer is not None:
            self._writer.flush()

    def close(self, *, clean: bool) -> None:
        """Write what is left and end; with `disable`, warn of rows that could not be written.

        Args:
            clean: Whether training came to its end.
        """
        self._begin_again()
        if clean and self._start is None and self.launch.world_size > 1:
            # A rank without a row of its own, beside others: its end belongs to the clean end.
            attempt = find_attempt(self._path, self.launch.name)
            if attempt is not None:
                self.begin(attempt.from_step, attempt.from_epoch)
        n_lost = len(self._held) if self._start is not None else 0
        if self._writer is not None:
            try:
                self.drain()
            except BaseException:
                clean = False
                raise
            finally:
                self._writer.close(clean=clean)
            n_lost = self._writer.n_waiting
        if self.failure is not None and self._on_error == "disable":
            text = f"At the end, {n_lost} rows for {self._path} could not be written and are lost"
            warnings.warn(f"{text}: {type(self.failure).__name__}: {self.failure}.", stacklevel=4)

    def _begin_again(self) -> None:
        if self._start is not None and self._writer is None:
            self._begin()

    def _begin(self) -> None:
        has_warned = False
        while self._writer is None:
            try:
                self._open(*(self._start or (0, -1)))
            except OSError as error:
                text = f"Could not begin to write to {self._path}: {type(error).__name__}: {error}"
                self._begin_failure = error
                if self._on_error == "raise":
                    raise TraceError(f"{text}.") from error
                if self._on_error == "disable":
                    return
                if not has_warned:
                    warnings.warn(f"{text}. Training waits until it succeeds.", stacklevel=4)
                has_warned = True
                time.sleep(_PAUSE_S)

    def _open(self, from_step: int, from_epoch: int) -> None:
        rank, world_size = self.launch.rank, self.launch.world_size
        attempt = begin_attempt(
            self._path,
            from_step=from_step,
            from_epoch=from_epoch,
            world_size=world_size,
            launch=self.launch.name,
        )
        run = open_run(self._path)
        epoch, earlier = max(from_epoch, 0), None
        if attempt > 0 and all(a.world_size == 1 for a in run.attempts):
            # Where several processes trained, readers number repeats across them.
            earlier = run.samples(columns=[], epochs=[epoch], repeats=True)["sample_id"].to_numpy()
        with_roster = self._roster is not None and rank == 0 and not run.parts("roster")
        writer = TraceWriter(self._path, attempt=attempt, rank=rank, on_error=self._on_error)
        if earlier is not None:
            writer.seen(epoch, earlier)
        if with_roster and self._roster is not None:
            roster = {str(name): c.to_numpy() for name, c in self._roster.items()}
            writer.append("roster", roster)
        for table, columns in self._held:
            writer.append(table, columns)
        self._held.clear()
        ledger = LabelLedger() if self._roster is None else None
        self._staging = Staging(writer, ledger, self._seen)
        self._writer = writer


def warn_disabled(failure: OSError, path: Path, step: int) -> None:
    """Warn that recording has stopped; from `Recorder._is_off`, at the loop's own line.

    Args:
        failure: Why.
        path: Folder of the run.
        step: Optimiser updates so far.
    """
    warnings.warn(
        f"Recording into {path} stopped at step {step}, and training goes on: "
        f"{type(failure).__name__}: {failure}. What is in memory is written if that becomes "
        "possible before the end; later batches are not recorded.",
        stacklevel=4,
    )
