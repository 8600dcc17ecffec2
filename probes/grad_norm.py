"""Per-sample gradient norms, from the training's own backward pass."""

import torch
from torch import nn

from probes.batch import ObservedBatch
from probes.engines.backpack import BackpackEngine, NormCapture
from probes.errors import UnsupportedModelError
from probes.probe import Probe
from probes.schedule import Schedule, every

REMEDY = (
    "Replace these layers (GroupNorm for BatchNorm, for example), freeze their parameters, or pass "
    "partial=True to record norms over the other parameters only, marked as such in run.json."
)


class GradNorm(Probe):
    """Records ‖∇ℓ_i‖₂ of every sample of a batch, over all trainable parameters.

    Rides along in the loop's own backward pass. Convention: the norm is that of the sample's own
    unreduced loss ℓ_i. Whatever factor the loop puts on it (1/N, an importance weight, loss scale)
    is read off and divided out; where that factor is 0 the value is missing, with a status bit.

    Cost: BackPACK's extra products in each layer, on scheduled steps; no pass of its own.

    Args:
        when: Steps to record, `every(steps=k)`; every step by default.
        blocks: Also record the norm over each layer's parameters, as `grad_norm/<layer>`.
        partial: Accept layers without an exact rule and leave their parameters out of the norm.

    Raises:
        ValueError: If the schedule is not one of steps.

    Reference:
        BackPACK's BatchL2Grad: Dangel et al., ICLR 2020. GraNd, the norm's expectation over
        initialisations: Paul et al., NeurIPS 2021, Sec. 2.
    """

    def __init__(
        self, when: Schedule | None = None, *, blocks: bool = False, partial: bool = False
    ) -> None:
        self._steps = when or every(steps=1)
        if self._steps.steps is None:
            raise ValueError(
                f"GradNorm rides along in training steps, so it takes every(steps=k), but got "
                f"{self._steps}."
            )
        self._blocks = blocks
        self._partial = partial
        self._engine: BackpackEngine | None = None
        self._captures: dict[ObservedBatch, NormCapture] = {}

    def attach(self, model: nn.Module) -> None:
        """Place the hooks.

        Raises:
            UnsupportedModelError: If a layer has no exact rule; all of them are named.
        """
        engine = BackpackEngine(model)
        if engine.problems and not self._partial:
            raise UnsupportedModelError.listing("GradNorm", engine.problems, REMEDY)
        engine.attach()
        self._engine = engine

    def detach(self) -> None:
        """Remove the hooks."""
        if self._engine is not None:
            self._engine.detach()
        self._captures.clear()

    def begin_step(self, step: int) -> None:
        """Capture the coming forward pass if it is due."""
        self._attached().armed = self._steps.due_at_step(step)

    def pause(self) -> None:
        """Capture no forward pass until the next `begin_step`."""
        self._attached().armed = False

    def observe(self, batch: ObservedBatch) -> None:
        """Tie the forward pass just captured to the batch."""
        capture = self._attached().take()
        if capture is not None:
            self._captures[batch] = capture

    def begin_backward(self, batch: ObservedBatch) -> None:
        """Called when the batch's backward pass reaches its losses."""
        if batch in self._captures:
            self._attached().begin_backward(self._captures[batch])

    def finish(self, batch: ObservedBatch) -> None:
        """Divide the captured norms by the factors, and add them to the batch.

        Raises:
            UnsupportedModelError: If the backward pass showed that the norms would be inexact.
        """
        capture = self._captures.pop(batch, None)
        if capture is None or batch.factor is None:
            return
        problems = self._attached().check(capture, len(batch))
        if problems and not (self._partial and capture.norms_sq):
            raise UnsupportedModelError.listing("GradNorm", problems, REMEDY)
        scale = batch.factor.abs().to(torch.promote_types(batch.factor.dtype, torch.float32))
        scale = torch.where(scale == 0, torch.nan, scale)
        batch.columns["grad_norm"] = capture.total_sq().sqrt() / scale
        if self._blocks:
            for block, norms_sq in capture.norms_sq.items():
                batch.columns[f"grad_norm/{block}"] = norms_sq.sqrt() / scale

    def describe(self) -> dict[str, object]:
        """What `run.json` says about the probe, with the coverage of its norms."""
        engine = self._attached()
        return {
            "probe": "GradNorm",
            "when": str(self._steps),
            "engine": "backpack",
            "mode": "train",
            "coverage": engine.coverage,
            "left_out": engine.problems,
        }

    def _attached(self) -> BackpackEngine:
        if self._engine is None:
            raise RuntimeError("GradNorm is not attached to a model; use it within a Recorder.")
        return self._engine
