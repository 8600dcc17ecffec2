"""What a forward pass leaves for its backward pass to fill in, and where hooks are hung."""

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from probes.engines.differentiate import Use
from probes.engines.units import Unit

NO_TASK = -1
"""What torch reports for the running backward pass where there is none."""


class NormCapture:
    """Squared per-sample norms of one forward pass, filled in by its backward pass.

    Attributes:
        norms_sq: Squared norm of c_i ∇ℓ_i over each block's parameters, shape (N,) each.
        variances: Variance of each squared norm, where it is estimated.
        reached: Parameters that a gradient has arrived at, with it while they are to be verified.
        explained: Gradients of parameters to be verified, as the uses seen by the hooks give them.
        problems: What went wrong on the way, one line each.
        is_alone: Whether no other batch shared the backward pass.
        coarsest: The least precise type that a layer's gradient came in.
        outer: Norms whose product is a linear layer's, until they are multiplied all at once.
    """

    def __init__(self) -> None:
        self.norms_sq: dict[str, Tensor] = {}
        self.variances: dict[str, Tensor] = {}
        self.reached: dict[str, Tensor | None] = {}
        self.explained: dict[str, Tensor] = {}
        self.problems: list[str] = []
        self.is_alone = True
        self.coarsest = torch.float64
        self.forwards: Counter[Unit] = Counter()
        self.replays: Counter[Unit] = Counter()
        self.fused: set[nn.Parameter] = set()
        self.later: dict[Unit, list[Use]] = defaultdict(list)
        self.outer: dict[Unit, tuple[Tensor, Tensor]] = {}

    def count(self, unit: Unit) -> None:
        """Count a use: in the forward pass, or in a checkpoint's replay of a part of it."""
        is_replay = torch._C._current_graph_task_id() != NO_TASK
        (self.replays if is_replay else self.forwards)[unit] += 1

    def uses(self, unit: Unit) -> int:
        """How often the unit was used; a replay counts where the first run had no graph."""
        return self.forwards[unit] or self.replays[unit]

    def clear(self) -> None:
        """Forget the norms, for another backward pass through the same forward pass."""
        self.norms_sq.clear()
        self.variances.clear()
        self.reached.clear()
        self.explained.clear()
        self.replays.clear()
        self.later.clear()
        self.outer.clear()
        self.fused.clear()


def behind_views(output: Tensor, *, is_known: bool) -> tuple[Tensor, torch.Size, Tensor]:
    """Where to hang a hook on a layer's output, that output's shape, and what to return for it.

    An in-place operation on a view (a linear layer's output over sequences is one) takes the view's
    place in the graph, and its hook with it. A hook on the tensor behind the view stays; of modules
    that may use that tensor otherwise too, the output is copied.

    Args:
        output: The output.
        is_known: Whether it comes from a layer with a rule, which uses nothing behind it otherwise.

    Returns:
        The tensor to hang the hook on, the shape of the output, and the output to return.
    """
    if not output._is_view():
        return output, output.shape, output
    behind = output._base
    if is_known and behind is not None and behind.requires_grad:
        whole = behind.numel() == output.numel()
        if whole and behind.is_contiguous() and output.is_contiguous():
            return behind, output.shape, output
    output = output.clone()
    return output, output.shape, output


def detached(value: Any) -> Any:
    """A tensor without its graph; anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value


def to_float(value: Any, dtype: torch.dtype) -> Any:
    """A floating tensor in another precision; anything else as it is."""
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value
