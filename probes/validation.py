"""Checks what a loop hands over, before anything of it is recorded."""

import numpy as np
import torch
from torch import Tensor

from probes.roster import KnownIds


def check_batch(
    losses: Tensor,
    sample_id: Tensor,
    logits: Tensor | None,
    labels: Tensor | None,
    weights: Tensor | None,
    known: KnownIds | None,
    repeats: bool,
) -> None:
    """Refuse a batch that cannot be what was meant.

    Values are only looked at where they are on the CPU: on a GPU that would wait for the device.

    Args:
        losses: Unreduced losses.
        sample_id: Sample ids.
        logits: Outputs, if given.
        labels: Labels, if given.
        weights: Importance weights, if given.
        known: Which ids exist, if a roster was given.
        repeats: Whether a sample may be in the batch twice.

    Raises:
        ValueError: With what was expected, what came and how to mend it.
    """
    if losses.dim() != 1:
        raise ValueError(
            f"observe needs one loss per sample, a tensor of shape (N,), but got shape "
            f"{tuple(losses.shape)}. Compute the loss with reduction='none', give that to observe, "
            "and call backward on its mean."
        )
    n = len(losses)
    for name, tensor in (("sample_id", sample_id), ("labels", labels), ("weights", weights)):
        if tensor is not None and tuple(tensor.shape) != (n,):
            raise ValueError(
                f"`{name}` has shape {tuple(tensor.shape)}, but there are {n} losses. Give one "
                "value per sample, in the order of the losses."
            )
    if logits is not None and (logits.dim() != 2 or len(logits) != n or logits.shape[1] < 2):
        raise ValueError(
            f"`logits` has shape {tuple(logits.shape)}, but should be ({n}, C) with C ≥ 2: one row "
            "of class scores per loss. Leave logits away for other outputs; the loss is recorded."
        )
    for name, tensor in (("sample_id", sample_id), ("labels", labels)):
        if tensor is not None and (tensor.is_floating_point() or tensor.is_complex()):
            raise ValueError(f"`{name}` must be integers, but is {tensor.dtype}.")
    if labels is not None and labels.is_cpu:
        _check_labels(labels, None if logits is None else logits.shape[1])
    if sample_id.is_cpu:
        _check_ids(sample_id.numpy(), known, repeats)


def _check_labels(given: Tensor, n_classes: int | None) -> None:
    if not given.numel():
        return
    labels = given.to(torch.int64).numpy()
    if labels.view(np.uint64).max() < (n_classes or 2**63):  # negative ones are beyond that
        return
    bad = np.flatnonzero((labels < 0) | (labels >= (n_classes or np.inf)))
    if n_classes is None:
        raise ValueError(
            f"Label {labels[bad[0]]} at position {bad[0]} of the batch is negative; labels are "
            "numbered from 0."
        )
    raise ValueError(
        f"Label {labels[bad[0]]} at position {bad[0]} of the batch is out of range: the logits "
        f"have {n_classes} classes, so labels go from 0 to {n_classes - 1}. Re-number the "
        "labels, or widen the last layer."
    )


def _check_ids(sample_id: np.ndarray, known: KnownIds | None, repeats: bool) -> None:
    if not len(sample_id):
        return
    if repeats and known is None and sample_id.min() >= 0:
        return
    ordered = np.sort(sample_id)  # answers both questions
    if ordered[0] < 0 or (known is not None and not known.has_all(ordered)):
        unknown = sample_id[sample_id < 0] if known is None else known.unknown(sample_id)
        rest = "" if known is None else f"; the roster names {known.n} samples"
        raise ValueError(
            f"sample_id {unknown[0]} is out of range{rest}. Ids are indices into the full training "
            "set: wrap that with with_sample_ids, before any Subset or split of it."
        )
    if not repeats and (ordered[1:] == ordered[:-1]).any():
        values, counts = np.unique(sample_id, return_counts=True)
        raise ValueError(
            f"sample_id {values[counts > 1][0]} comes {counts.max()} times in one batch. If you "
            "sample with replacement, say so with Recorder(..., repeats=True); otherwise the ids "
            "are not those of the samples: take them from the item, as with_sample_ids does."
        )
