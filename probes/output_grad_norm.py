"""Norm of each sample's gradient at the network's output: the last-layer bound, for any loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from probes.batch import ObservedBatch
from probes.compiled import graph_break
from probes.engines.capture import NO_TASK
from probes.errors import UnsupportedModelError
from probes.probe import Probe
from probes.schedule import Schedule, every

REMEDY = (
    "It takes the first tensor that the model given to the recorder returns (or its `logits`), "
    "shape (N, …); call that model itself, and build the losses from that tensor."
)


@dataclass(eq=False, slots=True)
class _Capture:
    """What one batch's backward passes have brought: Σ_k c_k² ‖∂ℓ_i/∂z_i‖², and each c_k."""

    norms_sq: Tensor | None = None
    factors: list[Tensor] = field(default_factory=list)


class OutputGradNorm(Probe):
    """Records Ĝ_i = ‖∂ℓ_i/∂z_i‖₂, z_i the network's output for sample i (logits, for a classifier).

    The gradient of any layer is that of the output pulled back through the network, so
    ‖∇ℓ_i‖₂ ≤ L·ρ·Ĝ_i, with constants that depend on the network and not on the sample: Ĝ ranks
    samples almost as the full norm does, at the price of one norm over the outputs. For softmax
    cross-entropy it equals EL2N, ‖softmax(z) − e_y‖₂; here the loss may be any: squared error,
    focal, cross-entropy per token (then over all entries (T, C) of z_i).

    Convention: of the sample's own unreduced loss ℓ_i, as in `GradNorm`: whatever factor the loop
    puts on ℓ_i is read off and divided out; where that is 0 the value is missing, with a status
    bit. The total loss must depend on the output through the observed losses only. It is taken in
    the loop's own backward pass, with the network as it trains; BatchNorm is no problem, as it
    mixes samples before the output and not after it.

    Cost: one norm over the outputs, on scheduled steps; no pass of its own, and training stays
    bit-identical.

    Args:
        when: Steps to record, `every(steps=k)`; every step by default.

    Raises:
        ValueError: If the schedule is not one of steps.

    Reference:
        Katharopoulos and Fleuret, ICML 2018, Sec. 3.2 (the upper bound). Theirs is at the
        pre-activation of the last layer; so is this, if the model returns that.
    """

    writes: ClassVar[tuple[str, ...]] = ("output_grad_norm",)

    def __init__(self, when: Schedule | None = None) -> None:
        self._steps = when or every(steps=1)
        if self._steps.steps is None:
            raise ValueError(
                f"OutputGradNorm rides along in training steps, so it takes every(steps=k), but "
                f"got {self._steps}."
            )
        self._armed = False
        self._step = -1
        self._handle: RemovableHandle | None = None
        self._forward: _Capture | None = None
        self._backward: ObservedBatch | None = None
        self._captures: dict[ObservedBatch, _Capture] = {}

    def attach(self, model: nn.Module) -> None:
        """Place the hook."""
        self._eagerly = graph_break(self._watch)
        self._handle = model.register_forward_hook(self._after_forward)

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self._forward = self._backward = None
        self._captures.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OutputGradNorm":
        """What the hook on a copy of the model, such as a running average, belongs to: nobody."""
        return OutputGradNorm(self._steps)

    def begin_step(self, step: int) -> None:
        """Watch the coming forward passes if they are due."""
        if step != self._step:
            self._forward = None
        self._step = step
        self._armed = self._steps.due_at_step(step)

    def pause(self) -> None:
        """Watch no forward pass until the next `begin_step`."""
        self._armed = False

    def _after_forward(self, model: nn.Module, args: Any, output: Any) -> Any:
        if self._armed and torch.is_grad_enabled():
            return self._eagerly(output)
        return None

    def _watch(self, output: Any) -> Any:
        """Hang a hook on the output; returns the output if that had to be replaced."""
        values = _output_tensor(output)
        if values is None or not values.requires_grad:
            return None
        if torch._C._current_graph_task_id() == NO_TASK:
            capture = self._forward = self._forward or _Capture()
        elif self._backward in self._captures and not self._backward.backward_done:
            capture = self._captures[self._backward]  # a checkpoint around the model runs it again
        else:
            return None
        # An in-place operation on a view takes its place in the graph, and its hook with it.
        replaced = values is output and values._is_view()
        values = values.clone() if replaced else values

        def add(grad: Tensor) -> None:
            each = grad.flatten(1) if grad.dim() > 1 else grad.reshape(-1, 1)
            each = each.detach().to(torch.promote_types(each.dtype, torch.float32))
            norms_sq = torch.linalg.vector_norm(each, dim=1).square_()
            known = capture.norms_sq
            capture.norms_sq = norms_sq if known is None else known + norms_sq

        values.register_hook(add)  # type: ignore[no-untyped-call]
        return values if replaced else None

    def observe(self, batch: ObservedBatch) -> None:
        """Tie the forward pass just made to the batch."""
        capture, self._forward = self._forward, None
        if self._armed:
            self._captures[batch] = capture or _Capture()

    def begin_backward(self, batch: ObservedBatch) -> None:
        """Note the factor that this backward pass brings."""
        self._backward = batch
        capture = self._captures.get(batch)
        if capture is not None and batch.factor is not None:
            factor = batch.factor.to(torch.promote_types(batch.factor.dtype, torch.float32))
            capture.factors.append(factor - sum(capture.factors))

    def finish(self, batch: ObservedBatch) -> None:
        """Add the norms to the batch.

        Raises:
            UnsupportedModelError: If no gradient, or one of another number of samples, arrived at
                the model's output.
        """
        capture = self._captures.pop(batch, None)
        if capture is None or not batch.backward_done or batch.factor is None:
            return
        norms_sq = capture.norms_sq
        if norms_sq is None or len(norms_sq) != len(batch):
            n_rows = "no gradient" if norms_sq is None else f"a gradient of {len(norms_sq)} rows"
            problem = f"{n_rows} arrived at the model's output, for {len(batch)} losses"
            raise UnsupportedModelError.listing("OutputGradNorm", [problem], REMEDY)
        squares = torch.stack([factor.square() for factor in capture.factors]).sum(0)
        missing = batch.factor == 0
        batch.columns["output_grad_norm"] = torch.where(
            missing, torch.nan, (norms_sq / squares.to(norms_sq.dtype)).sqrt()
        )

    def describe(self) -> dict[str, object]:
        """What `run.json` says about the probe."""
        return {"probe": "OutputGradNorm", "when": str(self._steps)}


def _output_tensor(output: Any) -> Tensor | None:
    """The output itself, its `logits`, or the first floating tensor in it."""
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", None) if logits is None else logits
    if isinstance(logits, Tensor):
        return logits
    leaves = output.values() if isinstance(output, Mapping) else tree_leaves(output)
    return next((v for v in leaves if isinstance(v, Tensor) and v.is_floating_point()), None)
