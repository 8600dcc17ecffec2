"""The four estimators of a Fisher trace: exact, mc, batch and empirical, each one pass of its own.

All take squared norms of gradients of ⟨v, z⟩ for some vectors v at the outputs z; they differ in
which vectors, for which inputs, and whether the norms are per sample or of a batch.
"""

import contextlib
import math

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from probes.engines.backpack import BackpackEngine
from probes.engines.extra_pass import ExtraPass, extra_pass
from probes.engines.second_moments import SecondMomentEngine
from probes.engines.units import find_owners, find_problems, find_units, trainable
from probes.errors import UnsupportedModelError
from probes.fisher_draws import draw_trace
from probes.fisher_estimate import (
    BatchValues,
    FisherEstimate,
    InputValues,
    Measured,
)
from probes.fisher_passes import Passes, along, block_norms_sq
from probes.fisher_plan import Plan
from probes.neutral import neutral

_BATCHES = 16
"""Least batches in a pass of `batch`, each of which has one value, however large, to tell."""

_TESTED = 8
"""Inputs that the engine's self-test takes."""

_REMEDY = (
    "The Fisher trace needs every trainable parameter; freeze or replace these layers, or take "
    "kind='batch', which needs no per-sample gradients."
)
_MIXING_REMEDY = "Give these layers running statistics, freeze them, or replace them."


def find_engine(model: nn.Module) -> BackpackEngine:
    """What takes the passes of all kinds but `batch`, refused where it would be inexact.

    Args:
        model: The network.

    Returns:
        An engine for `estimate`.

    Raises:
        UnsupportedModelError: If a layer has no exact per-sample rule; all of them are named.
    """
    with _own_pass(model) as own_pass:
        return own_pass.engine


def estimate(plan: Plan, engine: BackpackEngine | None = None) -> FisherEstimate:
    """Run the estimator that the plan names.

    Args:
        plan: What to estimate.
        engine: Engine of the same model, whose self-test is not repeated once it is over; a new one
            by default, or where parameters have been replaced, frozen or unfrozen.

    Returns:
        The estimate.

    Raises:
        UnsupportedModelError: If a layer has no exact per-sample rule; all of them are named.
    """
    if plan.kind == "batch":
        return _batch(plan)
    with _own_pass(plan.model, engine) as own_pass:
        passes = Passes(plan.model, own_pass, diagonal=plan.diagonal)
        if not passes.are_verified:
            _self_test(plan, passes)
        passes.begin()
        return {"exact": _exact, "mc": draw_trace, "empirical": _empirical}[plan.kind](plan, passes)


def _own_pass(
    model: nn.Module, engine: BackpackEngine | None = None
) -> contextlib.AbstractContextManager[ExtraPass]:
    if engine is not None and {id(p) for p in engine.block_of} != trainable(model):
        engine = None
    return extra_pass(
        model, probe="FisherTrace", remedy=_REMEDY, engine=engine, build=SecondMomentEngine
    )


def _self_test(plan: Plan, passes: Passes) -> None:
    """Have the engine verified on a few inputs, as that takes a pass several times as dear.

    Along random directions, since the draws' may vanish where the network is certain.
    """
    few = torch.arange(min(_TESTED, len(plan.data)))
    inputs, labels = plan.data.rows(few, plan.device)
    output, capture = passes.forward(inputs)
    plan.check(output, inputs, labels)
    generator = plan.generator()
    directions = torch.randn(
        output.shape, generator=generator, device=output.device, dtype=output.dtype
    )
    passes.backward(capture, along(output, directions))


def _exact(plan: Plan, passes: Passes) -> FisherEstimate:
    parts = []
    n_batches = math.ceil(len(plan.data) / plan.batch_size)
    batches = plan.data.batches(plan.batch_size, plan.device)
    for inputs, labels in tqdm(batches, "exact Fisher", n_batches, disable=None, leave=False):
        output, capture = passes.forward(inputs)
        plan.check(output, inputs, labels)
        rows = np.zeros((2, len(inputs), len(passes.blocks)))
        for vectors in plan.output.columns(output.detach(), plan.mask(labels)):
            rows += passes.backward(capture, along(output, vectors), retain_graph=True)
        parts.append(rows)
    return passes.estimate(plan.kind, InputValues, np.concatenate(parts, axis=1))


def _empirical(plan: Plan, passes: Passes) -> FisherEstimate:
    parts = []
    for inputs, labels in plan.data.batches(plan.batch_size, plan.device):
        assert labels is not None  # noqa: S101 (checked by fisher_trace)
        output, capture = passes.forward(inputs)
        plan.check(output, inputs, labels)
        scores = plan.output.log_likelihood(output, labels)
        parts.append(passes.backward(capture, scores, gradient=True))
    estimate = passes.estimate(plan.kind, InputValues, np.concatenate(parts, axis=1))
    return passes.add_noise_scale(estimate)


def _batch(plan: Plan) -> FisherEstimate:
    with neutral(plan.model), torch.enable_grad():
        found = find_problems(plan.model).items()
        mixing = [text for module, text in found if isinstance(module, _BatchNorm)]
        if mixing:
            raise UnsupportedModelError.listing("FisherTrace", mixing, _MIXING_REMEDY)
        if not any(p.requires_grad for p in plan.model.parameters()):
            raise UnsupportedModelError.listing(
                "FisherTrace", ["no parameter is trainable"], _REMEDY
            )
        block_of = {p: u.block for p, u in find_owners(find_units(plan.model)).items()}
        blocks = list(dict.fromkeys(block_of.values()))
        traces = _output_traces(plan)
        n, whole = len(traces), traces.sum()
        chances = traces / whole if whole else np.full(n, 1 / n)
        factors = np.sqrt(1 / (n * chances.clip(np.finfo(np.float64).tiny)))
        budget = max(1, (2 * n if plan.draws is None else plan.draws) // 2)
        size = min(plan.batch_size, math.ceil(min(n, budget) / _BATCHES))
        rng, generator = np.random.default_rng(plan.seed), plan.generator()
        rows: list[np.ndarray] = []
        sizes: list[int] = []
        is_met: bool | None = None
        while (left := budget - sum(sizes)) and not is_met:
            shares = [size] * (min(n, left) // size) or [left]
            for share in shares:
                chosen = rng.choice(n, share, p=chances)
                rows += _two_batch_norms(plan, chosen, factors[chosen], block_of, generator)
                sizes.append(share)
            values = BatchValues(np.stack(rows), np.array(sizes), traces)
            is_met = plan.is_met(values)
    weights = block_norms_sq(list(block_of), list(block_of.values()), blocks)
    measured = Measured(blocks, values, None, weights.tolist(), n, values.n_draws, is_met)
    return measured.estimate("batch")


def _output_traces(plan: Plan) -> np.ndarray:
    """Check the outputs, and find tr H of each input."""
    found = []
    with torch.no_grad():
        for inputs, labels in plan.data.batches(plan.batch_size, plan.device):
            output = plan.model(inputs)
            plan.check(output, inputs, labels)
            found.append(plan.output.trace(output, plan.mask(labels)).double().cpu())
    return torch.cat(found).numpy()


def _two_batch_norms(
    plan: Plan,
    chosen: np.ndarray,
    factors: np.ndarray,
    block_of: dict[nn.Parameter, str],
    generator: torch.Generator,
) -> list[np.ndarray]:
    """B ‖(1/B) Σ_i f_i J_iᵀ v_i‖² by block, for two draws of the vectors v."""
    inputs, labels = plan.data.rows(torch.from_numpy(chosen), plan.device)
    output = plan.model(inputs)
    by_sample = torch.from_numpy(factors)
    owners = list(block_of.values())
    rows = []
    for retain in (True, False):
        vectors = plan.output.draw(output.detach(), plan.mask(labels), generator)
        scores = along(output, vectors)
        total = scores @ by_sample.to(scores.dtype).to(scores.device)
        gradients = torch.autograd.grad(
            total, list(block_of), retain_graph=retain, allow_unused=True
        )
        norms_sq = block_norms_sq(gradients, owners, list(dict.fromkeys(owners)))
        rows.append(norms_sq / len(chosen))
    return rows
