"""What a Fisher trace is to be estimated from, and when enough has been drawn."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from probes.fisher_estimate import BatchValues, DrawValues, Kind
from probes.likelihood import Likelihood, OutputFisher, output_fisher
from probes.output_check import check_outputs, is_mask
from probes.probe_set import ProbeSet


@dataclass(frozen=True)
class Plan:
    """What to estimate on which data: the arguments of `fisher_trace`, checked."""

    model: nn.Module
    data: ProbeSet
    kind: Kind
    likelihood: Likelihood
    target_stderr: float | None
    draws: int | None
    batch_size: int
    seed: int
    diagonal: bool

    @functools.cached_property
    def output(self) -> OutputFisher:
        """The Fisher information of the outputs."""
        return output_fisher(self.likelihood)

    def check(self, output: Tensor, inputs: Tensor, labels: Tensor | None) -> None:
        """Refuse outputs and labels that do not go together."""
        check_outputs(
            output,
            labels,
            n=len(inputs),
            likelihood=self.likelihood,
            needs_labels=self.kind == "empirical",
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def rows(self, inputs: np.ndarray) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Inputs of the probe set on the model's device, a pass's worth at a time.

        Yields:
            Inputs, and their labels if there are any.
        """
        for index in torch.split(torch.from_numpy(inputs), self.batch_size):
            yield self.data.rows(index, self.device)

    def generator(self) -> torch.Generator:
        """Randomness of the drawn vectors, on the model's device."""
        return torch.Generator(self.device).manual_seed(self.seed)

    def is_met(self, values: DrawValues | BatchValues) -> bool | None:
        """Whether the target was reached; None if there is none."""
        target = self.target_stderr
        return None if target is None else _relative_error(values) <= target

    def mask(self, labels: Tensor | None) -> Tensor | None:
        """Labels by position; only those can say that a position does not count."""
        return labels if labels is not None and is_mask(labels) else None


def _relative_error(values: DrawValues | BatchValues) -> float:
    total = values.rows.sum(1)
    mean, (_, drawn) = values.mean(total), values.variances(total)
    return math.sqrt(drawn) / mean if mean else 0.0
