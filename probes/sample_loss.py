"""Per-sample loss and what else the logits say about each sample."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from probes.batch import ObservedBatch
from probes.probe import Probe

_KEPT_BYTES = 2**18  # larger logits are scored at once: copying them would cost as much


class SampleLoss(Probe):
    """Records, for every presentation of a sample, its loss and five scores of its logits.

    Columns: `loss` (ℓ_i, unreduced and unweighted); with `logits` and `labels` given to `observe`
    also `margin` = z_y − max_{j≠y} z_j, `p_true` = softmax(z)_y, `el2n` = ‖softmax(z) − e_y‖₂,
    `predicted` = argmax z and `correct`. The label y is the one trained on.

    Cost: a softmax and a maximum over the logits, for many batches at once where there are few
    logits; no pass of its own.

    Reference:
        Margin: Pleiss et al., NeurIPS 2020, Sec. 3. EL2N: Paul et al., NeurIPS 2021, Sec. 2.
        p_true: Swayamdipta et al., EMNLP 2020, Sec. 2.
    """

    writes: ClassVar[tuple[str, ...]] = (
        "loss",
        "margin",
        "p_true",
        "el2n",
        "predicted",
        "correct",
    )

    def observe(self, batch: ObservedBatch) -> None:
        """Add the columns to the batch."""
        batch.columns["loss"] = batch.losses.clone()  # the loop may go on to weight them in place
        if batch.logits is None or batch.labels is None:
            return
        if batch.logits.nbytes > _KEPT_BYTES:
            batch.columns |= score_logits(batch.logits, batch.labels)
        else:
            batch.later[_score] = batch.logits.clone(), batch.labels


def _score(batches: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    return score_logits(*map(torch.cat, zip(*batches, strict=True)))


def score_logits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Scores of each sample's logits.

    Args:
        logits: Shape (N, C), C ≥ 2.
        labels: Assigned class of each sample, shape (N,).

    Returns:
        `margin`, `p_true`, `el2n`, `predicted` and `correct`, each of shape (N,).
    """
    logits = logits.detach()
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    target = labels.unsqueeze(1)
    probabilities = logits.softmax(dim=1)
    p_true = probabilities.gather(1, target).squeeze(1)
    residual = probabilities.scatter_add(1, target, -torch.ones_like(probabilities[:, :1]))
    others = logits.scatter(1, target, -torch.inf)
    predicted = logits.argmax(dim=1)
    return {
        "margin": logits.gather(1, target).squeeze(1) - others.amax(dim=1),
        "p_true": p_true,
        "el2n": residual.norm(dim=1),
        "predicted": predicted.to(torch.int32),
        "correct": (predicted == labels).to(torch.int8),
    }
