"""The draws of `kind="mc"`: which inputs are looked at, and which of them are drawn, how often.

Inputs come in waves. A forward pass over a wave tells tr H of each of its inputs, and draws among
them are made in proportion to it. After each look at the error, the next step is the one that gets
to the target with the least work: more draws, or a wave of more inputs first. Where the network is
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
from probes.fisher_passes import Passes, along
from probes.fisher_plan import Plan

_BUDGET = 1024
_FIRST_INPUTS, _FIRST_DRAWS = 256, 64
"""Before the first look at the error; fewer would not tell it well enough to stop."""

_FORWARD_COST = 0.25
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
        sample.extend(whole, budget)
    else:
        # One wave for a diagonal, which adds up draws as they come: those of a wave weigh the same.
        first = whole if plan.diagonal else min(_FIRST_INPUTS, whole)
        sample.extend(first, min(_FIRST_DRAWS, budget))
        while (step := _next_step(plan, sample.values, budget)) is not None:
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
    return passes.add_diagonal(measured.estimate("mc"), float(values.weights[0]))


def _next_step(plan: Plan, values: DrawValues, budget: int) -> tuple[int, int] | None:
    """Inputs and draws, in all, to go on to; None if the target is met or the draws are spent."""
    n, m, whole = values.n_inputs, values.n_draws, len(plan.data)
    if plan.is_met(values) or m >= budget:
        return None
    drawn, spread = _relative_parts(values)
    if not math.isfinite(drawn + spread):
        return whole, budget
    each, allowed = drawn * m, 0.9 * (plan.target_stderr or 0.0) ** 2 + spread / whole
    # Least cost n·c + m with spread/n + each/m = allowed, by Lagrange's multiplier.
    best_n = spread + math.sqrt(spread * each / _FORWARD_COST)
    n_next = int(min(max(best_n / allowed, n), _MOST_GROWTH * n, whole))
    if n_next > 0.7 * whole:
        n_next = whole
    elif n_next < 1.3 * n:
        n_next = n
    left = allowed - spread / n_next
    m_next = each / left if left > 0 else math.inf
    m_next = int(min(max(m_next, m), _MOST_GROWTH * m, budget)) // 2 * 2
    if m_next <= m:  # a new wave needs a pair; otherwise only more draws can help
        m_next = min(m + (2 if n_next > n else _FIRST_DRAWS), budget)
    return n_next, m_next


def _relative_parts(values: DrawValues) -> tuple[float, float]:
    """Variance of the draws, and that of single inputs' traces, over the squared trace."""
    total = values.rows.sum(1)
    mean, parts = values.mean(total), values.parts(total)
    return (parts[0] / mean**2, parts[1] / mean**2) if mean else (0.0, 0.0)


@dataclass
class _Wave:
    """Some inputs, their tr H, and the draws among them."""

    inputs: np.ndarray
    traces: np.ndarray
    order: np.ndarray
    n_draws: int = 0

    def draw(self, m: int, rng: np.random.Generator) -> np.ndarray:
        """Places of m inputs, m even, two in each of m/2 strata; 2k and 2k + 1 are of one."""
        traces = self.traces[self.order]
        cumulative = np.cumsum(traces if traces.any() else np.ones(len(traces)))
        at = (np.repeat(np.arange(m // 2), 2) + rng.random(m)) / (m // 2) * cumulative[-1]
        places = np.searchsorted(cumulative, at, side="right")
        self.n_draws += m
        return self.order[np.minimum(places, len(self.order) - 1)]


class _Sample:
    """The waves so far, and what their draws found."""

    def __init__(self, plan: Plan, passes: Passes) -> None:
        self._plan = plan
        self._passes = passes
        self._rng = np.random.default_rng(plan.seed)
        self._generator = plan.generator()
        self._shuffled = self._rng.permutation(len(plan.data))
        self._waves: list[_Wave] = []
        self._drawn: list[tuple[int, np.ndarray]] = []  # wave, places in it
        self._found: list[np.ndarray] = []

    def extend(self, n: int, m: int) -> None:
        """Go on to n inputs and m draws in all."""
        seen = sum(len(wave.inputs) for wave in self._waves)
        if n > seen:
            self._waves.append(self._look_at(np.sort(self._shuffled[seen:n])))
        ends = np.cumsum([len(wave.inputs) for wave in self._waves]) * m // (2 * n) * 2
        dues = np.diff(ends, prepend=0)
        left = m - sum(wave.n_draws for wave in self._waves)
        for index in reversed(range(len(self._waves))):  # the newest first: it has no draws yet
            wave = self._waves[index]
            least = 0 if wave.n_draws else 2
            due = min(max(int(dues[index]) - wave.n_draws, least), left)
            if due > 0:
                left -= due
                places = wave.draw(due, self._rng)
                self._drawn.append((index, places))
                self._found += self._pass_over(wave.inputs[places])

    @property
    def values(self) -> DrawValues:
        """What the draws found, with the weight of each."""
        n = sum(len(wave.inputs) for wave in self._waves)
        waves = [(self._waves[index], places) for index, places in self._drawn]
        return DrawValues(
            rows=np.concatenate([part[0] for part in self._found]),
            weights=np.concatenate(
                [np.full(len(p), w.traces.sum() / (n * w.n_draws)) for w, p in waves]
            ),
            chosen=np.concatenate([w.inputs[p] for w, p in waves]),
            traces=np.concatenate([w.traces[p] for w, p in waves]),
            all_traces=np.concatenate([wave.traces for wave in self._waves]),
            n=len(self._plan.data),
        )

    @property
    def scale_free(self) -> np.ndarray:
        """Σ_j w_j² g_ij² of each draw."""
        return np.concatenate([part[1] for part in self._found])

    def _look_at(self, inputs: np.ndarray) -> _Wave:
        traces, predicted = [], []
        with torch.no_grad():
            for part, labels in self._rows(inputs):
                output = self._plan.model(part)
                self._plan.check(output, part, labels)
                traces.append(self._plan.output.trace(output, self._plan.mask(labels)))
                predicted.append(output.flatten(1).argmax(1))
        on_host = torch.cat(traces).double().cpu().numpy()
        order = np.lexsort((on_host, torch.cat(predicted).cpu().numpy()))
        return _Wave(inputs, on_host, order)

    def _pass_over(self, inputs: np.ndarray) -> Iterator[np.ndarray]:
        for part, labels in self._rows(inputs):
            output, capture = self._passes.forward(part)
            vectors = self._plan.output.draw(
                output.detach(), self._plan.mask(labels), self._generator
            )
            lengths = vectors.flatten(1).norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)
            yield self._passes.backward(capture, along(output, vectors) / lengths)

    def _rows(self, inputs: np.ndarray) -> Iterator[tuple[Tensor, Tensor | None]]:
        for index in torch.split(torch.from_numpy(inputs), self._plan.batch_size):
            yield self._plan.data.rows(index, self._plan.device)
