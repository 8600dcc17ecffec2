"""Which inputs are worth a draw: how far a change of the outputs reaches back into the weights.

A draw of an input finds its *gain*, ‖Jᵀv̂‖². A forward pass tells much of how that differs between
inputs: the gradient of a linear layer is as long as the layer's input times what comes back to it,
and what comes back has passed the active units. Classes differ too, in how their outputs are wired.
So the gains drawn so far are regressed, in logarithms, on the length and the share of positive
entries of the layers' inputs and on the class, and further draws are made in proportion to the
predicted gain. A wrong prediction costs variance; it brings no bias, since every draw is divided by
its probability.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from probes.compiled import graph_break, runs_compiled
from probes.engines.units import Unit

_MOST_LAYERS = 8
"""Layers looked at, spread over the depth: more would need more draws to be told apart."""

_PENALTY = 1.0
"""Of the square of a slope: variance of a draw's logarithm over that of a slope."""

_STILL = 1e-9
"""Standard deviation up to which a feature is a constant."""

_LEAST_SHARE = 0.1
"""Of an average gain, given to every input: no draw weighs more than ten times the average one."""


class LayerInputs:
    """What forward passes tell of each sample at some layers; made by `watched_inputs`."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def take(self, n: int) -> Tensor:
        """Two numbers for each input of a watched layer, in the pass just made, shape (n, 2·uses).

        Inputs whose first axis is not the sample are passed over.
        """
        seen = [values for values in self._seen if len(values) == n]
        self._seen.clear()
        return torch.cat(seen, dim=1) if seen else torch.empty(n, 0)

    def see(self, unit: Unit, module: nn.Module, args: Any) -> None:
        """Keep the log of the length of a layer's input, and its share of positive entries."""
        source = args[0] if args else None
        if isinstance(source, Tensor) and source.is_floating_point() and source.dim() > 1:
            rows = source.detach().movedim(unit.sample_axis, 0).flatten(1)
            length = torch.linalg.vector_norm(rows, dim=1).float()
            active = (rows > 0).float().mean(1)
            self._seen.append(torch.stack([length.clamp_min(1e-30).log(), active], dim=1))


@contextlib.contextmanager
def watched_inputs(units: Sequence[Unit]) -> Iterator[LayerInputs]:
    """Watch the inputs of a model's layers for as long as the context lasts.

    Args:
        units: The layers.

    Yields:
        What collects what they see.
    """
    inputs = LayerInputs()
    see = graph_break(inputs.see) if runs_compiled() else inputs.see
    chosen = np.unique(np.linspace(0, len(units) - 1, _MOST_LAYERS).round().astype(int))
    handles: list[RemovableHandle] = []
    try:
        for unit in (units[index] for index in chosen):
            handles.append(unit.module.register_forward_pre_hook(partial(see, unit)))
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Gains:
    """Predicted gains: that of input i along class c is `inputs[i] * classes[c]`, up to a factor.

    Attributes:
        inputs: One for each input, shape (n,).
        classes: One for each class, shape (C,); C = 1 where outputs have none.
        fitted: How many numbers they were fitted with, in effect.
    """

    inputs: np.ndarray
    classes: np.ndarray
    fitted: float = 0.0


def predict_gains(
    features: np.ndarray, places: np.ndarray, classes: np.ndarray, n_classes: int, found: np.ndarray
) -> Gains:
    """Predict the gains of all inputs and classes from those drawn, by ridge regression of logs.

    Args:
        features: One row per input, shape (n, k).
        places: Row of each draw, shape (m,).
        classes: Class of each draw, shape (m,).
        n_classes: Number of classes; 1 where outputs have none.
        found: ‖Jᵀv̂‖² of each draw, shape (m,).

    Returns:
        The gains, none below a tenth of their average over the draws.
    """
    features = features[:, np.isfinite(features).all(axis=0)]
    spread = features.std(axis=0)
    moving = spread > _STILL
    inputs = (features - features.mean(axis=0))[:, moving] / spread[moving]
    told = np.isfinite(found) & (found > 0)
    if told.sum() < 2:
        return Gains(np.ones(len(features)), np.ones(n_classes))
    x = np.hstack([inputs[places], np.eye(n_classes)[classes]])[told]
    y, centre = np.log(found[told]), x.mean(axis=0)
    slopes, fitted = _ridge(x - centre, y - y.mean())
    of_inputs, of_classes = inputs @ slopes[: inputs.shape[1]], slopes[inputs.shape[1] :]
    return Gains(
        _bounded(of_inputs, of_inputs[places[told]]),
        _bounded(of_classes, of_classes[classes]),
        fitted,
    )


def _ridge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes, and how many there are in effect: the trace of the matrix that smooths y."""
    left, sizes, right = np.linalg.svd(x, full_matrices=False)
    shrunk = sizes / (sizes**2 + _PENALTY)
    return right.T @ (shrunk * (left.T @ y)), float(sizes @ shrunk)


def _bounded(logs: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Gains from their logarithms, over the drawn ones' mean, and no further out than those."""
    gains = np.exp(np.clip(logs, drawn.min(), drawn.max()))
    return gains / np.exp(drawn).mean() + _LEAST_SHARE
