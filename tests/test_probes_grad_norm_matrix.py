"""Norms are exact on networks that nobody wrote down: drawn layers, inputs, losses and engines."""

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from random_networks import build, networks, sample_losses
from reference import grad_norms

from probes import GradNorm
from probes.batch import ObservedBatch
from probes.scale import watch_factor

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections"),  # both say that they are slow
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]

TOTALS = {
    "mean": lambda losses, weights: losses.mean(),
    "sum": lambda losses, weights: losses.sum(),
    "weighted": lambda losses, weights: (weights * losses).mean(),
    "scaled": lambda losses, weights: 1024 * losses.mean(),
}
BACKWARDS = ("one batch", "micro-batches", "micro-batches, one backward")


def reference(model, x, y):
    model.plain = True
    try:
        return grad_norms(model, x, y, sample_losses)["total"]
    finally:
        model.plain = False


def recorded(model, x, y, engine, total, backward):
    """The norms that the probe finds, in double precision, as the recorder would drive it."""
    probe = GradNorm(engine=engine)
    probe.attach(model)
    batches, losses_of = [], []
    weights = torch.linspace(-1, 2, len(x), dtype=torch.float64) + 0.1
    splits = (
        [slice(0, 1), slice(1, None)] if len(x) > 1 and backward != "one batch" else [slice(None)]
    )
    try:
        for rows in splits:
            probe.begin_step(0)
            losses = sample_losses(model(x[rows]), y[rows])
            batch = ObservedBatch(0, 0, torch.arange(len(losses)), losses.detach())
            probe.observe(batch)
            watch_factor(losses, batch, probe.begin_backward, lambda: None)
            batches.append(batch)
            losses_of.append(TOTALS[total](losses, weights[rows]))
            if backward != "micro-batches, one backward":
                losses_of.pop().backward()
        if losses_of:
            sum(losses_of).backward()
        for batch in batches:
            batch.add_weight_and_status()
            probe.finish(batch)
    finally:
        probe.detach()
        model.zero_grad()
    return torch.cat([batch.column("grad_norm") for batch in batches])


def check(network, engine, total, backward):
    for spec in network.parts:
        event(spec.kind)
    model, x, y = build(network)
    expected = reference(model, x, y)
    for _ in range(2):  # the self-test is over after the first
        found = recorded(model, x, y, engine, total, backward)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())


drawn = given(
    network=networks(),
    engine=st.sampled_from(["backpack", "fused"]),
    total=st.sampled_from(list(TOTALS)),
    backward=st.sampled_from(BACKWARDS),
)


@settings(max_examples=250)
@drawn
def test_norms_of_drawn_networks_are_exact(network, engine, total, backward):
    check(network, engine, total, backward)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=5000)
@drawn
def test_norms_of_many_drawn_networks_are_exact(network, engine, total, backward):
    check(network, engine, total, backward)
