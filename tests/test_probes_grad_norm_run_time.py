"""What only a backward pass shows to be inexact is refused then; what came before stays."""

import pytest
import torch
from cases import C, N, build
from reference import grad_norms
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss, UnsupportedModelError, every

IDS = torch.arange(N)
X = torch.linspace(-1, 1, N * 5).reshape(N, 5)
Y = torch.arange(N) % C


def cross_entropy(model):
    return F.cross_entropy(model(X), Y, reduction="none")


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.head = nn.Linear(5, C)

    def forward(self, x):
        return self.head(self.inner(self.inner(x).tanh()))


class Functional(UsedTwice):
    def forward(self, x):
        return self.head(F.linear(x, self.inner.weight, self.inner.bias))


class FunctionalToo(UsedTwice):
    """A tied auto-encoder: the layer is called, and its weight is used once more beside it."""

    def forward(self, x):
        return self.head(F.linear(self.inner(x).tanh(), self.inner.weight.t()))


class Folded(UsedTwice):
    def forward(self, x):
        rows = self.inner(torch.stack([x, -x], dim=1).reshape(-1, 5))
        return self.head(rows.reshape(-1, 2, 5).mean(dim=1))


class TimeFirst(UsedTwice):
    def forward(self, x):
        return self.head(self.inner(torch.stack([x, -x])).mean(dim=0))


class Broadcast(UsedTwice):
    def forward(self, x):
        return self.head(x + self.inner(torch.ones(1, 5)))


class OwnLayer(nn.Module):
    """A module without a rule, whose parameter is therefore differentiated with it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(5))


class RandomLayer(OwnLayer):
    def forward(self, x):
        return F.dropout(x, 0.5) @ self.weight


class MixingLayer(OwnLayer):
    def forward(self, x):
        return (x - x.mean(dim=0)) @ self.weight


class Random(UsedTwice):
    layer_class = RandomLayer

    def __init__(self):
        super().__init__()
        self.inner = self.layer_class()

    def forward(self, x):
        return self.head(self.inner(x))


class Mixing(Random):
    layer_class = MixingLayer


@pytest.mark.parametrize(
    "model_class", [Functional, FunctionalToo, Folded, TimeFirst, Broadcast, Random, Mixing]
)
def test_refused_at_run_time_and_losses_stay_readable(model_class, tmp_path):
    model = model_class()
    probes = [SampleLoss(), GradNorm(every(steps=2))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []

    def train():
        with Recorder(tmp_path / "run", model, probes, repeats=True) as recorder:
            for _ in range(4):
                losses = cross_entropy(model)
                seen.append(losses.tolist())
                recorder.observe(losses, IDS)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()

    with pytest.raises(UnsupportedModelError, match=r"`inner"):
        train()
    run = open_run(tmp_path / "run")
    rows = run.samples(repeats=True)
    assert rows["grad_norm"].isna().all()
    assert rows["loss"][rows["step"] == 0].tolist() == pytest.approx(seen[0])
    assert not run.ended_cleanly


@pytest.mark.parametrize("model_class", [Functional, FunctionalToo, Folded, Random, Mixing])
def test_partial_does_not_let_a_wrong_norm_through(model_class, tmp_path):
    """Refused, or taken over the other layers; but never a part of a layer's norm."""
    model = model_class()
    norms = grad_norms(model, X, Y, lambda o, y: F.cross_entropy(o, y, reduction="none"))
    try:
        with Recorder(tmp_path / "run", model, [GradNorm(partial=True)]) as recorder:
            losses = cross_entropy(model)
            recorder.observe(losses, IDS)
            losses.mean().backward()
    except UnsupportedModelError as error:
        assert "`inner" in str(error)  # noqa: PT017 (either outcome is right)
        return
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(norms["head"].tolist(), rel=1e-5)


def test_an_error_that_shows_only_at_the_end_leaves_the_run_marked_as_interrupted(tmp_path):
    model = Functional()

    def train():
        with Recorder(tmp_path / "run", model, [SampleLoss(), GradNorm()]) as recorder:
            losses = cross_entropy(model)
            recorder.observe(losses, IDS)
            losses.mean().backward()

    with pytest.raises(UnsupportedModelError, match=r"`inner.weight` is used outside"):
        train()
    run = open_run(tmp_path / "run")
    assert run.samples()["loss"].notna().all()
    assert not run.ended_cleanly


class FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("out of memory")


def test_a_backward_pass_that_fails_on_the_way_gives_no_norm(tmp_path):
    """Loops that skip a batch after running out of memory go on with the next one."""
    case = build("mlp")
    expected = grad_norms(case.model, case.x, case.y, case.loss)["total"].tolist()
    first, rest = case.model[0], case.model[1:]
    with Recorder(tmp_path / "run", case.model, [SampleLoss(), GradNorm()]) as recorder:
        losses = case.loss(rest(FailsInBackward.apply(first(case.x))), case.y)
        recorder.observe(losses, IDS)
        with pytest.raises(RuntimeError, match="out of memory"):
            losses.mean().backward()
        losses = case.losses()
        recorder.observe(losses, IDS + 100)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples().set_index("sample_id")
    assert rows["loss"].notna().all()
    assert rows["grad_norm"].loc[100:].tolist() == pytest.approx(expected, rel=1e-5)
    assert rows["grad_norm"].loc[: N - 1].isna().all()


def test_parameters_unfrozen_on_the_way_are_not_silently_left_out(tmp_path):
    case = build("frozen")
    with Recorder(tmp_path / "run", case.model, [GradNorm()]) as recorder:
        case.model.requires_grad_(True)
        expected = grad_norms(case.model, case.x, case.y, case.loss)["total"].tolist()
        losses = case.losses()
        recorder.observe(losses, IDS)
        losses.mean().backward()
        try:
            recorder.flush()
        except UnsupportedModelError:
            return
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)


def test_parameters_frozen_on_the_way_are_left_out(tmp_path):
    case = build("mlp")
    with Recorder(tmp_path / "run", case.model, [GradNorm()]) as recorder:
        case.model[0].requires_grad_(False)
        case.model[2].bias.requires_grad_(False)
        expected = grad_norms(case.model, case.x, case.y, case.loss)["total"].tolist()
        losses = case.losses()
        recorder.observe(losses, IDS)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_model_compiled_and_called_before_is_not_silently_empty(tmp_path):
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, C))
    compiled = torch.compile(model, backend="eager")
    compiled(X)  # from here on its layers' new hooks are not looked at

    def train():
        with Recorder(tmp_path / "run", model, [SampleLoss(), GradNorm()]) as recorder:
            losses = cross_entropy(compiled)
            recorder.observe(losses, IDS)
            losses.mean().backward()

    with pytest.raises(UnsupportedModelError, match="compiled"):
        train()
    assert open_run(tmp_path / "run").samples()["loss"].notna().all()


def test_losses_of_another_model_are_refused(tmp_path):
    model, other = nn.Linear(5, C), nn.Linear(5, C)

    def train():
        with Recorder(tmp_path / "run", model, [GradNorm()]) as recorder:
            losses = cross_entropy(other)
            recorder.observe(losses, IDS)
            losses.mean().backward()

    with pytest.raises(UnsupportedModelError, match="do not depend on a parameter"):
        train()


def test_mixing_shows_also_where_the_samples_are_differentiated_a_few_at_a_time(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("probes.engines.layer_rules.MEMORY_BUDGET", 1)
    model = Mixing()

    def train():
        with Recorder(tmp_path / "run", model, [GradNorm()]) as recorder:
            losses = cross_entropy(model)
            recorder.observe(losses, IDS)
            losses.mean().backward()

    with pytest.raises(UnsupportedModelError, match=r"`inner.weight`: single samples"):
        train()
