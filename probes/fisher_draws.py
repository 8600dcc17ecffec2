"""The draws of `kind="mc"`: which inputs are looked at, and which of them are drawn, how often.

Inputs come in waves. A forward pass over a wave tells tr H of each of its inputs, and the first
draws among them are made in proportion to it; later ones also in proportion to the gain, ‖Jᵀv̂‖²,
that the draws so far predict. After each look at the error, the next step is the one that gets to
the target with the least work: more draws, or a wave of more inputs first. Where the network is
undecided, a few inputs stand for all; where it is sure of most, all have to be looked at to find
the few that matter.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.fisher_estimate import DrawValues, FisherEstimate, Measured
from probes.fisher_gain import Gains, predict_gains
from probes.fisher_passes import Passes, along
from probes.fisher_plan import Plan
from probes.fisher_waves import Choice, Wave, look_at, stacked

_BUDGET = 1024
_FIRST_INPUTS, _FIRST_DRAWS = 256, 64
"""Before the first look at the error; fewer would not tell it well enough to stop."""

_LEAST_DRAWS = 32
"""In a later step; fewer would not pay for looking at the error again."""

_GUIDED_WEIGHT = 4.0
"""Of a draw by predicted gain, where one of the first has 1: those have the larger variance.

Fixed, since weights that follow the values found would bring in a bias."""

_FORWARD_COST = 0.3
"""Of looking at an input, in draws: a forward pass against both passes and the second moments."""

_MOST_GROWTH = 3
"""Most times as many inputs or draws after one look at the error, which is itself uncertain."""


def draw_trace(plan: Plan, passes: Passes) -> FisherEstimate:
    """Estimate a Fisher trace from draws, until the plan's target is met or its draws are spent.

    Args:
        plan: What to estimate.
        passes: Passes over the model.

    Returns:
        The estimate.
    """
    sample, whole = _Sample(plan, passes), len(plan.data)
    budget = max(2, (plan.draws or _BUDGET) // 2 * 2)
    if plan.target_stderr is None:
        sample.extend(whole, _FIRST_DRAWS if budget >= 2 * _FIRST_DRAWS else budget)
        sample.extend(whole, budget)
    else:
        # One wave for a diagonal, which adds up draws as they come: those of a wave weigh the same.
        first = whole if plan.diagonal else min(_FIRST_INPUTS, whole)
        sample.extend(first, min(_FIRST_DRAWS, budget))
        while (step := _next_step(plan, sample, budget)) is not None:
            sample.extend(*step)
    values = sample.values
    measured = Measured(
        blocks=passes.blocks,
        values=values,
        scale_free=sample.scale_free,
        weight_norms_sq=passes.weight_norms_sq(),
        n=whole,
        n_draws=values.n_draws,
        target_met=plan.is_met(values),
    )
    return passes.add_diagonal(measured.estimate("mc"), sample.unit)


def _next_step(plan: Plan, sample: "_Sample", budget: int) -> tuple[int, int] | None:
    """Inputs and draws, in all, to go on to; None if the target is met or the draws are spent."""
    values, whole = sample.values, len(plan.data)
    n, m = values.n_inputs, values.n_draws
    if plan.is_met(values) or m >= budget:
        return None
    drawn, spread = _relative_parts(values)
    if not math.isfinite(drawn + spread):
        return whole, budget
    each = min(sample.further_variance(), drawn * m)
    allowed = 0.9 * (plan.target_stderr or 0.0) ** 2 + spread / whole
    # Least cost n·c + m with spread/n + each/m = allowed, by Lagrange's multiplier.
    best_n = spread + math.sqrt(spread * each / _FORWARD_COST)
    n_next = int(min(max(best_n / allowed, n), _MOST_GROWTH * n, whole))
    if n_next > 0.7 * whole:
        n_next = whole
    elif n_next < 1.3 * n:
        n_next = n
    left = allowed - spread / n_next
    worth = each / drawn if drawn else m  # of the draws made, in further ones
    more = each / left - worth if left > 0 else math.inf
    more = min(max(more, _LEAST_DRAWS), (_MOST_GROWTH - 1) * m)
    return n_next, min(m + int(more) // 2 * 2, budget)


def _relative_parts(values: DrawValues) -> tuple[float, float]:
    """Variance of the draws, and that of single inputs' traces, over the squared trace."""
    total = values.rows.sum(1)
    mean, parts = values.mean(total), values.parts(total)
    return (parts[0] / mean**2, parts[1] / mean**2) if mean else (0.0, 0.0)


@dataclass(frozen=True)
class _Draws:
    """Draws of one step within one wave: how they were made, and what they found."""

    wave: Wave
    first: int  # place of the wave's first input among all that were looked at
    choice: Choice
    weights: np.ndarray  # relative to a draw by tr H alone
    found: np.ndarray

    @property
    def places(self) -> np.ndarray:
        return self.first + self.choice.places

    @property
    def inputs(self) -> np.ndarray:
        return self.wave.inputs[self.choice.places]

    @property
    def traces(self) -> np.ndarray:
        return self.wave.traces[self.choice.places]


class _Sample:
    """The waves so far, and what their draws found."""

    def __init__(self, plan: Plan, passes: Passes) -> None:
        self._plan = plan
        self._passes = passes
        self._rng = np.random.default_rng(plan.seed)
        self._generator = plan.generator()
        self._shuffled = self._rng.permutation(len(plan.data))
        self._waves: list[Wave] = []
        self._draws: list[_Draws] = []

    def extend(self, n: int, m: int) -> None:
        """Go on to n inputs and m draws in all."""
        seen = self._n_inputs
        if n > seen:
            inputs = np.sort(self._shuffled[seen:n])
            self._waves.append(look_at(self._plan, self._passes, inputs))
        sizes = np.array([len(wave.inputs) for wave in self._waves])
        dues = np.diff(np.cumsum(sizes) * m // (2 * n) * 2, prepend=0)
        firsts = np.cumsum(sizes) - sizes
        gains = self._predict()
        weight = _GUIDED_WEIGHT if self._draws else 1.0
        left = m - sum(wave.n_draws for wave in self._waves)
        for index in reversed(range(len(self._waves))):  # the newest first: it has no draws yet
            wave = self._waves[index]
            least = 0 if wave.n_draws else 2
            due = min(max(int(dues[index]) - wave.n_draws, least), left)
            if due > 0:
                left -= due
                self._draw(wave, int(firsts[index]), due, gains, weight)

    def _draw(self, wave: Wave, first: int, m: int, gains: Gains, weight: float) -> None:
        local = gains.inputs[first : first + len(wave.inputs)]
        choice = wave.draw(m, Gains(local, gains.classes), self._rng)
        weights = weight * choice.weights
        parts = self._pass_over(wave.inputs[choice.places], choice.classes, weights)
        found = np.concatenate(list(parts), axis=1)
        self._draws.append(_Draws(wave, first, choice, weights, found))
        wave.n_draws += m
        wave.weight += weight * m

    @property
    def _n_inputs(self) -> int:
        return sum(len(wave.inputs) for wave in self._waves)

    def _unit(self, wave: Wave) -> float:
        """What a relative weight of 1 stands for in the mean over the inputs."""
        return float(wave.traces.sum()) / (self._n_inputs * wave.weight)

    @property
    def unit(self) -> float:
        """That of the only wave; draws of several have no weight in common."""
        return self._unit(self._waves[0])

    @property
    def values(self) -> DrawValues:
        """What the draws found, with the weight of each."""
        draws = self._draws
        return DrawValues(
            rows=np.concatenate([d.found[0] for d in draws]),
            weights=np.concatenate([d.weights * self._unit(d.wave) for d in draws]),
            tilts=np.concatenate([d.choice.tilts for d in draws]),
            chosen=np.concatenate([d.inputs for d in draws]),
            traces=np.concatenate([d.traces for d in draws]),
            all_traces=np.concatenate([wave.traces for wave in self._waves]),
            n=len(self._plan.data),
        )

    @property
    def scale_free(self) -> np.ndarray:
        """Σ_j w_j² g_ij² of each draw."""
        return np.concatenate([d.found[1] for d in self._draws])

    def further_variance(self) -> float:
        """Relative variance of one more draw, by the gains predicted now, as if without strata.

        Of the draws made, with the weights that they would have; and more by as much as a fit to
        them flatters itself.
        """
        gains, values = self._predict(), self.values
        classes = np.concatenate([d.choice.classes for d in self._draws])
        places = np.concatenate([d.places for d in self._draws])
        gain = gains.inputs[places] * gains.classes[classes]
        found, chances = values.rows.sum(1) / gain, values.weights * gain
        first, second = chances @ found, chances @ found**2
        left = max(len(found) - gains.fitted, 1) / len(found)
        return float(second * chances.sum() / first**2 - 1) / left**2

    def _predict(self) -> Gains:
        """Gains of every input looked at; all alike before the first draws."""
        n_classes = self._waves[0].by_class.shape[1]
        if not self._draws:
            return Gains(np.ones(self._n_inputs), np.ones(n_classes))
        return predict_gains(
            stacked([wave.features for wave in self._waves]),
            np.concatenate([d.places for d in self._draws]),
            np.concatenate([d.choice.classes for d in self._draws]),
            n_classes,
            np.concatenate([d.found[0].sum(1) for d in self._draws]),
        )

    def _pass_over(
        self, inputs: np.ndarray, classes: np.ndarray, weights: np.ndarray
    ) -> Iterator[np.ndarray]:
        size = self._plan.batch_size
        towards = torch.split(torch.from_numpy(classes), size)
        roots = torch.split(torch.from_numpy(np.sqrt(weights)), size)
        parts = zip(self._plan.rows(inputs), towards, roots, strict=True)
        for (part, labels), toward, root in parts:
            output, capture = self._passes.forward(part)
            v = self._unit_vectors(output.detach(), labels, toward)
            # By the root of the weight: the diagonal, which adds up squares, then has it whole.
            root = root.to(output.dtype)
            found = self._passes.backward(capture, along(output, v) * root.to(output.device))
            yield found / root.double().square().numpy()[:, None]

    def _unit_vectors(self, output: Tensor, labels: Tensor | None, classes: Tensor) -> Tensor:
        fisher = self._plan.output
        if self._waves[0].by_class.shape[1] > 1:
            return fisher.toward(output, classes.to(output.device))
        v = fisher.draw(output, self._plan.mask(labels), self._generator)
        lengths = v.flatten(1).norm(dim=1).clamp_min(torch.finfo(v.dtype).tiny)
        return v / lengths.view(-1, *[1] * (v.dim() - 1))
