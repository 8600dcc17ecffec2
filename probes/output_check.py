"""Whether a network's outputs and the labels are what a likelihood can be taken of."""

from typing import Any

import torch
from torch import Tensor

from probes.likelihood import IGNORED, Likelihood


def check_outputs(
    output: Any, labels: Tensor | None, *, n: int, likelihood: Likelihood, needs_labels: bool
) -> None:
    """Refuse outputs or labels that would be broadcast into something else, or fail obscurely.

    Args:
        output: What the model returned.
        labels: Labels of the same inputs, if there are any.
        n: Number of inputs.
        likelihood: Kind of output.
        needs_labels: Whether the labels' values are used, and not only which ones are ignored.

    Raises:
        ValueError: If they do not go together; says what to change.
    """
    if not (isinstance(output, Tensor) and output.is_floating_point()):
        kind = (
            f"a tensor of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        )
        raise ValueError(
            f"The model must return a tensor of real outputs, but returned {kind}. Wrap it in a "
            "module that returns the logits alone."
        )
    shape = tuple(output.shape)
    if output.dim() < 2 or (likelihood == "softmax" and output.dim() > 3):
        wanted = "(N, C), or (N, T, C) for T positions" if likelihood == "softmax" else "(N, D)"
        raise ValueError(
            f"likelihood={likelihood!r} takes outputs of shape {wanted}, but the model returned "
            f"{shape}. {_reshaped(output, likelihood)}"
        )
    if len(output) != n:
        raise ValueError(
            f"The first axis of the outputs must count the samples, but {n} inputs gave outputs of "
            f"shape {shape}."
        )
    if labels is not None and (needs_labels or is_mask(labels)):
        _check_labels(output, labels, likelihood, needs_labels)


def is_mask(labels: Tensor) -> bool:
    """Whether labels are by position, so that `IGNORED` can say that one does not count."""
    return labels.dim() > 1 and not labels.is_floating_point()


def _reshaped(output: Tensor, likelihood: str) -> str:
    if output.dim() > 3:
        return "Flatten the positions into one axis and put the classes last, as in (N, T, C)."
    if output.dim() == 0:
        return "Return the outputs of the samples, not their sum or mean."
    if likelihood == "softmax":
        return (
            "For one logit of a yes/no label take likelihood='bernoulli', and let the model return "
            "(N, 1) with .unsqueeze(1)."
        )
    return "Let it return (N, 1), with .unsqueeze(1)."


def _check_labels(output: Tensor, labels: Tensor, likelihood: str, needs_labels: bool) -> None:
    is_softmax = likelihood == "softmax"
    expected = tuple(output.shape[:-1] if is_softmax else output.shape)
    given = tuple(labels.shape)
    if given != expected and not (expected == (*given, 1) and not is_softmax):
        what = "one class index for each position" if is_softmax else "one label for each output"
        raise ValueError(
            f"likelihood={likelihood!r} with outputs of shape {tuple(output.shape)} takes {what}, "
            f"shape {expected}, but got labels of shape {given}."
            + (" Turn one-hot labels into indices with .argmax(-1)." if is_softmax else "")
        )
    if not needs_labels:
        return
    if is_softmax and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise ValueError(
            f"likelihood='softmax' takes class indices, but got labels of {labels.dtype}. Turn "
            "them into indices with .long()."
        )
    counted = labels if labels.is_floating_point() else labels[labels != IGNORED]
    top = output.shape[-1] - 1 if is_softmax else 1
    if likelihood != "gaussian" and counted.numel() and not _within(counted, top):
        low, high = counted.min().item(), counted.max().item()
        raise ValueError(
            f"likelihood={likelihood!r} takes labels from 0 to {top}, or {IGNORED} for what does "
            f"not count, but they go from {low:g} to {high:g}."
        )


def _within(labels: Tensor, top: int) -> bool:
    return bool((labels >= 0).all() and (labels <= top).all())
