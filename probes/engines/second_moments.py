"""Second moments of per-sample gradients entry by entry: Σ_j w_j² g_ij², and Σ_i g_ij².

The norm needs only sums over a layer's gradient; these need its entries, squared. They are formed
for a few samples and a few rows of the weight at a time, so that nothing of the size of the model
times the samples is ever held; the norm comes from the same entries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probes.engines import layer_rules
from probes.engines.backpack import BackpackEngine
from probes.engines.capture import NormCapture
from probes.engines.layer_rules import GRADIENTS, cached_chunks, chunks, conv_gradients
from probes.engines.units import Unit


@dataclass(frozen=True, slots=True)
class _Entries:
    """Gradients of some samples with respect to some entries of a parameter, flattened."""

    rows: slice
    columns: slice
    gradients: Tensor


class SecondMomentEngine(BackpackEngine):
    """Like `BackpackEngine`, with Σ_j w_j² g_ij² beside each norm, and the sum over samples of g².

    Args:
        model: The network.

    Attributes:
        scale_free: Σ_j w_j² g_ij² by block, shape (N,), of the backward pass just made.
        squares: Σ_i g_ij² of each parameter by name, over the passes since `begin`; empty unless
            asked for there.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.scale_free: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}

    def begin(self, *, diagonal: bool) -> None:
        """Forget what was added up so far.

        Args:
            diagonal: Keep `squares` from now on; takes memory like the model itself.
        """
        named = self._parameters.items() if diagonal else ()
        self.squares = {name: _zeros(parameter) for name, parameter in named}

    def _measure(self, capture: NormCapture, unit: Unit, source: Tensor, grad: Tensor) -> None:
        total = _Moments(len(grad), grad)
        for name, parameter in unit.parameters.items():
            squares = self._squares_of(parameter)
            if isinstance(unit.module, nn.Linear) and name == "weight" and grad.dim() == 2:
                total.add_outer(source, grad, parameter, squares)
            elif isinstance(unit.module, nn.Embedding):
                total.add_embedding(unit.module, source, grad, squares)
            else:
                for entries in _form(unit.module, name, parameter, source, grad):
                    total.add(entries, parameter, squares)
        capture.norms_sq[unit.block] = total.norms_sq
        self.scale_free[unit.block] = total.scale_free

    def _square(
        self, capture: NormCapture, parameter: nn.Parameter, rows: slice, gradients: Tensor
    ) -> Tensor:
        part = _Moments(len(gradients), gradients)
        entries = _Entries(slice(None), slice(None), gradients.reshape(len(gradients), -1))
        part.add(entries, parameter, self._squares_of(parameter))
        block = self._owners[self._names[parameter]].block
        n = next(use.n for uses in capture.later.values() for use in uses)
        if block not in self.scale_free:
            self.scale_free[block] = part.scale_free.new_zeros(n)
        self.scale_free[block][rows] += part.scale_free
        return part.norms_sq

    def _squares_of(self, parameter: nn.Parameter) -> Tensor | None:
        squares = self.squares.get(self._names[parameter])
        return None if squares is None else squares.view(-1)


class _Moments:
    """Sums for one block while its gradients are formed piece by piece."""

    def __init__(self, n: int, like: Tensor) -> None:
        self.norms_sq = like.new_zeros(n)
        self.scale_free = like.new_zeros(n)

    def add(self, entries: _Entries, parameter: Tensor, squares: Tensor | None) -> None:
        """Add some entries of a parameter's gradients."""
        weights_sq = parameter.detach().reshape(-1)[entries.columns].to(self.norms_sq.dtype) ** 2
        gradients_sq = entries.gradients.square()
        self.norms_sq[entries.rows] += gradients_sq.sum(1)
        self.scale_free[entries.rows] += gradients_sq @ weights_sq
        if squares is not None:
            squares[entries.columns] += gradients_sq.sum(0)

    def add_outer(
        self, source: Tensor, grad: Tensor, weight: Tensor, squares: Tensor | None
    ) -> None:
        """Add a linear layer over single vectors: its gradients g aᵀ need not be formed."""
        grad_sq, source_sq = grad.square(), source.square()
        self.norms_sq += grad_sq.sum(1) * source_sq.sum(1)
        weights_sq = weight.detach().to(grad.dtype).square()
        self.scale_free += ((source_sq @ weights_sq.t()) * grad_sq).sum(1)
        if squares is not None:
            squares.view_as(weight).addmm_(grad_sq.t(), source_sq)

    def add_embedding(
        self, layer: nn.Embedding, source: Tensor, grad: Tensor, squares: Tensor | None
    ) -> None:
        """Add an embedding: rows of the vocabulary that a sample does not use stay unformed."""
        tokens = source.reshape(len(source), -1)
        grad = grad.reshape(*tokens.shape, -1)
        if layer.padding_idx is not None:
            grad = grad * (tokens != layer.padding_idx).unsqueeze(-1)
        for s in chunks(len(tokens), (tokens[0].numel() ** 2 + 2 * grad[0].numel()) * 4):
            same = (tokens[s].unsqueeze(1) == tokens[s].unsqueeze(2)).to(grad.dtype)
            # Each position holds the whole gradient of its row, and counts as its share of it.
            gradients_sq = (same @ grad[s]).square_() / same.sum(2, keepdim=True)
            self.norms_sq[s] += gradients_sq.sum((1, 2))
            weights_sq = layer.weight.detach()[tokens[s]].to(grad.dtype).square()
            self.scale_free[s] += (gradients_sq * weights_sq).sum((1, 2))
            if squares is not None:
                rows = squares.view_as(layer.weight)
                rows.index_add_(0, tokens[s].reshape(-1), gradients_sq.flatten(0, 1))


def _zeros(parameter: Tensor) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return torch.zeros(parameter.shape, dtype=dtype, device=parameter.device)


def _form(
    layer: Any, name: str, parameter: Tensor, source: Tensor, grad: Tensor
) -> Iterator[_Entries]:
    """Form per-sample gradients of one parameter within the memory budget.

    Yields:
        Gradients of some samples, some entries at a time.
    """
    everything = slice(None)
    if name in GRADIENTS.get(type(layer), {}):
        gradients = GRADIENTS[type(layer)][name](layer, source, grad)
        yield _Entries(everything, everything, gradients.reshape(len(grad), -1))
    elif isinstance(layer, nn.Linear):
        yield from _form_linear(layer, source, grad)
    else:
        for rows in cached_chunks(grad, 2 * parameter.numel() * grad.element_size()):
            gradients = conv_gradients(layer, source[rows], grad[rows])
            yield _Entries(rows, everything, gradients.flatten(1))


def _form_linear(layer: nn.Linear, source: Tensor, grad: Tensor) -> Iterator[_Entries]:
    n, d_in, d_out = len(grad), layer.in_features, layer.out_features
    left, right = grad.reshape(n, -1, d_out), source.reshape(n, -1, d_in)
    bytes_each = 2 * d_in * grad.element_size()
    height = min(d_out, max(1, layer_rules.MEMORY_BUDGET // bytes_each))
    for rows in chunks(n, bytes_each * height):
        for top in range(0, d_out, height):
            gradients = left[rows, :, top : top + height].transpose(1, 2) @ right[rows]
            columns = slice(top * d_in, (top + gradients.shape[1]) * d_in)
            yield _Entries(rows, columns, gradients.flatten(1))
