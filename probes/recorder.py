"""The recorder: one added line in a training loop, and a durable trace of what happened in it."""

import contextlib
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
from torch import Tensor, int64, nn

from dynamics.traces import TraceError, TraceWriter, begin_attempt, create_run, open_run
from dynamics.traces.layout import RUN_FILE, run_folder
from dynamics.traces.resume import check_folder
from probes.batch import ObservedBatch
from probes.measurements import Measurements
from probes.probe import Event, Probe, Scalar, Vector, order_probes, scalar_columns
from probes.roster import KnownIds, LabelLedger, check_roster
from probes.run_info import describe_run
from probes.scale import watch_factor
from probes.staging import Staging, copy_to_host
from probes.step_counter import StepCounter
from probes.validation import check_batch

_MAX_UNFINISHED = 64  # batches whose backward pass has not come; evaluation loops never have one


class Recorder:
    """Watches a training loop through probes, and writes what they see as a trace.

    Used as a context manager around the loop. `observe` is the one line to add inside; `epochs`
    counts epochs where there are any. Steps are counted by a hook on `Optimizer.step` of any
    optimiser that holds a parameter of the model. Training is the same with and without the
    recorder: parameters are bit-identical on the CPU.

    Args:
        out: Folder of the run. Its last part is the run's name.
        model: The network. Enter the recorder before `torch.compile` runs the model.
        probes: What to record.
        roster: What is known of each training sample: columns `label` (as trained), and where known
            `true_label` and `group`, with `sample_id` unless it is 0, 1, 2, …. Without it, labels
            are taken from what `observe` sees.
        data: Where the training data came from, for reports: JSON-able.
        config: Configuration of the run, for the record: JSON-able.
        repeats: Allow a sample more than once in a batch (sampling with replacement).
        resume: Take up the run in this folder again. Call `load_state_dict` with the state of the
            checkpoint before the first batch; without it, training is taken to restart from 0.

    Raises:
        TraceError: If the folder already holds rows and `resume` is False, or holds none to resume.
    """

    def __init__(
        self,
        out: str | Path,
        model: nn.Module,
        probes: Sequence[Probe],
        *,
        roster: Mapping[str, Any] | pd.DataFrame | None = None,
        data: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        repeats: bool = False,
        resume: bool = False,
    ) -> None:
        path = Path(out)
        self.path = run_folder(path.parent, path.name)
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # of torch.compile's wrapper
        self.probes = order_probes(probes)
        self._roster = None if roster is None else check_roster(roster)
        self._known = (
            None if self._roster is None else KnownIds(self._roster["sample_id"].to_numpy())
        )
        self._data = dict(data or {})
        self._config = dict(config or {})
        self._repeats = repeats
        self._resume = resume
        check_folder(self.path, resume=resume)
        self.epoch = 0
        self._run_id = uuid.uuid4().hex
        self._loaded_epoch: int | None = None
        self._counts_epochs = False
        self._measurements = Measurements(self.probes, self.model)
        self._unfinished: list[ObservedBatch] = []
        self._cleanup = contextlib.ExitStack()
        self._steps: StepCounter | None = None
        self._staging: Staging | None = None
        self._held: list[tuple[str, dict[str, list[Any]]]] = []

    def __enter__(self) -> Self:
        try:
            for probe in self.probes:
                self._cleanup.callback(probe.detach)
                probe.attach(self.model)
            self._steps = StepCounter(self.model, self._begin_step)
            self._cleanup.callback(self._steps.handle.remove)
            self._open_folder()
        except BaseException:
            self._cleanup.close()
            raise
        self._begin_step()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is not None and (self._staging is not None or self._unfinished):
                self.event("interrupted", type(error).__name__, str(error))
            self.close(clean=error is None)
        except TraceError as failure:
            if error is None:
                raise
            error.add_note(f"While closing the recorder, this failed too: {failure}")

    @property
    def step(self) -> int:
        """Optimiser updates so far."""
        return 0 if self._steps is None else self._steps.step

    def close(self, *, clean: bool = True) -> None:
        """Write everything out, remove all hooks and end the run.

        Args:
            clean: Whether training came to its end; False leaves the run marked as interrupted.
        """
        with self._cleanup:
            if self._staging is None and not self._unfinished:
                return
            staging = self._trace()
            try:
                if clean:
                    self._finish(self._unfinished)
                for batch in self._unfinished:
                    batch.add_weight_and_status()
                    self._stage(batch)
                staging.drain()
            except BaseException:
                clean = False
                raise
            finally:
                self._unfinished, self._staging, self._steps = [], None, None
                staging.writer.close(clean=clean)

    def epochs(self, n: int, *, start: int | None = None) -> Iterator[int]:
        """Count epochs, and run what is scheduled between them.

        Args:
            n: Number of epochs in all.
            start: First epoch to run; 0 by default. Required after `load_state_dict`: only the
                caller knows whether the checkpoint's epoch was finished.

        Yields:
            The epoch, from `start` to n − 1.

        Raises:
            ValueError: If the run was resumed and `start` is not given.
        """
        if start is None and self._loaded_epoch is not None:
            e = self._loaded_epoch
            raise ValueError(
                f"The checkpoint is of epoch {e}, step {self.step}. Say where training goes on: "
                f"epochs({n}, start={e + 1}) if epoch {e} was finished when it was saved, "
                f"start={e} if not."
            )
        for epoch in range(start or 0, n):
            self.begin_epoch(epoch)
            yield epoch
            self.end_epoch()

    def begin_epoch(self, epoch: int) -> None:
        """Begin an epoch; `epochs` does this.

        Args:
            epoch: Its index, from 0.
        """
        self._counts_epochs = True
        if self.step == 0 and epoch == 0:
            self.epoch = -1
            self._measure(self._measurements.due_after_epoch(-1))
        self.epoch = epoch
        self._begin_step()

    def end_epoch(self) -> None:
        """End the epoch in progress, and measure what is due; `epochs` does this."""
        self._finish(self._unfinished)
        self._measure(self._measurements.due_after_epoch(self.epoch))
        self.event("epoch_end")
        self._trace().drain()

    def observe(
        self,
        losses: Tensor,
        sample_id: Tensor,
        *,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Record a batch; call it between the forward and the backward pass.

        The total loss must be built from the very tensor given here. Do not weight it before, but
        after, `(weights * losses).mean().backward()`, so that ℓ_i stays the sample's own loss.

        Args:
            losses: Unreduced loss of each sample, shape (N,).
            sample_id: Index of each sample in the full training set, shape (N,), integers.
            logits: Outputs, shape (N, C); needed for margin, p_true, EL2N and predictions.
            labels: Labels as trained, shape (N,), integers below C.
            weights: Importance weights, shape (N,); read off the backward pass by default.

        Raises:
            RuntimeError: If the recorder is not entered.
            ValueError: If shapes do not fit, a label or sample id is out of range, or a sample id
                is repeated within the batch; what was recorded before stays.
        """
        if self._steps is None:
            raise RuntimeError("observe was called outside of `with Recorder(...) as recorder:`.")
        check_batch(losses, sample_id, logits, labels, weights, self._known, self._repeats)
        self._trace()  # a resumed run is fenced at the step of its first batch, so begin here
        self._steps.begin_iteration()
        self._finish([batch for batch in self._unfinished if batch.factor is not None])
        self._measure(self._measurements.due_at_step(self.step, self._counts_epochs))
        batch = ObservedBatch(
            step=self.step,
            epoch=self.epoch,
            sample_id=sample_id.to(losses.device, int64, copy=True),
            losses=losses.detach(),
            logits=None if logits is None else logits.detach(),
            labels=None if labels is None else labels.to(losses.device, int64, copy=True),
            weights=None if weights is None else weights.detach().to(losses.device),
        )
        for probe in self.probes:
            probe.observe(batch)
        if losses.requires_grad:
            watch_factor(losses, batch, self._begin_backward)
        self._unfinished.append(batch)
        if len(self._unfinished) > _MAX_UNFINISHED:
            self._finish(self._unfinished[:1])

    def record(
        self,
        name: str,
        value: float,
        *,
        block: str = "total",
        stderr: float | None = None,
        n: int | None = None,
    ) -> None:
        """Record a value of the user's own, such as a test accuracy.

        Args:
            name: What it is, such as accuracy.
            value: The value.
            block: Set, group or module that it is for.
            stderr: Its standard error, if known.
            n: Number of samples that it rests on.
        """
        self._write_scalars([Scalar(name, value, block=block, stderr=stderr, n=n)])

    def event(self, name: str, subject: str | None = None, detail: str | None = None) -> None:
        """Record that something happened.

        Args:
            name: Kind of event, such as checkpoint or deficit_off.
            subject: What it is about.
            detail: The rest, as text.
        """
        row: dict[str, list[Any]] = {"step": [self.step], "epoch": [self.epoch], "name": [name]}
        row |= {"subject": [subject], "detail": [detail]}
        self._append("events", row)

    # Checkpoints

    def flush(self) -> None:
        """Return when every finished batch and every value recorded so far is durable."""
        self._finish([batch for batch in self._unfinished if batch.factor is not None])
        self._trace().drain()
        self._trace().writer.flush()

    def state_dict(self) -> dict[str, int | str]:
        """State for the user's checkpoint; everything recorded before is durable on return.

        Returns:
            Numbers and text only, so it loads under `torch.load(weights_only=True)`.
        """
        self.flush()
        return {"run_id": self._run_id, "step": self.step, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; call it after entering and before the first batch.

        Rows recorded at or after the checkpoint's step are left out by readers from then on.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If the state is not of this run, or a batch has already been recorded.
        """
        if self._staging is not None or self._steps is None or not self._resume:
            raise ValueError(
                "load_state_dict comes before the first batch, in a Recorder(..., resume=True)."
            )
        if state.get("run_id") != self._run_id:
            raise ValueError(
                f"The checkpoint is of run {state.get('run_id')}, but {self.path} holds run "
                f"{self._run_id}. Resume in the folder that the checkpoint was saved from."
            )
        self._steps.start = int(state["step"])
        self.epoch = self._loaded_epoch = int(state["epoch"])
        self._begin_step()

    # Behind the scenes

    def _open_folder(self) -> None:
        if self._resume:
            self._run_id = str(open_run(self.path).info["run_id"])
            return
        (self.path / RUN_FILE).unlink(missing_ok=True)  # of a run that has recorded nothing
        info = describe_run(self.model, self.probes, self._roster)
        info |= {"run_id": self._run_id, "data": self._data, "config": self._config}
        create_run(self.path, info)

    def _trace(self) -> Staging:
        """Where rows go; the first row begins the attempt, when it is known where that starts."""
        if self._staging is None:
            attempt = begin_attempt(
                self.path, from_step=self.step, from_epoch=self.epoch if self.step else -1
            )
            writer = TraceWriter(self.path, attempt=attempt)
            if attempt > 0:
                earlier = open_run(self.path).samples(columns=[], epochs=[self.epoch], repeats=True)
                writer.seen(self.epoch, earlier["sample_id"].to_numpy())
            if self._roster is not None and not open_run(self.path).parts("roster"):
                roster = {str(name): c.to_numpy() for name, c in self._roster.items()}
                writer.append("roster", roster)
            self._staging = Staging(writer, LabelLedger() if self._roster is None else None)
            for table, columns in self._held:
                writer.append(table, columns)
            self._held.clear()
        return self._staging

    def _begin_step(self) -> None:
        for probe in self.probes:
            probe.begin_step(self.step)

    def _begin_backward(self, batch: ObservedBatch) -> None:
        for probe in self.probes:
            probe.begin_backward(batch)

    def _measure(self, due: Sequence[Probe]) -> None:
        if due:
            findings = self._measurements.take(due, self.step, self.epoch)
            self._write_scalars([f for f in findings if isinstance(f, Scalar)])
            for event in (f for f in findings if isinstance(f, Event)):
                self.event(event.name, event.subject, event.detail)
            for vector in (f for f in findings if isinstance(f, Vector)):
                append = self._trace().writer.append_vector
                values = copy_to_host(vector.values)()
                append(vector.name, values, step=self.step, epoch=self.epoch)
            self._begin_step()

    def _write_scalars(self, scalars: list[Scalar]) -> None:
        for scalar in scalars:
            if not math.isfinite(scalar.value):
                self.event("non_finite", scalar.name, f"block {scalar.block}: {scalar.value}")
        place = {"step": [self.step] * len(scalars), "epoch": [self.epoch] * len(scalars)}
        if scalars:
            self._append("scalars", place | scalar_columns(scalars))

    def _append(self, table: str, columns: dict[str, list[Any]]) -> None:
        # Between load_state_dict and the first epoch or batch, nobody knows yet where the loop
        # restarts, and the fence of the new attempt says where.
        unknown = self._loaded_epoch is not None and not self._counts_epochs
        if self._staging is None and unknown:
            self._held.append((table, columns))
        else:
            self._trace().writer.append(table, columns)

    def _finish(self, batches: Sequence[ObservedBatch]) -> None:
        for batch in list(batches):
            self._unfinished.remove(batch)
            try:
                batch.add_weight_and_status()
                for probe in self.probes:
                    probe.finish(batch)
            finally:
                self._stage(batch)

    def _stage(self, batch: ObservedBatch) -> None:
        batch.columns["sample_id"] = batch.sample_id
        if self._roster is None and batch.labels is not None:
            batch.columns["label"] = batch.labels
        batch.logits = None
        self._trace().add(batch)
