"""One observed batch: what the loop handed over, and what the probes make of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynamics.traces import Status


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

    def __len__(self) -> int:
        return len(self.losses)

    def relative_weights(self) -> Tensor | None:
        """Importance weights as given, otherwise each factor over the batch's mean factor.

        Returns:
            Shape (N,), or None when no weights were given and no backward pass came.
        """
        if self.weights is not None:
            return self.weights
        if self.factor is None:
            return None
        relative = self.factor / self.factor.mean()
        return torch.where(self.factor == 0, torch.zeros_like(relative), relative)

    def add_weight_and_status(self) -> None:
        """Add the columns of every finished batch: `weight`, if there is one, and `status`."""
        weight = self.relative_weights()
        if weight is not None:
            self.columns["weight"] = weight
        if self.factor is None:
            status = torch.full_like(self.sample_id, int(Status.NO_BACKWARD), dtype=torch.int32)
        else:
            status = (self.factor == 0).to(torch.int32) * int(Status.ZERO_WEIGHT)
        self.columns["status"] = status
