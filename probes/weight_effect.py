"""Whether importance weights still do anything: what they get of the gradient, what they change."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from probes.batch import ObservedBatch
from probes.neutral import neutral
from probes.probe import Probe, Scalar
from probes.probe_set import ProbeSet
from probes.schedule import Schedule, every


class WeightEffect(Probe):
    """Records what importance weights do to the gradient and to predictions, per epoch.

    Over the batches since the last measurement, with weights w_i and groups = classes as trained:

    - `weight_share`: Σ_{i∈g} w_i / Σ_i w_i,
    - `weighted_gradient_share`: Σ_{i∈g} w_i‖∇ℓ_i‖ / Σ_i w_i‖∇ℓ_i‖, if `GradNorm` records too,
    - `effective_sample_size`: (Σ w_i)² / Σ w_i² (Kish), with the number of samples as n,

    and, on each evaluation set, `predicted_frac`: the fraction of inputs assigned to each class.
    Blocks are `class <c>` and `<set>: class <c>`. Standard errors: linearised ratio for the shares,
    binomial for the fractions.

    Cost: one forward pass over the evaluation sets at each measurement; the model is in eval mode.

    Args:
        evaluation: Inputs by name, such as in-class test, off-class and random-noise inputs.
        class_weights: Weight of each class, shape (C,), if the loop's loss weights classes; weights
            given to `observe`, or read off the backward pass, are used otherwise.
        when: Schedule; before the first epoch and after each one by default.
        batch_size: Inputs per pass.

    Reference:
        Byrd and Lipton, ICML 2019, Sec. 3 (fractions). Kish, Survey Sampling, 1965 (sample size).
    """

    needs: ClassVar[tuple[str, ...]] = ("grad_norm",)
    needs_whole_model: ClassVar[bool] = True  # a pass of rank 0 alone would wait for the others

    def __init__(
        self,
        evaluation: Mapping[str, Any] | None = None,
        *,
        class_weights: Tensor | Sequence[float] | None = None,
        when: Schedule | None = None,
        batch_size: int = 512,
    ) -> None:
        self.when = when or every(epochs=1)
        self._sets = {
            name: ProbeSet(data, probe=f"WeightEffect, set {name!r},")
            for name, data in (evaluation or {}).items()
        }
        self._class_weights = None if class_weights is None else torch.as_tensor(class_weights)
        self._batch_size = batch_size
        self._weights: _GroupSums | None = None
        self._gradients: _GroupSums | None = None

    def observe(self, batch: ObservedBatch) -> None:
        """Give the batch its class weights, if the loop gave none.

        Raises:
            ValueError: If there are labels without a class weight.
        """
        if self._class_weights is None or batch.weights is not None or batch.labels is None:
            return
        if batch.logits is not None and batch.logits.shape[1] != len(self._class_weights):
            raise ValueError(
                f"WeightEffect got class_weights for {len(self._class_weights)} classes, but the "
                f"logits have {batch.logits.shape[1]}. Give one weight per class."
            )
        batch.weights = self._class_weights.to(batch.losses.device)[batch.labels]

    def finish(self, batch: ObservedBatch) -> None:
        """Add the batch to the sums of its groups."""
        weight = batch.relative_weights()
        if batch.factor is None or weight is None or batch.labels is None or batch.logits is None:
            return
        n_classes = batch.logits.shape[1]
        self._weights = self._weights or _GroupSums(n_classes, weight.device)
        self._weights.add(weight, batch.labels)
        norm = batch.column("grad_norm")
        if norm is not None:
            self._gradients = self._gradients or _GroupSums(n_classes, weight.device)
            weighted = torch.where(weight == 0, torch.zeros_like(norm), weight * norm)
            self._gradients.add(weighted, batch.labels)

    def measure(self, model: nn.Module, *, step: int, epoch: int) -> list[Scalar]:
        """Close the epoch's sums and run the evaluation sets.

        Returns:
            One value per group, the effective sample size, and one per set and class.
        """
        scalars = []
        if self._weights is not None:
            scalars += self._weights.shares("weight_share")
            scalars.append(self._weights.effective_sample_size())
        if self._gradients is not None:
            scalars += self._gradients.shares("weighted_gradient_share")
        self._weights = self._gradients = None
        with neutral(model), torch.no_grad():
            for name, probe_set in self._sets.items():
                scalars += self._predicted_fractions(model, name, probe_set)
        return scalars

    def _predicted_fractions(self, model: nn.Module, name: str, data: ProbeSet) -> list[Scalar]:
        device = next(model.parameters()).device
        counts: Tensor | None = None
        for inputs, _ in data.batches(self._batch_size, device):
            logits = model(inputs)
            found = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
            counts = found if counts is None else counts + found
        n = len(data)
        return [
            Scalar(
                "predicted_frac",
                count / n,
                block=f"{name}: class {c}",
                stderr=math.sqrt(count / n * (1 - count / n) / n),
                n=n,
                mode="eval",
            )
            for c, count in enumerate([] if counts is None else counts.tolist())
        ]

    def describe(self) -> dict[str, object]:
        """What `run.json` says about the probe."""
        weights = None if self._class_weights is None else self._class_weights.tolist()
        sets = {name: len(data) for name, data in self._sets.items()}
        return {
            "probe": "WeightEffect",
            "when": str(self.when),
            "evaluation": sets,
            "class_weights": weights,
        }


class _GroupSums:
    """Count, sum and sum of squares of a per-sample quantity by class, on the device."""

    def __init__(self, n_groups: int, device: torch.device) -> None:
        self._sums = torch.zeros(3, n_groups, dtype=torch.float64, device=device)

    def add(self, values: Tensor, groups: Tensor) -> None:
        usable = torch.isfinite(values)
        values = torch.where(usable, values, torch.zeros_like(values)).double()
        rows = torch.stack([usable.double(), values, values.square()])
        self._sums.index_add_(1, groups, rows)

    def shares(self, name: str) -> list[Scalar]:
        counts, sums, squares = self._sums.tolist()
        total = sum(sums)
        scalars = []
        for group, (count, part) in enumerate(zip(counts, sums, strict=True)):
            if not count:
                continue
            share = part / total if total else math.nan
            spread = squares[group] * (1 - share) ** 2 + (sum(squares) - squares[group]) * share**2
            stderr = math.sqrt(spread) / total if total else math.nan
            scalars.append(
                Scalar(name, share, block=f"class {group}", stderr=stderr, n=int(sum(counts)))
            )
        return scalars

    def effective_sample_size(self) -> Scalar:
        counts, sums, squares = self._sums.sum(1).tolist()
        size = sums**2 / squares if squares else math.nan
        return Scalar("effective_sample_size", size, n=int(counts))
