"""The recorder: one added line in a training loop, and a durable trace of what happened in it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

import pandas as pd
from torch import Tensor, nn

from dynamics.traces import TraceError
from dynamics.traces.layout import run_folder
from dynamics.traces.resume import check_folder
from dynamics.traces.writer import OnError
from probes.batch import ObservedBatch, observed
from probes.budget import Budget
from probes.launch import bare, open_launch, place_in_group
from probes.measurements import Measurements
from probes.probe import Event, Finding, Probe, Scalar, order_probes
from probes.recording import Recording, warn_disabled
from probes.restart import ask_for_start, check_state
from probes.roster import KnownIds, check_roster
from probes.run_info import describe_run
from probes.step_counter import StepCounter
from probes.termination import Termination
from probes.trackers import Tracker
from probes.trackers.feed import Feed
from probes.validation import check_batch
from probes.watch import Watch


class Recorder:
    """Watches a training loop through probes, and writes what they see as a trace.

    Used as a context manager around the loop. `observe` is the one line to add inside; `epochs`
    counts epochs where there are any. Steps are counted by a hook on `Optimizer.step` of any
    optimiser that holds a parameter of the model. Training is the same with and without the
    recorder: parameters are bit-identical on the CPU.

    Once `torch.distributed` is initialised, each process enters a recorder of its own on the same
    folder. Each writes its own rows, and what it is told by `record` and `event`; rank 0 takes the
    measurements. SIGTERM flushes at the next step (see probes/termination.py).

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
        budget: Largest share of the wall time that recording may take, such as 0.05: passes of
            probes' own are taken less often where they would exceed it, events
            `schedule_stretched` say so, and `run.cost()` what was spent. None times nothing.
        trackers: Dashboards that follow the run, such as `probes.trackers.tensorboard.TensorBoard`.
        on_error: What to do when the trace cannot be written any more: the disk is full, a right or
            the folder is gone. `disable` lets training go on unobserved: probes are detached, a
            warning and an event `recording_disabled` say why, and what is in memory (at most
            256 MiB) is written if that becomes possible before the end. `raise` raises a TraceError
            at the next call. `block` holds training up until writing succeeds. Mistakes in what is
            passed, errors of probes, and a run that another process has taken over always raise.

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
        budget: float | None = None,
        trackers: Sequence[Tracker] = (),
        on_error: OnError = "disable",
    ) -> None:
        if on_error not in get_args(OnError):
            raise ValueError(f"on_error is one of {get_args(OnError)}, not {on_error!r}.")
        path = Path(out)
        self.path = run_folder(path.parent, path.name)
        self.model = bare(model)
        self.probes = order_probes(probes)
        self._roster = None if roster is None else check_roster(roster)
        self._known = (
            None if self._roster is None else KnownIds(self._roster["sample_id"].to_numpy())
        )
        self._data = dict(data or {})
        self._config = dict(config or {})
        self._repeats = repeats
        self._resume = resume
        self._on_error = on_error
        if place_in_group() == (0, 1):  # else rank 0 may have begun, and tells the others later
            check_folder(self.path, resume=resume)
        self.epoch = 0
        self._loaded_epoch: int | None = None
        self._counts_epochs = False
        self._budget = Budget(budget)
        self._trackers = trackers
        self._feed = Feed(())
        self._measurements = Measurements(self.probes, self.model, self._budget)
        self._watch = Watch(self.probes, self._stage, lambda event: self._write([event]))
        self._cleanup = contextlib.ExitStack()
        self._steps: StepCounter | None = None
        self._recording: Recording | None = None
        self._is_disabled = False
        self._termination = Termination(self._save_before_end)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._watch.attach(self.model)
            stack.callback(self._watch.detach)
            self._steps = StepCounter(self.model, self._after_step)
            stack.callback(self._steps.handle.remove)
            launch = open_launch(self.path, resume=self._resume, describe=self._describe)
            self._feed = Feed(self._trackers if launch.rank == 0 else ())
            rows = self._feed.rows
            self._recording = Recording(self.path, launch, self._roster, self._on_error, rows)
            self._termination.install()
            self._cleanup = stack.pop_all()
        self._watch.begin_step(self.step)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is not None and self._has_rows():
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
        recording = self._recording
        if recording is None:
            return
        with self._cleanup:
            try:
                if clean:
                    self._watch.finish_all()
                if not self._counts_epochs:
                    self._write(self._budget.costs())
                if self._termination.is_requested:
                    self._save_before_end()
                self._watch.give_up()
                if self._trackers:
                    recording.flush()  # they get the last rows
                    self._write(self._feed.close())
            except BaseException:
                clean = False
                raise
            finally:
                self._recording = self._steps = None
                recording.close(clean=clean and not self._is_disabled)
        self._termination.remove()

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
            raise ValueError(ask_for_start(self._loaded_epoch, self.step, n))
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
        if self._entered().launch.world_size > 1:
            self._begin()  # here, where all ranks are at the same step
        self._watch.begin_step(self.step)

    def end_epoch(self) -> None:
        """End the epoch in progress, and measure what is due; `epochs` does this."""
        self._watch.finish_all()
        self._measure(self._measurements.due_after_epoch(self.epoch))
        if self._entered().launch.rank == 0:
            self._write([Event("epoch_end"), *self._budget.costs(), *self._feed.take_failures()])
        self._entered().drain()
        self._termination.check()

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
        self._entered()
        if self._steps is not None:
            self._steps.begin_iteration()
        self._termination.check()
        if self._is_disabled:
            return
        check_batch(losses, sample_id, logits, labels, weights, self._known, self._repeats)
        self._begin()  # a resumed run is fenced at the step of its first batch, so begin here
        if self._is_off():
            return
        with self._budget.timed():
            self._watch.finish_seen()
            self._measure(self._measurements.due_at_step(self.step, self._counts_epochs))
            batch = observed(losses, sample_id, logits, labels, weights, self.step, self.epoch)
            self._watch.observe(batch, losses)

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
        self._write([Scalar(name, value, block=block, stderr=stderr, n=n)])

    def event(self, name: str, subject: str | None = None, detail: str | None = None) -> None:
        """Record that something happened.

        Args:
            name: Kind of event, such as checkpoint or deficit_off.
            subject: What it is about.
            detail: The rest, as text.
        """
        self._write([Event(name, subject, detail)])

    # Checkpoints

    def flush(self) -> None:
        """Return when every finished batch and every value recorded so far is durable.

        With `on_error="disable"` it returns also when that has failed; a warning follows.
        """
        self._watch.finish_seen()
        self._entered().flush()
        self._is_off()

    def state_dict(self) -> dict[str, int | str]:
        """State for the user's checkpoint; everything recorded before is durable on return.

        With several processes, call it in each, and let one save the checkpoint when all have
        returned: `state = recorder.state_dict(); dist.barrier(); if rank == 0: torch.save(...)`.

        Returns:
            Numbers and text only, so it loads under `torch.load(weights_only=True)`.
        """
        self.flush()
        run_id = self._entered().launch.run_id
        return {"run_id": run_id, "step": self.step, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; call it after entering and before the first batch.

        Rows recorded at or after the checkpoint's step are left out by readers from then on.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If the state is not of this run, or a batch has already been recorded.
        """
        recording, steps = self._recording, self._steps
        if recording is None or steps is None or recording.has_begun or not self._resume:
            raise ValueError(
                "load_state_dict comes before the first batch, in a Recorder(..., resume=True)."
            )
        check_state(state, recording.launch.run_id, self.path)
        steps.start = int(state["step"])
        self.epoch = self._loaded_epoch = int(state["epoch"])
        self._watch.begin_step(self.step)

    def _describe(self) -> dict[str, Any]:
        info = describe_run(self.model, self.probes, self._roster)
        return info | {"data": self._data, "config": self._config}

    def _entered(self) -> Recording:
        if self._recording is None:
            raise RuntimeError("This was called outside of `with Recorder(...) as recorder:`.")
        return self._recording

    def _begin(self) -> None:
        self._entered().begin(self.step, self.epoch if self.step else -1)

    def _has_rows(self) -> bool:
        recording = self._recording
        return recording is not None and (recording.has_begun or self._watch.has_unfinished)

    def _is_off(self) -> bool:
        """Whether recording is disabled. Asked where no probe is at work: it may happen here."""
        failure = self._entered().failure
        if failure is not None and self._on_error == "disable" and not self._is_disabled:
            self._is_disabled = True
            self._watch.give_up()
            self._watch.detach()
            self._entered().drain()
            self.event("recording_disabled", type(failure).__name__, str(failure))
            warn_disabled(failure, self.path, self.step)
        return self._is_disabled

    def _after_step(self) -> None:
        self._watch.begin_step(self.step)
        self._termination.check()

    def _save_before_end(self) -> None:
        if self._has_rows():
            self.event("sigterm")
            self.flush()

    def _measure(self, due: Sequence[Probe]) -> None:
        if due and not self._is_disabled and self._entered().launch.rank == 0:
            self._write(self._measurements.take(due, self.step, self.epoch))
            self._watch.begin_step(self.step)

    def _write(self, findings: Sequence[Finding]) -> None:
        recording = self._entered()
        if not findings:
            return
        self._feed.scalars(findings, self.step)
        # Between load_state_dict and the first epoch or batch, nobody knows yet where the loop
        # restarts, and the fence of the new attempt says where: what is written waits for it.
        if self._loaded_epoch is None or self._counts_epochs:
            self._begin()
        recording.append_findings(findings, self.step, self.epoch)

    def _stage(self, batch: ObservedBatch) -> None:
        self._begin()
        self._entered().add(batch)
