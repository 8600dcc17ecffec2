"""Modules that no list of layers mentions, and parameters used more than once: exact as well."""

import pytest
import torch
from cases import C, N
from modules import BODIES, CubeLayer, D, EmbeddingTied, Net, T
from reference import grad_norms
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import GradNorm, Recorder, UnsupportedModelError, every

IDS = torch.arange(N)
Y = torch.arange(N) % C


def build(name, dtype=torch.float64):
    torch.manual_seed(1)
    model = Net(BODIES[name]()).to(dtype)
    return model, torch.randn(N, T, D, dtype=dtype)


def losses_of(output, labels):
    return F.cross_entropy(output, labels, reduction="none")


@pytest.mark.parametrize("engine", ["backpack", "fused"])
@pytest.mark.parametrize("name", BODIES)
def test_norms_are_exact(name, engine, tmp_path):
    model, x = build(name)
    twin = build("checkpointed")[0] if name == "checkpointed_reentrant" else model
    expected = grad_norms(twin, x, Y, losses_of)["total"]
    probe = GradNorm(engine=engine)
    with Recorder(tmp_path / "run", model, [probe]) as recorder:
        for _ in range(2):  # the second pass is past the self-test
            losses = losses_of(model(x), Y)
            recorder.observe(losses, IDS)
            losses.mean().backward()
            recorder.end_epoch()
            recorder.begin_epoch(recorder.epoch + 1)
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(2 * expected.tolist(), rel=1e-5)


def token_losses(output, tokens):
    return F.cross_entropy(output.transpose(1, 2), tokens, reduction="none").sum(1)


def test_an_embedding_tied_to_the_head(tmp_path):
    torch.manual_seed(0)
    model = EmbeddingTied().double()
    tokens = torch.randint(0, 7, (N, T))
    expected = grad_norms(model, tokens, tokens, token_losses)["total"]
    with Recorder(tmp_path / "run", model, [GradNorm()]) as recorder:
        losses = token_losses(model(tokens), tokens)
        recorder.observe(losses, IDS)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_recurrent_state_as_the_output_is_refused_by_name(tmp_path):
    model = nn.LSTM(D, C, batch_first=True)
    x = torch.randn(N, T, D)
    recorder = Recorder(tmp_path / "run", model, [GradNorm()])

    def train():
        with recorder:
            output, (state, _) = model(x)
            losses = losses_of(output[:, -1] + state[0], Y)
            recorder.observe(losses, IDS)
            losses.mean().backward()

    with pytest.raises(NotImplementedError, match="`LSTM` passes a gradient on through more than"):
        train()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit says that it will go
def test_torchscript_is_refused_by_name(tmp_path):
    model = nn.Sequential(torch.jit.script(nn.Linear(D, D)), nn.Linear(D, C))
    with pytest.raises(NotImplementedError, match=r"`0` \(RecursiveScriptModule\) is TorchScript"):
        Recorder(tmp_path / "run", model, [GradNorm()]).__enter__()


@pytest.mark.parametrize("engine", ["backpack", "fused"])
def test_layers_unfrozen_and_frozen_on_the_way(engine, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C))
    x = torch.randn(N, D)
    model[0].requires_grad_(False)
    expected = []
    with Recorder(tmp_path / "run", model, [GradNorm(every(steps=1), engine=engine)]) as recorder:
        for trainable in (False, True, False):
            model[0].requires_grad_(trainable)
            expected.append(grad_norms(model, x, Y, losses_of)["total"])
            recorder.begin_epoch(len(expected) - 1)
            losses = losses_of(model(x), Y)
            recorder.observe(losses, IDS)
            losses.mean().backward()
            recorder.end_epoch()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(torch.cat(expected).tolist(), rel=1e-5)


class FunctionalLinear(nn.Module):
    """What users write: their own parameters, used by a function."""

    def __init__(self):
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.eye(D)), nn.Parameter(torch.zeros(D))

    def forward(self, x):
        return F.linear(x, self.kernel, self.shift)


class Squash(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class ThreeKinds(nn.Module):
    """A module with `F.linear` inside, a custom autograd function and a scripted part."""

    def __init__(self, scripted):
        super().__init__()
        self.own, self.cube = FunctionalLinear(), CubeLayer()
        self.inner = nn.Sequential(torch.jit.script(scripted), nn.Tanh())

    def forward(self, x):
        return self.inner(self.cube(self.own(x)))


def record_three_kinds(out, scripted, engine, **kwargs):
    torch.manual_seed(1)
    model = Net(ThreeKinds(scripted))
    x = torch.randn(N, T, D)
    with Recorder(out, model, [GradNorm(engine=engine, blocks=True, **kwargs)]) as recorder:
        for _ in recorder.epochs(2):  # the second pass is past the self-test
            losses = losses_of(model(x), Y)
            recorder.observe(losses, IDS)
            (1024 * losses).mean().backward()
    expected = torch.zeros(N)
    for i in range(N):
        loss = losses_of(model(x[i : i + 1]), Y[i : i + 1]).sum()
        parameters = [p for name, p in model.named_parameters() if "inner" not in name]
        gradients = torch.autograd.grad(loss, parameters)
        expected[i] = sum(g.square().sum() for g in gradients).sqrt()
    return open_run(out).samples(), expected.tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit says that it will go
@pytest.mark.parametrize("engine", ["backpack", "fused"])
def test_three_kinds_that_no_list_mentions_are_exact_together(engine, tmp_path):
    rows, expected = record_three_kinds(tmp_path / "run", Squash(), engine)
    assert rows["grad_norm"].tolist() == pytest.approx(2 * expected, rel=1e-5)
    blocks = {column for column in rows if column.startswith("grad_norm/")}
    assert blocks == {"grad_norm/body.own", "grad_norm/body.cube", "grad_norm/head"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("engine", ["backpack", "fused"])
def test_of_three_kinds_the_scripted_one_with_parameters_is_refused_by_name(engine, tmp_path):
    with pytest.raises(UnsupportedModelError) as error:
        record_three_kinds(tmp_path / "run", nn.Linear(D, D), engine)
    assert str(error.value).count("  - ") == 1
    assert "`body.inner.0` (RecursiveScriptModule) is TorchScript" in str(error.value)
    rows, expected = record_three_kinds(tmp_path / "partial", nn.Linear(D, D), engine, partial=True)
    assert rows["grad_norm"].tolist() == pytest.approx(2 * expected, rel=1e-5)
