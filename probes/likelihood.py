"""What a network's outputs say about the labels: log-probabilities and their Fisher information.

The Fisher information of the weights is that of the outputs z, pulled back through the network:
F = E_x Jᵀ H J, where H = E_{y∼p(y|z)} ∇_z log p ∇_z log pᵀ is known in closed form. So any vectors
v with E v vᵀ = H give tr F = E_x E_v ‖Jᵀv‖², one backward pass each; the labels of the definition
are only one way to draw them. Here v is drawn with a *fixed* length, ‖v‖² = tr H, which takes out
the variance that a confident network's rare labels bring in:

    softmax     a class c with probability ∝ p_c ‖e_c − p‖², and v along ± (e_c − p)
    Bernoulli   v_d = ± √(p_d(1 − p_d))
    Gaussian    v_d = ± 1 (unit variance)

Outputs with several positions (tokens) have independent labels given the input, so H is
block-diagonal, and random signs keep the positions apart.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from probes.engines.layer_rules import chunks

Likelihood = Literal["softmax", "bernoulli", "gaussian"]
"""What the outputs are: class scores, logits of independent yes/no labels, or means."""

_MOST_CLASSES = 4096
"""Of which each input's probabilities are kept, to choose among them."""

IGNORED = -100
"""Label of a position that does not count, as in `torch.nn.functional.cross_entropy`."""


class OutputFisher(Protocol):
    """The Fisher information H of one kind of output, by its trace and by vectors.

    Outputs are of shape (N, ...). Where labels are given and hold `IGNORED`, those positions count
    for nothing.
    """

    def trace(self, output: Tensor, labels: Tensor | None) -> Tensor:
        """The trace tr H of each sample, shape (N,)."""

    def draw(self, output: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """One vector v for each sample, of the output's shape, with E v vᵀ = H and ‖v‖² = tr H."""

    def by_class(self, output: Tensor) -> Tensor | None:
        """Parts of tr H, shape (N, C), with H = Σ_c part · û_c û_cᵀ; None without such classes."""

    def toward(self, output: Tensor, chosen: Tensor) -> Tensor:
        """The unit vector û_c of each sample's chosen class; only where `by_class` is not None."""

    def columns(self, output: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        """Vectors of the output's shape whose outer products add up to H for every sample."""

    def log_likelihood(self, output: Tensor, labels: Tensor) -> Tensor:
        """Log-likelihood of each sample's labels, up to a constant, shape (N,)."""


def output_fisher(likelihood: Likelihood) -> OutputFisher:
    """The Fisher information of outputs of a kind.

    Args:
        likelihood: Kind of output.

    Returns:
        Its trace, draws, columns and log-likelihood.

    Raises:
        ValueError: If the kind is unknown.
    """
    known: dict[str, OutputFisher] = {
        "softmax": _Softmax(),
        "bernoulli": _Bernoulli(),
        "gaussian": _Gaussian(),
    }
    if likelihood not in known:
        raise ValueError(f"likelihood must be one of {', '.join(known)}, but is {likelihood!r}.")
    return known[likelihood]


class _Softmax:
    """Class scores of shape (N, C), or (N, T, C) for T positions; H = diag(p) − p pᵀ."""

    def trace(self, output: Tensor, labels: Tensor | None) -> Tensor:
        def rows(logits: Tensor) -> Tensor:
            p, rest, _ = _probabilities(logits)
            return (p * rest).sum(1)

        spread = _by_rows(rows, _as_rows(output)).view(output.shape[:-1])
        return _counted(spread, labels).reshape(len(output), -1).sum(1)

    def draw(self, output: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        def rows(logits: Tensor, place: Tensor, sign: Tensor) -> Tensor:
            p, rest, lengths_sq = _probabilities(logits)
            weights = p * lengths_sq
            spread = weights.sum(1, keepdim=True)
            certain = spread <= torch.finfo(p.dtype).tiny  # nothing to draw from, and v is 0
            label = _at_place(weights + certain, place)
            scale = torch.where(certain, 0.0, spread.sqrt() * sign)
            return _unit_vectors(p, rest, lengths_sq, label) * scale

        # All randomness comes before the division into rows, which a memory budget decides.
        logits = _as_rows(output)
        place = torch.rand(
            (len(logits), 1), generator=generator, device=output.device, dtype=torch.float64
        )
        v = _by_rows(rows, logits, place, _signs(logits[:, :1], generator)).view(output.shape)
        return v if labels is None or output.dim() == 2 else _counted(v, labels.unsqueeze(-1))

    def by_class(self, output: Tensor) -> Tensor | None:
        if output.dim() != 2 or output.shape[1] > _MOST_CLASSES:
            return None
        p, _, lengths_sq = _probabilities(output)
        return p * lengths_sq

    def toward(self, output: Tensor, chosen: Tensor) -> Tensor:
        return _unit_vectors(*_probabilities(output), chosen.unsqueeze(1))

    def columns(self, output: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        # H = S Sᵀ with S = diag(√p) − p √pᵀ, whose null vector is √p. A reflection that maps the
        # axis of the likeliest class t to √p leaves C − 1 columns, one for each other class:
        # √p ∘ (e_j − √p_j (√p + e_t) / (1 + √p_t)). Any other t would cancel where p_j is near 1.
        root = _as_rows(output).to(_at_least_float32(output)).softmax(1).sqrt_()
        top = root.argmax(1, keepdim=True)
        mirror = root.scatter_add(1, top, torch.ones_like(root[:, :1]))
        mirror /= mirror.gather(1, top)
        n_classes = output.shape[-1]
        positions = math.prod(output.shape[1:-1])
        for place in range(positions):
            here = torch.arange(len(root), device=root.device) % positions == place
            for j in range(n_classes - 1):
                axis = torch.where(top == j, n_classes - 1, j)
                column = -root.gather(1, axis) * mirror
                column.scatter_add_(1, axis, torch.ones_like(column[:, :1]))
                column *= root * here.unsqueeze(1)
                column = column.view(output.shape)
                yield (
                    column
                    if labels is None or output.dim() == 2
                    else _counted(column, labels.unsqueeze(-1))
                )

    def log_likelihood(self, output: Tensor, labels: Tensor) -> Tensor:
        rows, flat = _as_rows(output).to(_at_least_float32(output)), labels.reshape(-1).long()
        losses = F.cross_entropy(rows, flat, reduction="none", ignore_index=IGNORED)
        return -losses.reshape(len(output), -1).sum(1)


class _Bernoulli:
    """Logits of independent labels in {0, 1}, any shape (N, ...); H = diag(p(1 − p))."""

    def trace(self, output: Tensor, labels: Tensor | None) -> Tensor:
        return _counted(_variance(output), labels).flatten(1).sum(1)

    def draw(self, output: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        return _counted(_variance(output).sqrt_() * _signs(output, generator), labels)

    def by_class(self, output: Tensor) -> None:
        return None

    def toward(self, output: Tensor, chosen: Tensor) -> Tensor:
        raise NotImplementedError

    def columns(self, output: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        return _axes(_counted(_variance(output).sqrt_(), labels))

    def log_likelihood(self, output: Tensor, labels: Tensor) -> Tensor:
        z = output.to(_at_least_float32(output))
        targets = labels.reshape(output.shape).to(z.dtype)
        losses = F.binary_cross_entropy_with_logits(z, targets, reduction="none")
        return -_counted(losses, labels.reshape(output.shape)).flatten(1).sum(1)


class _Gaussian:
    """Means of labels with variance 1, any shape (N, ...); H = I, and the loss is ½‖y − z‖²."""

    def trace(self, output: Tensor, labels: Tensor | None) -> Tensor:
        return _counted(_ones(output), labels).flatten(1).sum(1)

    def draw(self, output: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        return _counted(_signs(output, generator), labels)

    def by_class(self, output: Tensor) -> None:
        return None

    def toward(self, output: Tensor, chosen: Tensor) -> Tensor:
        raise NotImplementedError

    def columns(self, output: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
        return _axes(_counted(_ones(output), labels))

    def log_likelihood(self, output: Tensor, labels: Tensor) -> Tensor:
        z = output.to(_at_least_float32(output))
        losses = 0.5 * (labels.reshape(output.shape).to(z.dtype) - z).square()
        return -_counted(losses, labels.reshape(output.shape)).flatten(1).sum(1)


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, 1 − p and ‖e_c − p‖² of each class, without cancellation where p_c is near 1."""
    p = logits.to(_at_least_float32(logits)).softmax(1)
    top = p.argmax(1, keepdim=True)
    others = p.scatter(1, top, 0.0)
    rest = (1 - p).scatter_(1, top, others.sum(1, keepdim=True))
    squares = p.square()
    without = squares.sum(1, keepdim=True) - squares
    without.clamp_min_(0).scatter_(1, top, others.square_().sum(1, keepdim=True))
    return p, rest, rest.square() + without


def _unit_vectors(p: Tensor, rest: Tensor, lengths_sq: Tensor, label: Tensor) -> Tensor:
    """Along e_c − p in each row, from what `_probabilities` returned and one label c a row."""
    direction = (-p).scatter_(1, label, rest.gather(1, label))
    return direction / lengths_sq.gather(1, label).sqrt_().clamp_min_(torch.finfo(p.dtype).tiny)


def _variance(output: Tensor) -> Tensor:
    z = output.to(_at_least_float32(output))
    return z.sigmoid() * (-z).sigmoid()


def _ones(output: Tensor) -> Tensor:
    return torch.ones_like(output, dtype=_at_least_float32(output))


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
    return bits.mul_(2).sub_(1).to(_at_least_float32(like))


def _axes(scale: Tensor) -> Iterator[Tensor]:
    flat = scale.flatten(1)
    for axis in range(flat.shape[1]):
        column = torch.zeros_like(flat)
        column[:, axis] = flat[:, axis]
        yield column.view(scale.shape)


def _counted(values: Tensor, labels: Tensor | None) -> Tensor:
    """The values, with 0 where the label says that the position does not count."""
    if labels is None or labels.is_floating_point() or labels.dim() < 2:
        return values
    return values * (labels != IGNORED)


def _as_rows(output: Tensor) -> Tensor:
    return output.reshape(-1, output.shape[-1])


def _at_place(weights: Tensor, place: Tensor) -> Tensor:
    """Column in each row that a place in [0, 1) falls on, when each is as wide as its weight."""
    cumulative = weights.cumsum(1, dtype=torch.float64)
    found = torch.searchsorted(cumulative, place * cumulative[:, -1:], right=True)
    return found.clamp_max_(weights.shape[1] - 1)


def _by_rows(function: Callable[..., Tensor], rows: Tensor, *others: Tensor) -> Tensor:
    """Apply a function to a few rows at a time: a vocabulary's probabilities are large."""
    parts = chunks(len(rows), 4 * rows[:1].numel() * 8)
    return torch.cat([function(rows[s], *(other[s] for other in others)) for s in parts])


def _at_least_float32(tensor: Any) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
