"""A wave of inputs: what one forward pass tells of each, and draws among them by it."""

from dataclasses import dataclass

import numpy as np
import torch

from probes.fisher_gain import Gains, watched_inputs
from probes.fisher_passes import Passes
from probes.fisher_plan import Plan

_TINY = 1e-30
"""In place of 0 in logarithms."""


@dataclass(frozen=True)
class Choice:
    """Inputs and classes drawn, and what makes up for how they were.

    Attributes:
        places: Each draw's input, by its place in the wave.
        classes: Class that each draw's direction points to; 0 where outputs have none.
        weights: Share of (input, class) in tr H over the wave, by the chance that it had.
        tilts: The part of the weight that is due to the choice of the class, given the input.
    """

    places: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    tilts: np.ndarray


@dataclass
class Wave:
    """Some inputs, what a forward pass told of them, and the weight of the draws among them.

    Attributes:
        inputs: Index of each input in the probe set, shape (n,).
        by_class: tr H of each input in parts, one for each class, shape (n, C); C = 1 where outputs
            have no classes to choose from.
        traces: tr H of each input, shape (n,).
        features: What gains are predicted from, shape (n, k).
        order: Places of the inputs, by predicted class and tr H.
        n_draws: Draws so far.
        weight: Sum of what each of them counts for.
    """

    inputs: np.ndarray
    by_class: np.ndarray
    traces: np.ndarray
    features: np.ndarray
    order: np.ndarray
    n_draws: int = 0
    weight: float = 0.0

    def draw(self, m: int, gains: Gains, rng: np.random.Generator) -> Choice:
        """Draw in proportion to each (input, class)'s part in tr H times its predicted gain.

        Draws 2k and 2k + 1 are of one stratum, of m / 2 that are equally likely.

        Args:
            m: Number of draws, even.
            gains: Those predicted, of this wave's inputs.
            rng: Randomness.

        Returns:
            The draws.
        """
        guided = self.by_class * gains.classes
        chances = guided.sum(1) * gains.inputs
        if not chances.any():  # the network is certain of everything, and the trace is 0
            chances = np.ones(len(chances))
        cumulative = np.cumsum(chances[self.order])
        at = (np.repeat(np.arange(m // 2), 2) + rng.random(m)) / (m // 2) * cumulative[-1]
        found = np.searchsorted(cumulative, at, side="right")
        places = self.order[np.minimum(found, len(self.order) - 1)]
        within = np.cumsum(guided[places], axis=1)
        classes = (within < rng.random((m, 1)) * within[:, -1:]).sum(1)
        whole, traces = self.traces.sum(), self.traces[places]
        average = np.divide(guided[places].sum(1), traces, out=np.ones(m), where=traces > 0)
        tilts = average / gains.classes[classes]
        by_input = (cumulative[-1] / whole if whole else 1.0) / (average * gains.inputs[places])
        return Choice(places, classes, by_input * tilts, tilts)


def look_at(plan: Plan, passes: Passes, inputs: np.ndarray) -> Wave:
    """Pass inputs forward, without a graph.

    Args:
        plan: What to estimate.
        passes: Passes over the model.
        inputs: Indices in the probe set.

    Returns:
        What the pass told.
    """
    by_class, predicted, features = [], [], []
    fisher = plan.output
    with torch.no_grad(), watched_inputs(passes.units) as layer_inputs:
        for part, labels in plan.rows(inputs):
            output = plan.model(part)
            plan.check(output, part, labels)
            table = fisher.by_class(output)
            if table is None:
                table = fisher.trace(output, plan.mask(labels)).unsqueeze(1)
            by_class.append(table.double().cpu().numpy())
            flat = output.flatten(1)
            predicted.append(flat.argmax(1).cpu().numpy())
            length = torch.linalg.vector_norm(flat, dim=1, keepdim=True).float()
            seen = [length.clamp_min(_TINY).log(), layer_inputs.take(len(part))]
            features.append(torch.hstack(seen).cpu().numpy())
    parts = np.concatenate(by_class)
    traces = parts.sum(1)
    logs = np.log(np.maximum(traces, _TINY))
    columns = np.column_stack([logs, logs**2, stacked(features)])
    order = np.lexsort((traces, np.concatenate(predicted)))
    return Wave(inputs, parts, traces, columns, order)


def stacked(tables: list[np.ndarray]) -> np.ndarray:
    """Tables one below the other; a layer that was not called in every pass tells nothing."""
    width = min(table.shape[1] for table in tables)
    return np.concatenate([table[:, :width] for table in tables])
