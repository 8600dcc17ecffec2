"""From losses per token to one loss per sequence, which is what `Recorder.observe` takes."""

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["sum", "mean"]


def sequence_losses(token_losses: Tensor, mask: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """Loss of each sequence from the losses of its tokens, without padding.

        token_losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        losses = sequence_losses(token_losses, labels != -100)     # (N,)
        recorder.observe(losses, sample_id)

    ℓ_i = Σ_t m_it ℓ_it, the negative log-likelihood of the sequence, or with `mean` that divided by
    Σ_t m_it. What is masked contributes exactly nothing, to the loss and to its gradient, whatever
    value it has. The loss of a sequence without a token is 0, and so is its gradient.

    Padding leaves a sequence's gradient norm alone only if the network keeps its real positions
    from seeing it: causal attention with the padding on the right, or attention masks.

    Args:
        token_losses: Unreduced loss of each token, shape (N, T), or (N, …).
        mask: True where a token counts, same shape: `labels != -100`, or `attention_mask.bool()`
            shifted as the labels are.
        reduction: Sum over a sequence's tokens, or their mean; `sum` by default.

    Returns:
        Shape (N,), with the graph of `token_losses`.

    Raises:
        ValueError: If the shapes differ, the mask is not boolean, or the reduction is unknown.
    """
    if token_losses.dim() < 2 or mask.shape != token_losses.shape:
        raise ValueError(
            f"sequence_losses needs losses and mask of one shape (N, T), but got "
            f"{tuple(token_losses.shape)} and {tuple(mask.shape)}. Compute the loss with "
            "reduction='none', and shift the mask as the labels are shifted."
        )
    if mask.dtype != torch.bool:
        raise ValueError(
            f"sequence_losses needs a boolean mask, True where a token counts, but got {mask.dtype}"
            ". For labels, give labels != -100; for an attention mask, attention_mask.bool()."
        )
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be sum or mean, but is {reduction!r}.")
    total = torch.where(mask, token_losses, 0).flatten(1).sum(1)
    if reduction == "sum":
        return total
    return total / mask.flatten(1).sum(1).clamp(min=1)
