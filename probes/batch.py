"""One observed batch: what the loop handed over, and what the probes make of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynamics.traces import Status

Arithmetic = Callable[[Sequence[tuple[Tensor, ...]]], dict[str, Tensor]]
"""From what was kept of each of several batches to columns over the rows of all of them."""


@dataclass(eq=False, slots=True)
class ObservedBatch:
    """What one call of `Recorder.observe` saw, until its backward pass is over.

    Attributes:
        step: Optimiser updates before this batch.
        epoch: Epoch in progress.
        sample_id: Index of each sample in the full training set, shape (N,).
        losses: Unreduced losses, detached, shape (N,).
        logits: Outputs of the network, detached, shape (N, C), if given.
        labels: Labels as trained, shape (N,), if given.
        weights: Importance weights, shape (N,), if given.
        factor: ∂(total loss)/∂ℓ_i, shape (N,), once a backward pass has reached the losses.
        backward_done: Whether the backward pass that brought the factor came to its end.
        columns: Values for the `samples` table, each of shape (N,), on the losses' device.
        later: Arithmetic that makes more columns, put off to be done for many batches at once, and
            what it needs of this one: tensors with N rows that nobody else writes to.
        bits: Status bits of every sample of the batch.
    """

    step: int
    epoch: int
    sample_id: Tensor
    losses: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None
    factor: Tensor | None = None
    backward_done: bool = False
    columns: dict[str, Tensor] = field(default_factory=dict)
    later: dict[Arithmetic, tuple[Tensor, ...]] = field(default_factory=dict)
    bits: int = 0

    def __len__(self) -> int:
        return len(self.losses)

    def column(self, name: str) -> Tensor | None:
        """A column, whose arithmetic is not put off any longer.

        Args:
            name: Name of the column.

        Returns:
            Its values, or None if the batch does not have it.
        """
        for arithmetic in reversed(list(self.later)):
            if name not in self.columns:
                self.columns |= arithmetic([self.later.pop(arithmetic)])
        return self.columns.get(name)

    def relative_weights(self) -> Tensor | None:
        """Importance weights as given, otherwise each factor over the batch's mean factor.

        Returns:
            Shape (N,), or None when no weights were given and no backward pass came.
        """
        if self.weights is not None:
            return self.weights
        return None if self.factor is None else _relative([(self.factor,)])["weight"]

    def add_weight_and_status(self) -> None:
        """Add what every finished batch has: `weight`, if there is one, and `status`."""
        if self.weights is not None:
            self.columns["weight"] = self.weights
        elif self.factor is not None:
            self.later[_relative] = (self.factor,)
        if self.factor is None:
            self.bits |= Status.NO_BACKWARD
        else:
            self.later[_zero_weight] = (self.factor,)


def observed(
    losses: Tensor,
    sample_id: Tensor,
    logits: Tensor | None,
    labels: Tensor | None,
    weights: Tensor | None,
    step: int,
    epoch: int,
) -> ObservedBatch:
    """What a loop hands over as a batch: detached, on the losses' device, ids and labels copied."""
    device = losses.device
    return ObservedBatch(
        step=step,
        epoch=epoch,
        sample_id=sample_id.to(device, torch.int64, copy=True),
        losses=losses.detach(),
        logits=None if logits is None else logits.detach(),
        labels=None if labels is None else labels.to(device, torch.int64, copy=True),
        weights=None if weights is None else weights.detach().to(device),
    )


def _relative(factors: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    relative = torch.cat([factor / factor.mean() for (factor,) in factors])
    is_zero = torch.cat([factor for (factor,) in factors]) == 0
    return {"weight": relative.masked_fill_(is_zero, 0)}


def _zero_weight(factors: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    is_zero = torch.cat([factor for (factor,) in factors]) == 0
    return {"status": is_zero.to(torch.int32) * int(Status.ZERO_WEIGHT)}
