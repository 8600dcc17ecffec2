"""Passes over a probe set that take per-sample moments, and what is gathered on the way."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from probes.engines.capture import NormCapture
from probes.engines.extra_pass import ExtraPass
from probes.engines.second_moments import SecondMomentEngine
from probes.fisher_estimate import FisherEstimate, InputValues, Kind, Measured


class Passes:
    """Forward and backward passes over the model, and what is gathered on the way.

    Args:
        model: The network.
        own_pass: What takes the norms, built with a `SecondMomentEngine`.
        diagonal: Gather the diagonal of F too.
    """

    def __init__(self, model: nn.Module, own_pass: ExtraPass, *, diagonal: bool) -> None:
        self._model = model
        self._own_pass = own_pass
        self._engine = cast("SecondMomentEngine", own_pass.engine)
        self._diagonal = diagonal
        self._gradients: list[Tensor] = []
        self.blocks = self._engine.blocks
        self.units = self._engine.units

    def forward(self, inputs: Tensor) -> tuple[Tensor, NormCapture]:
        """Outputs, and the capture that their norms are taken from."""
        output: Tensor = self._model(inputs)
        return output, self._own_pass.take()

    def backward(
        self,
        capture: NormCapture,
        scores: Tensor,
        *,
        retain_graph: bool = False,
        gradient: bool = False,
    ) -> np.ndarray:
        """Squared norms and Σ_j w_j² g_ij² of each score's gradient, shape (2, n, blocks)."""
        self._engine.scale_free.clear()
        norms_sq = self._own_pass.norms_sq(
            capture, scores, retain_graph=retain_graph, gradient=gradient
        )
        if gradient:
            self._add_up(self._own_pass.summed_gradients)
        none = scores.new_zeros(len(scores))
        found = [
            torch.stack([values.get(block, none) for block in self.blocks], dim=1)
            for values in (norms_sq, self._engine.scale_free)
        ]
        return torch.stack(found).double().cpu().numpy()

    @property
    def are_verified(self) -> bool:
        """Whether the engine's self-test is over."""
        return self._engine.is_verified

    def begin(self) -> None:
        """Drop what has been gathered so far."""
        self._engine.begin(diagonal=self._diagonal)

    def estimate(self, kind: Kind, table: type[InputValues], rows: np.ndarray) -> FisherEstimate:
        """The estimate from one row per input."""
        n = rows.shape[1]
        measured = Measured(self.blocks, table(rows[0]), rows[1], self.weight_norms_sq(), n)
        return self.add_diagonal(measured.estimate(kind), 1 / n)

    def add_diagonal(self, estimate: FisherEstimate, factor: float) -> FisherEstimate:
        """The estimate with the diagonal of F, if that was gathered."""
        diagonal = {name: squares * factor for name, squares in self._engine.squares.items()}
        return replace(estimate, diagonal=diagonal)

    def weight_norms_sq(self) -> list[float]:
        """‖w‖² of each block."""
        parameters = list(self._engine.block_of)
        return block_norms_sq(
            parameters, list(self._engine.block_of.values()), self.blocks
        ).tolist()

    def add_noise_scale(self, estimate: FisherEstimate) -> FisherEstimate:
        """The estimate with ‖G‖² and tr Σ compared, from the same gradients."""
        n = estimate.n
        owners = [self._engine.block_of[p] for p in self._own_pass.parameters]
        means = [g / n for g in self._gradients]
        mean_sq = dict(zip(self.blocks, block_norms_sq(means, owners, self.blocks), strict=True))
        blocks = {
            block: _with_noise_scale(part, mean_sq[block])
            for block, part in estimate.blocks.items()
        }
        whole = _with_noise_scale(estimate, sum(mean_sq.values()))
        return replace(whole, blocks=blocks, parameter_snr=self._parameter_snr(means, n))

    def _parameter_snr(self, means: Sequence[Tensor], n: int) -> float:
        squares = self._engine.squares
        if not squares or n < 2:
            return math.nan
        names = {p: name for name, p in self._model.named_parameters()}
        ratios = []
        for parameter, mean in zip(self._own_pass.parameters, means, strict=True):
            variance = (squares[names[parameter]] / n - mean.square()) * n / (n - 1)
            moving = variance > 0
            ratios.append(mean[moving].square() / variance[moving])
        return float(torch.cat(ratios).mean())

    def _add_up(self, gradients: Sequence[Tensor | None]) -> None:
        found = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(self._own_pass.parameters, gradients, strict=True)
        ]
        if self._gradients:
            found = [total.add_(g) for total, g in zip(self._gradients, found, strict=True)]
        self._gradients = found


def along(output: Tensor, vectors: Tensor) -> Tensor:
    """⟨v, z⟩ of each sample, whose gradient is Jᵀv."""
    return (output * vectors).flatten(1).sum(1)


def block_norms_sq(
    tensors: Sequence[Tensor | None], owners: Sequence[str], blocks: Sequence[str]
) -> np.ndarray:
    """‖·‖² of tensors, added up by block.

    Args:
        tensors: Tensors; None counts for nothing.
        owners: Block of each.
        blocks: All blocks.

    Returns:
        One value for each block.
    """
    totals = dict.fromkeys(blocks, 0.0)
    for tensor, block in zip(tensors, owners, strict=True):
        if tensor is not None:
            totals[block] += float(tensor.detach().double().square().sum())
    return np.array(list(totals.values()))


def _with_noise_scale(estimate: FisherEstimate, mean_sq: float) -> FisherEstimate:
    """With tr Σ / ‖G‖² and its inverse, each part unbiased; `mean_sq` is ‖ḡ‖²."""
    n = estimate.n
    if n < 2:
        return estimate
    spread = n / (n - 1) * (estimate.value - mean_sq)
    signal = mean_sq - spread / n
    return replace(
        estimate,
        noise_scale=spread / signal if signal > 0 else math.nan,
        snr=signal / spread if spread > 0 else math.nan,
    )
