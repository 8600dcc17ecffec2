"""The Fisher probe leaves training as it was, whatever the model does; and it takes what comes."""

import random

import numpy as np
import pytest
import torch
from cases import C, N, build, cross_entropy
from modules import BODIES, D, Net, T
from torch import nn
from torch.utils.checkpoint import checkpoint

from probes import FisherTrace, Recorder, every, fisher_trace

KINDS = ("exact", "mc", "batch", "empirical")


class Fails(nn.Module):
    """Uses every global randomness, and raises at its k-th call."""

    def __init__(self, call):
        super().__init__()
        self.call, self.calls = call, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.call:
            raise KeyError("forward")
        return x + torch.rand(()) * 0 + float(np.random.rand() + random.random()) * 0  # noqa: NPY002


class RaisesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise KeyError("backward")


class FailsInBackward(nn.Module):
    def forward(self, x):
        return RaisesInBackward.apply(x)


def state(model):
    """Everything about a model and the random states that a probe must leave alone."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    modules = list(model.modules())
    return {
        "grad": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "parameters": [(p.tolist(), p.requires_grad, p._version) for p in model.parameters()],
        "parameter hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "buffers": [(b.tolist(), id(b)) for b in model.buffers()],
        "training": [module.training for module in modules],
        "attributes": [sorted(vars(module)) for module in modules],
        "hooks": [
            [len(getattr(module, kind)) for kind in vars(module) if kind.endswith("hooks")]
            for module in modules
        ],
        "random": (torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()),
        "modes": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
    }


def network(middle):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), middle, nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, C)]
    model = nn.Sequential(*layers)
    model[3].eval()  # flags are not all alike
    model[4].bias.requires_grad_(False)
    x, y = torch.randn(N, 5), torch.arange(N) % C
    return model, x, y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "middle",
    [nn.Identity, lambda: Fails(0), lambda: Fails(1), lambda: Fails(2), FailsInBackward],
)
def test_nothing_is_left_behind(middle, autocast, kind):
    """`Fails(1)` raises in the first forward pass, `Fails(2)` in a later one (mc: over the set)."""
    model, x, y = network(middle())
    fails = isinstance(model[1], FailsInBackward) or getattr(model[1], "call", 0) > 0
    if not fails:
        cross_entropy(model(x), y).sum().backward()
        if isinstance(model[1], Fails):
            model[1].calls = 0
    before = state(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        inside = state(model)["modes"]
        if fails:
            with pytest.raises(KeyError):
                fisher_trace(model, (x, y), kind=kind, batch_size=2)
        else:
            fisher_trace(model, (x, y), kind=kind, batch_size=2, diagonal=kind != "batch")
        assert state(model)["modes"] == inside
    assert state(model) == before


def test_an_error_in_the_pass_of_the_draws_leaves_nothing_either():
    """One forward pass over the probe set in batches of two comes first."""
    model, x, _ = network(Fails(4))
    before = state(model)
    with pytest.raises(KeyError, match="forward"):
        fisher_trace(model, x, batch_size=2)
    assert model[1].calls == 4
    model[1].calls = 0
    assert state(model) == before


def train(tmp_path, probes):
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(True), nn.Dropout(0.3), nn.Linear(8, C)
    )
    x, y = torch.randn(N, 5), torch.arange(N) % C
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Recorder(tmp_path, model, probes(x, y)) as recorder:
        for _ in recorder.epochs(3):
            for _ in range(3):
                losses = cross_entropy(model(x), y)
                recorder.observe(losses, torch.arange(N))
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    return [*model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("when", [None, every(steps=2)])
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_bit_identical(kind, when, tmp_path):
    diagonal = None if kind == "batch" else every(epochs=1)

    def probe(x, y):
        return [FisherTrace(when, data=(x, y), kind=kind, diagonal=diagonal, draws=16)]

    with_probe = train(tmp_path / "with", probe)
    without = train(tmp_path / "without", lambda x, y: [])
    assert all(torch.equal(a, b) for a, b in zip(with_probe, without, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_modes_do_not_matter(kind):
    case = build("mlp")
    options = {"kind": kind, "draws": 16}
    expected = fisher_trace(case.model, (case.x, case.y), **options).value
    with torch.no_grad():
        assert fisher_trace(case.model, (case.x, case.y), **options).value == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fisher_trace(case.model, (case.x, case.y), **options).value == expected
    with torch.inference_mode():
        assert fisher_trace(case.model, (case.x, case.y), **options).value == expected
        made_inside = case.x * 1  # such a tensor cannot be saved for a backward pass
        assert fisher_trace(case.model, (made_inside, case.y), **options).value == expected
    case.model.train()
    assert fisher_trace(case.model, (case.x, case.y), **options).value == expected


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_and_dropout_are_measured_in_eval_mode(kind):
    model, x, y = network(nn.Identity())
    values = set()
    for training in (True, False):
        model.train(training)
        values.add(fisher_trace(model, (x, y), kind=kind, draws=16).value)
    assert len(values) == 1


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, C)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        h = self.first(x).tanh()
        if self.use_reentrant is None:
            return self.head(self.second(h).tanh())
        body = lambda h: self.second(h).tanh()  # noqa: E731
        return self.head(checkpoint(body, h, use_reentrant=self.use_reentrant))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_nothing(kind):
    found = []
    for use_reentrant in (None, False):
        torch.manual_seed(0)
        model, x, y = Checkpointed(use_reentrant), torch.randn(N, 5), torch.arange(N) % C
        found.append(fisher_trace(model, (x, y), kind=kind, draws=16))
    assert found[0].value == pytest.approx(found[1].value, rel=1e-6)
    for block, part in found[0].blocks.items():
        assert part.value == pytest.approx(found[1].blocks[block].value, rel=1e-6), block


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_networks(kind, dtype):
    """bfloat16 has 3 decimal digits, float16 has 4."""
    case, low = build("mlp", torch.float64), build("mlp", dtype)
    options = {"kind": kind, "draws": 16}
    expected = fisher_trace(case.model, (case.x, case.y), **options)
    found = fisher_trace(low.model, (low.x, low.y), **options)
    assert found.value == pytest.approx(expected.value, rel=0.05)
    assert found.weight_norm_sq == pytest.approx(expected.weight_norm_sq, rel=0.01)


class InDouble(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, C)

    def forward(self, x):
        return self.layer(x).double()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_in_float64(kind):
    torch.manual_seed(0)
    model, x, y = InDouble(), torch.randn(N, 5), torch.arange(N) % C
    options = {"kind": kind, "draws": 16}
    found = fisher_trace(model, (x, y), **options).value
    assert found == pytest.approx(fisher_trace(model.double(), (x.double(), y), **options).value)


@pytest.mark.parametrize("kind", ["exact", "mc"])
@pytest.mark.parametrize("name", ["attention", "lstm", "encoder_layer"])
def test_dropout_and_recurrence_in_train_mode_are_put_back(name, kind):
    torch.manual_seed(1)
    model, x = Net(BODIES[name]()).train(), torch.randn(N, T, D)
    before = state(model)
    fisher_trace(model, x, kind=kind, draws=8)
    assert state(model) == before
