"""Gradient norms of a fixed set of samples, in passes of the probe's own: for `GradNorm(data=…)`.

They become rows of `scalars`, not of `samples`: a row of `samples` is a presentation of a sample in
training, with the loss it had there, and a measurement beside training is none. It would clash with
the sample's own row of that epoch, and count as a repeat.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from probes.batch import ObservedBatch
from probes.engines.extra_pass import extra_pass
from probes.probe import Scalar
from probes.probe_set import ProbeSet


class ProbeSetNorms:
    """Stands where `GradNorm` takes its norms of batches, and takes none of those.

    Args:
        data: The set, with labels.
        losses: From the model's output and the labels to one loss per sample, shape (N,).
        remedy: What the user can do about a layer without a rule.
        batch_size: Samples per pass.

    Raises:
        ValueError: If the set has no labels.
    """

    def __init__(
        self,
        data: Any,
        losses: Callable[[Any, Tensor], Tensor],
        *,
        remedy: str,
        batch_size: int = 256,
    ) -> None:
        self.armed = False
        self._set = ProbeSet(data, probe="GradNorm")
        if self._set.labels is None:
            raise ValueError(
                "GradNorm(data=...) computes each sample's loss, so it needs labels: "
                "data=(inputs, labels), or a data set of such items."
            )
        self._losses = losses
        self._remedy = remedy
        self._batch_size = batch_size

    def attach(self, model: nn.Module) -> None:
        """Refuse, before training begins, layers that have no rule in eval mode either."""
        with extra_pass(model, probe="GradNorm", remedy=self._remedy):
            pass

    def measure(self, model: nn.Module, *, blocks: bool) -> Iterable[Scalar]:
        """Norms of the set now.

        Args:
            model: The network.
            blocks: Also for each layer.

        Yields:
            The mean with its standard error, of each layer too if asked for, and every sample's.
        """
        device = next(model.parameters()).device
        parts = []
        with extra_pass(model, probe="GradNorm", remedy=self._remedy) as own_pass:
            for inputs, labels in self._set.batches(self._batch_size, device):
                output = model(inputs)
                capture = own_pass.take()
                losses = self._losses(output, cast("Tensor", labels))
                parts.append(own_pass.norms_sq(capture, losses))
        norms_sq = {block: torch.cat([part[block] for part in parts]) for block in parts[0]}
        norms = torch.stack(list(norms_sq.values())).sum(0).sqrt()
        yield _mean("total", norms)
        if blocks:
            yield from (_mean(block, squared.sqrt()) for block, squared in norms_sq.items())
        for sample_id, norm in zip(self._set.sample_ids.tolist(), norms.tolist(), strict=True):
            yield _scalar(norm, f"sample {sample_id}", n=1)

    def forget(self) -> None:
        """Nothing is kept of a step."""

    def detach(self) -> None:
        """Nothing stays on the model."""

    def observe(self, batch: ObservedBatch) -> None:
        """Batches are not looked at."""

    def begin_backward(self, batch: ObservedBatch) -> None:
        """Nor are their backward passes."""

    def take(self, batch: ObservedBatch) -> None:
        """No norms of batches."""

    def describe(self) -> dict[str, object]:
        """What `run.json` says beside the probe's options."""
        return {"coverage": 1.0, "left_out": [], "n": len(self._set)}


def _mean(block: str, norms: Tensor) -> Scalar:
    n = len(norms)
    stderr = norms.double().std().item() / math.sqrt(n) if n > 1 else None
    return _scalar(norms.double().mean().item(), block, n=n, stderr=stderr)


def _scalar(value: float, block: str, *, n: int, stderr: float | None = None) -> Scalar:
    return Scalar(
        "grad_norm",
        value,
        block=block,
        stderr=stderr,
        n=n,
        estimator="exact",
        label_source="data",
        mode="eval",
    )
