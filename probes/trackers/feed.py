"""From a recorder to its trackers: scalars as they come, quantiles after each epoch.

Each tracker has a thread and a queue. The loop never waits for one: when a queue is full, what
comes next is dropped; when a tracker raises, it is left behind. Both are told once.
"""

import functools
import queue
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from probes.probe import Event, Finding, Scalar
from probes.trackers import Tracker

COLUMNS = ("loss", "margin", "grad_norm", "output_grad_norm")
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
MEDIAN, BAND = "q50", ("q05", "q95")
_QUEUE = 1024  # calls that may wait for a slow tracker
_MAX_ROWS = 2**20  # rows of an epoch after which quantiles are given before it ends
PATIENCE_S = 10.0
"""How long the end of a run waits for a tracker."""

Call = Callable[[], None]


class Feed:
    """Hands what is recorded to trackers.

    Args:
        trackers: The trackers; each is used and closed by a thread of its own.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._lines = [_Line(tracker) for tracker in trackers]
        self._rows: list[Mapping[str, np.ndarray]] = []
        self._n_rows, self._epoch = 0, -1

    def scalars(self, findings: Sequence[Finding], step: int) -> None:
        """Show scalars, each with its standard error beside it, but none of a single sample.

        Args:
            findings: What was found.
            step: Optimiser updates so far.
        """
        values: dict[str, float] = {}
        for found in findings:
            if isinstance(found, Scalar) and not found.block.startswith("sample "):
                name = f"{found.name}/{found.block}"
                values[name] = float(found.value)
                if found.stderr is not None:
                    values[f"{name}_stderr"] = float(found.stderr)
        self._log(values, step)

    def rows(self, columns: Mapping[str, np.ndarray]) -> None:
        """Gather rows of samples; those of a finished epoch become quantiles.

        Called by the writer's thread, in order, and once more by `close` when it has ended.

        Args:
            columns: Columns of `samples`, of one shape.
        """
        try:
            self._gather(columns)
        except Exception as error:  # nor may a mistake of ours here keep a row from being written
            for line in self._lines:
                line.failure = line.failure or f"{type(error).__name__}: {error}"

    def _gather(self, columns: Mapping[str, np.ndarray]) -> None:
        if not self._lines:
            return
        for epoch in np.unique(columns["epoch"]):
            if epoch != self._epoch:
                self._show_quantiles()
                self._epoch = int(epoch)
            here = columns["epoch"] == epoch
            kept = [name for name in ("step", *COLUMNS) if name in columns]
            self._rows.append({name: np.ma.asarray(columns[name])[here] for name in kept})
            self._n_rows += int(here.sum())
        if self._n_rows >= _MAX_ROWS:
            self._show_quantiles()

    def take_failures(self) -> list[Event]:
        """Trackers that were left behind since the last call, as events; also warns of them."""
        failed = [line for line in self._lines if line.failure is not None]
        self._lines = [line for line in self._lines if line.failure is None]
        for line in failed:
            warnings.warn(
                f"{line.name} is not written to any more: {line.failure}. Training and its trace "
                "go on.",
                stacklevel=4,
            )
        return [Event("tracker_failed", line.name, line.failure) for line in failed]

    def close(self) -> list[Event]:
        """Show the last epoch, close every tracker, and wait for them, but not for long.

        Returns:
            Trackers that were left behind.
        """
        self._show_quantiles()
        for line in self._lines:
            line.end()
        for line in self._lines:
            line.wait(PATIENCE_S)
        return self.take_failures()

    def _show_quantiles(self) -> None:
        rows, self._rows, self._n_rows = self._rows, [], 0
        if not rows:
            return
        values: dict[str, float] = {}
        for column in COLUMNS:
            parts = [np.ma.filled(r[column].astype(float), np.nan) for r in rows if column in r]
            all_values = np.concatenate(parts) if parts else np.empty(0)
            finite = all_values[np.isfinite(all_values)]
            if len(finite):
                found = np.quantile(finite, list(QUANTILES.values()))
                names = (f"{column}/{name}" for name in QUANTILES)
                values |= dict(zip(names, found.tolist(), strict=True))
        self._log(values, max(int(r["step"].max()) for r in rows) + 1)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        for line in self._lines if finite else ():
            line.put(functools.partial(line.tracker.log, finite, step))


class _Line:
    """One tracker, its queue and its thread."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.name = type(tracker).__name__
        self.failure: str | None = None
        self._queue: queue.Queue[Call | None] = queue.Queue(_QUEUE)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, call: Call | None) -> None:
        try:
            self._queue.put_nowait(call)
        except queue.Full:
            self.failure = self.failure or f"{_QUEUE} calls were waiting, so it hangs or is slow"

    def end(self) -> None:
        self.put(self.tracker.close)
        self.put(None)

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive() and self.failure is None:
            self.failure = f"it had not ended {seconds:g} s after the run"

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            if self.failure is None:
                try:
                    call()
                except BaseException as error:  # SystemExit too: a dashboard ends no training
                    self.failure = f"{type(error).__name__}: {error}"
