"""The probes at work: each batch from `observe` until its backward pass is over."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from probes.batch import ObservedBatch
from probes.errors import UnsupportedModelError
from probes.launch import is_sharded
from probes.probe import Event, Probe
from probes.scale import watch_factor

_MAX_UNFINISHED = 64  # batches whose backward pass has not come; evaluation loops never have one

_SKIPPED = (
    "The gradients of the batches since the last update were cleared without one: a step that "
    "GradScaler skipped, or one left out by the loop."
)
_SHARDED = (
    "{probe} needs whole parameters in each process, but FSDP keeps a shard of each here. "
    "SampleLoss and OutputGradNorm go with FSDP; for norms and Fisher traces, train with "
    "DistributedDataParallel, or measure a checkpoint in one process."
)


class Watch:
    """Passes batches through ride-along probes, and tells probes what moment it is.

    Args:
        probes: The probes.
        stage: Takes each batch when its columns are final.
        happened: Takes what is noticed on the way.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        stage: Callable[[ObservedBatch], None],
        happened: Callable[[Event], None],
    ) -> None:
        self._probes = list(probes)
        self._stage = stage
        self._happened = happened
        self._parameters: list[nn.Parameter] = []
        self._step = 0
        self._awaits_update = False
        self._unfinished: list[ObservedBatch] = []

    @property
    def has_unfinished(self) -> bool:
        """Whether a batch's backward pass may still come."""
        return bool(self._unfinished)

    def attach(self, model: nn.Module) -> None:
        """Attach all probes, or none if one refuses the model.

        Args:
            model: The network.

        Raises:
            UnsupportedModelError: If a probe needs whole parameters and FSDP has sharded them.
        """
        sharded = is_sharded(model)
        for probe in self._probes:
            if sharded and probe.needs_whole_model:
                raise UnsupportedModelError(_SHARDED.format(probe=type(probe).__name__))
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        attached: list[Probe] = []
        try:
            for probe in self._probes:
                attached.append(probe)
                probe.attach(model)
        except BaseException:
            for probe in reversed(attached):
                probe.detach()
            raise

    def detach(self) -> None:
        """Detach all probes; from here on nothing is watched. What is unfinished stays."""
        while self._probes:
            self._probes.pop().detach()

    def begin_step(self, step: int) -> None:
        """Tell all probes that the next forward pass is training's.

        Args:
            step: Optimiser updates so far.
        """
        self._awaits_update &= step == self._step
        self._step = step
        for probe in self._probes:
            probe.begin_step(step)

    def observe(self, batch: ObservedBatch, losses: Tensor) -> None:
        """Let the probes see a batch, now and in its backward pass.

        Args:
            batch: The batch.
            losses: Its losses, with their graph.
        """
        for probe in self._probes:
            probe.observe(batch)
        if losses.requires_grad:
            watch_factor(losses, batch, self._begin_backward, self._end_backward)
        self._unfinished.append(batch)
        if len(self._unfinished) > _MAX_UNFINISHED:
            self._finish(self._unfinished[:1])

    def finish_seen(self) -> None:
        """Finish the batches that a backward pass has reached."""
        self._notice_skip()
        self._finish([batch for batch in self._unfinished if batch.factor is not None])

    def finish_all(self) -> None:
        """Finish every batch: no more backward passes come."""
        self._notice_skip()
        self._finish(self._unfinished)

    def give_up(self) -> None:
        """Stage every batch as it is, without the probes."""
        unfinished, self._unfinished = self._unfinished, []
        for batch in unfinished:
            batch.add_weight_and_status()
            self._stage(batch)

    def _begin_backward(self, batch: ObservedBatch) -> None:
        self._notice_skip()
        for probe in self._probes:
            probe.begin_backward(batch)

    def _end_backward(self) -> None:
        self._awaits_update = self._has_gradients()

    def _notice_skip(self) -> None:
        """Gradients that are gone without an update: known without asking the device."""
        if self._awaits_update and not self._has_gradients():
            self._awaits_update = False
            self._happened(Event("step_skipped", detail=_SKIPPED))

    def _has_gradients(self) -> bool:
        return any(parameter.grad is not None for parameter in self._parameters)

    def _finish(self, batches: Sequence[ObservedBatch]) -> None:
        for batch in list(batches):
            self._unfinished.remove(batch)
            try:
                batch.add_weight_and_status()
                for probe in self._probes:
                    probe.finish(batch)
            finally:
                self._stage(batch)
