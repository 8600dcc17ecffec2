"""Unbiased estimates of squared norms from a few random projections of the output gradients.

For a random sign vector r, E‖rᵀ G‖² = ‖G‖². In a layer over sequences or images, projecting the
output gradient to k directions first makes the per-sample gradient k rows high instead of d_out, so
it costs k/d_out of the weight's gradient. The spread over the k directions gives each sample's
standard error. Layers whose exact norm is as cheap (linear over single vectors, scales, biases) are
not sketched.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from probes.engines.backpack import BackpackEngine, NormCapture
from probes.engines.fused import FusedEngine
from probes.engines.layer_rules import BATCH_NORMS, CONVOLUTIONS, RULES, chunks, conv_gradients
from probes.engines.units import Unit


class SketchEngine(BackpackEngine):
    """Like `BackpackEngine`, with estimated norms where exact ones are dear.

    Args:
        model: The network.
        n_projections: Directions k; the relative standard error of a squared norm is at most
            √(2/k) in each layer, and smaller the more layers and the flatter their spectra.
        seed: Seed of the directions, which are drawn anew in every backward pass.
    """

    def __init__(self, model: nn.Module, *, n_projections: int = 8, seed: int = 0) -> None:
        super().__init__(model)
        self._k = n_projections
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def _measure(self, capture: NormCapture, unit: Unit, source: Tensor, grad: Tensor) -> None:
        weight = unit.parameters.get("weight")
        if weight is None or not _worth_it(unit.module, grad, self._k):
            super()._measure(capture, unit, source, grad)
            return
        estimates = self._project(unit.module, source, grad)
        total = estimates.mean(1)
        if "bias" in unit.parameters:
            total = total + RULES[type(unit.module)]["bias"](unit.module, source, grad)
        capture.norms_sq[unit.block] = total
        capture.variances[unit.block] = estimates.var(1) / self._k

    def _project(self, layer: Any, source: Tensor, grad: Tensor) -> Tensor:
        """One estimate of the weight's squared norm for each sample and direction, (N, k)."""
        signs = self._signs(layer.weight.shape[0], grad)
        if isinstance(layer, nn.Linear):
            n = len(grad)
            projected = grad.reshape(n, -1, grad.shape[-1]) @ signs
            rows = projected.transpose(1, 2) @ source.reshape(n, -1, source.shape[-1])
            return rows.square_().sum(2)
        flat = signs.t() @ grad.flatten(2)
        projected = flat.view(len(grad), self._k, *grad.shape[2:])
        bytes_each = self._k * layer.weight[0].numel() * grad.element_size()
        parts = [
            conv_gradients(layer, source[s], projected[s], n_out=self._k)
            for s in chunks(len(grad), bytes_each)
        ]
        return torch.cat(parts).flatten(2).square_().sum(2)

    def _signs(self, n_out: int, like: Tensor) -> Tensor:
        generator = self._generators.get(like.device)
        if generator is None:
            generator = torch.Generator(like.device).manual_seed(self._seed)
            self._generators[like.device] = generator
        bits = torch.randint(0, 2, (n_out, self._k), generator=generator, device=like.device)
        return (2 * bits - 1).to(like.dtype)


class FusedSketchEngine(SketchEngine, FusedEngine):
    """A sketch that lets BatchNorm's own backward take its norms; gradients equal to rounding."""

    fused_kinds: ClassVar[set[type[nn.Module]]] = set(BATCH_NORMS)


def _worth_it(layer: Any, grad: Tensor, k: int) -> bool:
    if isinstance(layer, nn.Linear):
        return grad.dim() > 2 and grad[0, ..., 0].numel() > 1 and layer.out_features > 2 * k
    is_plain = type(layer) in CONVOLUTIONS and layer.groups == 1
    return is_plain and layer.out_channels > 2 * k
