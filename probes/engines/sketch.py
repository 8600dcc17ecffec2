"""Unbiased estimates of squared norms from a few random projections of the output gradients.

For a random sign vector r, E‖rᵀ G‖² = ‖G‖². In a layer over sequences or images, projecting the
output gradient to k directions first makes the per-sample gradient k rows high instead of d_out, so
it costs k/d_out of the weight's gradient. The spread over the k directions gives each sample's
standard error. Layers whose exact norm is as cheap (linear over single vectors, scales, biases) are
not sketched.
"""

from typing import Any

import torch
from torch import Tensor, nn

from probes.engines.backpack import BackpackEngine
from probes.engines.capture import NormCapture
from probes.engines.fused import FusedEngine, worth_estimating
from probes.engines.layer_rules import RULES, chunks, conv_gradients
from probes.engines.units import Unit


class Sketch:
    """Draws directions and projects on them.

    Args:
        n_projections: Directions k; the relative standard error of a squared norm is at most
            √(2/k) in each layer, and smaller the more layers and the flatter their spectra.
        seed: Seed of the directions, which are drawn anew for every layer and backward pass.
    """

    def __init__(self, n_projections: int, seed: int) -> None:
        self.k = n_projections
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def is_smaller(self, layer: Any, grad: Tensor) -> bool:
        """Whether projecting makes a layer's per-sample gradients clearly smaller."""
        return worth_estimating(layer, grad) and int(layer.weight.shape[0]) > 2 * self.k

    def estimate(self, layer: Any, source: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms of the weight's gradients, shape (N,), and the variance of each."""
        dtype = torch.promote_types(grad.dtype, torch.float32)
        estimates = self._project(layer, source.to(dtype), grad.to(dtype))
        return estimates.mean(1), estimates.var(1) / self.k

    def _project(self, layer: Any, source: Tensor, grad: Tensor) -> Tensor:
        """One estimate for each sample and direction, (N, k)."""
        signs = self._signs(layer.weight.shape[0], grad)
        if isinstance(layer, nn.Linear):
            n = len(grad)
            projected = grad.reshape(n, -1, grad.shape[-1]) @ signs
            rows = projected.transpose(1, 2) @ source.reshape(n, -1, source.shape[-1])
            return rows.square_().sum(2)
        flat = signs.t() @ grad.flatten(2)
        projected = flat.view(len(grad), self.k, *grad.shape[2:])
        bytes_each = self.k * layer.weight[0].numel() * grad.element_size()
        parts = [
            conv_gradients(layer, source[s], projected[s], n_out=self.k)
            for s in chunks(len(grad), bytes_each)
        ]
        return torch.cat(parts).flatten(2).square_().sum(2)

    def _signs(self, n_out: int, like: Tensor) -> Tensor:
        generator = self._generators.get(like.device)
        if generator is None:
            generator = torch.Generator(like.device).manual_seed(self._seed)
            self._generators[like.device] = generator
        bits = torch.randint(0, 2, (n_out, self.k), generator=generator, device=like.device)
        return (2 * bits - 1).to(like.dtype)


class SketchEngine(BackpackEngine):
    """Like `BackpackEngine`, with estimated norms where exact ones are dear.

    Args:
        model: The network.
        n_projections: Directions of the `Sketch`.
        seed: Its seed.
    """

    def __init__(self, model: nn.Module, *, n_projections: int = 8, seed: int = 0) -> None:
        super().__init__(model)
        self._sketch = Sketch(n_projections, seed)

    def _measure(self, capture: NormCapture, unit: Unit, source: Tensor, grad: Tensor) -> None:
        if "weight" not in unit.parameters or not self._sketch.is_smaller(unit.module, grad):
            super()._measure(capture, unit, source, grad)
            return
        total, capture.variances[unit.block] = self._sketch.estimate(unit.module, source, grad)
        if "bias" in unit.parameters:
            total = total + RULES[type(unit.module)]["bias"](unit.module, source, grad)
        capture.norms_sq[unit.block] = total


class FusedSketchEngine(FusedEngine):
    """Like `FusedEngine`, with estimates beside the plain gradient as one more route of a layer.

    A layer is estimated only where that is faster than its exact norms, which is measured; its
    variance is 0 otherwise.

    Args:
        model: The network.
        n_projections: Directions of the `Sketch`.
        seed: Its seed.
    """

    def __init__(self, model: nn.Module, *, n_projections: int = 8, seed: int = 0) -> None:
        super().__init__(model)
        self.estimate = Sketch(n_projections, seed).estimate
