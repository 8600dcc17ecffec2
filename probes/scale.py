"""Reads each sample's factor in the total loss, from a hook on the unreduced losses.

Whatever the loop does between the per-sample losses and `backward()` (mean, importance weights,
GradScaler's scale, division by accumulation steps), the gradient that arrives at ℓ_i is exactly the
factor c_i with which ∇ℓ_i enters the total. Dividing a recorded norm by |c_i| removes all of it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from probes.batch import ObservedBatch


def watch_factor(
    losses: Tensor,
    batch: ObservedBatch,
    begin_backward: Callable[[ObservedBatch], None],
    end_backward: Callable[[], None],
) -> None:
    """Fill in `batch.factor` when a backward pass reaches the losses.

    Several backward passes through the same losses add up, as their gradients do.

    Args:
        losses: The tensor the total loss is built from, shape (N,).
        batch: The batch to fill in.
        begin_backward: Called with the batch each time, before any layer's gradient is there.
        end_backward: Called each time when it is over, unless it fails.
    """

    def done() -> None:
        batch.backward_done = True
        end_backward()

    def add(grad: Tensor) -> None:
        factor = grad.detach().clone() if grad.requires_grad else grad.clone()
        batch.backward_done = False
        engine = torch.autograd.Variable._execution_engine
        engine.queue_callback(done)  # not called when a layer's backward raises
        batch.factor = factor if batch.factor is None else batch.factor + factor
        begin_backward(batch)

    losses.register_hook(add)  # type: ignore[no-untyped-call]  # untyped in torch
