"""Per-sample gradient norms: in the training's own backward pass, or in an own one in eval mode."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynamics.traces import Status
from probes.batch import ObservedBatch
from probes.engines.backpack import BackpackEngine
from probes.engines.capture import NormCapture
from probes.engines.extra_pass import extra_pass
from probes.engines.fused import FusedEngine
from probes.engines.sketch import FusedSketchEngine, SketchEngine
from probes.errors import UnsupportedModelError
from probes.probe import Probe, Scalar
from probes.probe_set_norms import ProbeSetNorms
from probes.schedule import Schedule, every

Mode = Literal["train", "eval"]
Engine = Literal["backpack", "fused"]
Kind = Literal["exact", "sketch"]
SampleLosses = Callable[[Any, Tensor], Tensor]
"""From the model's output and the labels to one loss per sample, shape (N,)."""

REMEDY = (
    "For BatchNorm, use GradNorm(mode='eval', when=every(steps=16)), which takes a pass of its "
    "own. "
    "Otherwise replace these layers, freeze their parameters, or pass partial=True to record norms "
    "over the other parameters only, marked as such in run.json."
)

_UNSEEN = (
    "no forward pass of it was seen before these losses: the model was compiled and called before "
    "the recorder was entered (enter it first, then call torch.compile), or the loop calls a part "
    "of the model (give that part to the Recorder)"
)

_ENGINES: dict[tuple[Engine, Kind], type[BackpackEngine]] = {
    ("backpack", "exact"): BackpackEngine,
    ("fused", "exact"): FusedEngine,
    ("backpack", "sketch"): SketchEngine,
    ("fused", "sketch"): FusedSketchEngine,
}


def cross_entropy_losses(output: Any, labels: Tensor) -> Tensor:
    """Softmax cross-entropy of each sample, unreduced, shape (N,)."""
    return F.cross_entropy(output, labels, reduction="none")


class GradNorm(Probe):
    """Records ‖∇ℓ_i‖₂ of every sample of a batch, over all trainable parameters.

    Convention: the norm is that of the sample's own unreduced loss ℓ_i. With `mode="train"` it
    rides along in the loop's own backward pass; whatever factor the loop puts on ℓ_i (1/N, an
    importance weight, loss scale) is read off and divided out, and where that factor is 0 the value
    is missing, with a status bit. With `mode="eval"` the batch just seen goes through the model
    once more, in eval mode and without a trace left, and ℓ_i is computed anew: the way for networks
    with BatchNorm, whose training pass mixes the samples, and for dropout-free norms.

    With `data` too, the norms are those of a fixed set instead, after each epoch or every k steps:
    scalars `grad_norm` with block `total` (mean over the set, with its standard error) and `sample
    <id>` (one row a sample and measurement, so a few hundred samples are plenty).

    Cost: `train`: BackPACK's extra products in each layer, on scheduled steps. `eval`: one more
    forward and backward pass on scheduled steps, or one over the set.

    Args:
        when: Steps to record, `every(steps=k)`; every step by default. With `data`, epochs as well;
            before the first and after each one by default.
        mode: Which pass the norms are taken in.
        engine: `backpack` leaves training's gradients as they are, bit for bit; `fused` lets
            linear and convolutional layers form their gradient from the per-sample ones, which is
            faster and equal to rounding.
        kind: `exact`, or `sketch`: unbiased estimates of squared norms from 8 random projections
            in the layers where exact ones are dear, with `grad_norm_stderr` beside them (at most
            about a quarter of the norm) and the status bit ESTIMATED. With `engine="fused"` those
            are the layers where estimating was measured to be faster.
        losses: For `mode="eval"`, the per-sample loss; softmax cross-entropy by default.
        data: For `mode="eval"`, a fixed set in place of the batches: (inputs, labels), or a
            map-style data set; items of `with_sample_ids` keep their ids, others count from 0.
        blocks: Also record the norm over each layer's parameters, as `grad_norm/<layer>`; with
            `data`, the mean of each layer's.
        partial: Accept layers without an exact rule and leave their parameters out of the norm;
            for `mode="train"`.

    Raises:
        ValueError: If the schedule is not one of steps, or an option is unknown or does not go with
            another.

    Reference:
        BackPACK's BatchL2Grad: Dangel et al., ICLR 2020. GraNd, the norm's expectation over
        initialisations: Paul et al., NeurIPS 2021, Sec. 2, in eval mode.
    """

    writes: ClassVar[tuple[str, ...]] = ("grad_norm", "grad_norm_stderr")
    needs_whole_model: ClassVar[bool] = True

    def __init__(
        self,
        when: Schedule | None = None,
        *,
        mode: Mode = "train",
        engine: Engine = "backpack",
        kind: Kind = "exact",
        losses: SampleLosses = cross_entropy_losses,
        data: Any = None,
        blocks: bool = False,
        partial: bool = False,
    ) -> None:
        self._steps = when or (every(steps=1) if data is None else every(epochs=1))
        if self._steps.steps is None and data is None:
            raise ValueError(
                f"GradNorm rides along in training steps, so it takes every(steps=k), but got "
                f"{self._steps}."
            )
        for name, value, known in (
            ("mode", mode, get_args(Mode)),
            ("engine", engine, get_args(Engine)),
            ("kind", kind, get_args(Kind)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, but is {value!r}.")
        if mode == "eval" and (engine, kind) != ("backpack", "exact"):
            raise ValueError("mode='eval' takes exact norms with engine='backpack' only.")
        if data is not None and mode != "eval":
            raise ValueError("GradNorm(data=...) takes passes of its own, so it needs mode='eval'.")
        self._set: ProbeSetNorms | None = None
        if data is not None:
            self._set = ProbeSetNorms(data, losses, remedy=REMEDY)
            self.when = self._steps
            self.writes = ()  # type: ignore[misc]  # so it can go beside one that rides along
        self._mode = mode
        self._engine = engine
        self._kind = kind
        self._losses = losses
        self._blocks = blocks
        self._partial = partial
        self._taken: _RideAlong | _OwnPass | ProbeSetNorms | None = None
        self._step = -1

    def attach(self, model: nn.Module) -> None:
        """Place the hooks.

        Raises:
            UnsupportedModelError: If a layer has no exact rule; all of them are named.
        """
        if self._set is not None:
            self._set.attach(model)
            self._taken = self._set
        elif self._mode == "train":
            engine = _ENGINES[self._engine, self._kind](model)
            self._taken = _RideAlong(engine, partial=self._partial)
        else:
            self._taken = _OwnPass(model, self._losses)

    def detach(self) -> None:
        """Remove the hooks."""
        if self._taken is not None:
            self._taken.detach()

    def begin_step(self, step: int) -> None:
        """Capture the coming forward pass if it is due."""
        if step != self._step:  # and not after a pause within the step
            self._attached().forget()
        self._step = step
        self._attached().armed = self._steps.due_at_step(step)

    def pause(self) -> None:
        """Capture no forward pass until the next `begin_step`."""
        self._attached().armed = False

    def observe(self, batch: ObservedBatch) -> None:
        """Tie the forward pass just made to the batch."""
        self._attached().observe(batch)

    def begin_backward(self, batch: ObservedBatch) -> None:
        """Called when the batch's backward pass reaches its losses."""
        self._attached().begin_backward(batch)

    def finish(self, batch: ObservedBatch) -> None:
        """Add the norms to the batch."""
        taken = self._attached().take(batch)
        if taken is None:
            return
        norms_sq, factor = torch.stack(list(taken.norms_sq.values()), 1), taken.factor
        batch.later[_norm] = norms_sq, factor
        if self._kind == "sketch":
            variance = sum(taken.variances.values(), torch.zeros_like(norms_sq[:, 0]))
            batch.later[_stderr] = norms_sq, variance, factor
            batch.bits |= Status.ESTIMATED
        if self._blocks:
            each = _divided(norms_sq, factor).sqrt_().unbind(1)
            names = (f"grad_norm/{block}" for block in taken.norms_sq)
            batch.columns |= dict(zip(names, each, strict=True))

    def measure(self, model: nn.Module, *, step: int, epoch: int) -> Iterable[Scalar]:
        """Take the norms of the fixed set, if there is one.

        Returns:
            Their mean, and each sample's.
        """
        return () if self._set is None else self._set.measure(model, blocks=self._blocks)

    def describe(self) -> dict[str, object]:
        """What `run.json` says about the probe, with the coverage of its norms."""
        return {
            "probe": "GradNorm",
            "when": str(self._steps),
            "engine": self._engine,
            "kind": self._kind,
            "mode": self._mode,
            **self._attached().describe(),
        }

    def _attached(self) -> "_RideAlong | _OwnPass | ProbeSetNorms":
        if self._taken is None:
            raise RuntimeError("GradNorm is not attached to a model; use it within a Recorder.")
        return self._taken


class _Taken(NamedTuple):
    """Squared norms and their variances by block, and the factor on each sample's gradient."""

    norms_sq: dict[str, Tensor]
    variances: dict[str, Tensor]
    factor: Tensor


def _divided(norms_sq: Tensor, factor: Tensor) -> Tensor:
    factor = factor.to(torch.promote_types(factor.dtype, torch.float32))
    return norms_sq / factor.square().masked_fill_(factor == 0, torch.nan).unsqueeze(1)


def _norm(batches: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    norms_sq, factor = map(torch.cat, zip(*batches, strict=True))
    return {"grad_norm": _divided(norms_sq, factor).sum(1).sqrt_()}


def _stderr(batches: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    norms_sq, variance, factor = map(torch.cat, zip(*batches, strict=True))
    stderr_sq = variance / (4 * norms_sq.sum(1))  # of the norm, by its derivative
    return {"grad_norm_stderr": _divided(stderr_sq.unsqueeze(1), factor).squeeze(1).sqrt_()}


class _RideAlong:
    """Norms from the loop's own backward pass."""

    def __init__(self, engine: BackpackEngine, *, partial: bool) -> None:
        self._engine = engine
        self._captures: dict[ObservedBatch, NormCapture] = {}
        if engine.mixing or (engine.problems and not partial):
            raise UnsupportedModelError.listing("GradNorm", engine.problems, REMEDY)
        engine.attach()

    @property
    def armed(self) -> bool:
        return self._engine.armed

    @armed.setter
    def armed(self, due: bool) -> None:
        self._engine.armed = due

    def forget(self) -> None:
        self._engine.take()

    def detach(self) -> None:
        self._engine.detach()
        self._captures.clear()

    def observe(self, batch: ObservedBatch) -> None:
        capture = self._engine.take()
        if self._engine.armed:
            # An empty capture, of a model whose hooks did not fire, is refused after its backward.
            self._captures[batch] = capture or NormCapture()

    def begin_backward(self, batch: ObservedBatch) -> None:
        if batch in self._captures:
            self._engine.begin_backward(self._captures[batch])

    def take(self, batch: ObservedBatch) -> "_Taken | None":
        capture = self._captures.pop(batch, None)
        if capture is None or not batch.backward_done or batch.factor is None:
            return None
        problems = self._engine.finish(capture, len(batch))
        if problems:
            raise UnsupportedModelError.listing("GradNorm", problems, REMEDY)
        return _Taken(capture.norms_sq, capture.variances, batch.factor)

    def describe(self) -> dict[str, object]:
        return {"coverage": self._engine.coverage, "left_out": self._engine.problems}


class _OwnPass:
    """Norms from another pass over the batch just seen, in eval mode."""

    def __init__(self, model: nn.Module, losses: SampleLosses) -> None:
        self.armed = False
        self._model = model
        self._losses = losses
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._norms_sq: dict[ObservedBatch, dict[str, Tensor]] = {}
        with extra_pass(model, probe="GradNorm", remedy=REMEDY) as own_pass:
            # Layers that have no rule in eval mode either are refused here, before training begins.
            self._engine = own_pass.engine
        self._handle: RemovableHandle = model.register_forward_pre_hook(
            self._keep_inputs, with_kwargs=True
        )

    def _keep_inputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.armed:
            self._inputs = (args, kwargs)

    def forget(self) -> None:
        self._inputs = None

    def detach(self) -> None:
        self._handle.remove()
        self._inputs = None
        self._norms_sq.clear()

    def observe(self, batch: ObservedBatch) -> None:
        inputs, self._inputs = self._inputs, None
        if not self.armed:
            return
        if inputs is None:
            raise UnsupportedModelError.listing("GradNorm", [_UNSEEN], REMEDY)
        if batch.labels is None:
            raise ValueError(
                "GradNorm(mode='eval') computes each sample's loss anew, so it needs labels: "
                "recorder.observe(losses, sample_id, labels=labels)."
            )
        self.armed = False
        with extra_pass(
            self._model, probe="GradNorm", remedy=REMEDY, engine=self._engine
        ) as own_pass:
            output = self._model(*inputs[0], **inputs[1])
            capture = own_pass.take()
            losses = self._losses(output, batch.labels)
            if losses.shape != batch.losses.shape:
                raise ValueError(
                    f"GradNorm(losses=...) must return one loss per sample, shape "
                    f"{tuple(batch.losses.shape)}, but returned {tuple(losses.shape)}."
                )
            self._norms_sq[batch] = own_pass.norms_sq(capture, losses)
        self.armed = True

    def begin_backward(self, batch: ObservedBatch) -> None:
        """Nothing to do: the norms are there already."""

    def take(self, batch: ObservedBatch) -> "_Taken | None":
        norms_sq = self._norms_sq.pop(batch, None)
        ones = torch.ones_like(batch.losses)
        return None if norms_sq is None else _Taken(norms_sq, {}, ones)

    def describe(self) -> dict[str, object]:
        return {"coverage": 1.0, "left_out": []}
