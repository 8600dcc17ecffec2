"""Models whose gradient norms would be inexact are refused at once, with every layer named."""

import json

import pytest
import torch
from cases import C, N
from reference import grad_norms
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import GradNorm, Recorder, UnsupportedModelError

IDS = torch.arange(N)
X = torch.linspace(-1, 1, N * 5).reshape(N, 5)
Y = torch.arange(N) % C


def cross_entropy(model):
    return F.cross_entropy(model(X), Y, reduction="none")


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return x * self.factor


class Unsupported(nn.Module):
    """Batch statistics twice, a gradient scaled by frequency, and a layer not initialised yet."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 5, scale_grad_by_freq=True)
        self.norm = nn.BatchNorm1d(5)
        self.inner = nn.Sequential(nn.LazyLinear(5), nn.BatchNorm1d(5, track_running_stats=False))
        self.head = nn.Linear(5, C)


def test_everything_unsupported_is_named_in_one_error(tmp_path):
    with pytest.raises(UnsupportedModelError) as error:
        Recorder(tmp_path / "run", Unsupported(), [GradNorm()]).__enter__()
    message = str(error.value)
    for name in ("`embed` (Embedding)", "`norm` (BatchNorm1d)", "`inner.0`", "`inner.1`"):
        assert name in message
    assert "head" not in message
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(5, track_running_stats=False).eval(),
        nn.BatchNorm1d(5).train(),
        nn.SyncBatchNorm(5),
        nn.LazyLinear(5),
        nn.Embedding(9, 5, scale_grad_by_freq=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_unsupported_layers(layer, tmp_path):
    model = nn.Sequential(nn.Linear(5, 5), layer, nn.Linear(5, C))
    with pytest.raises(UnsupportedModelError, match="`1"):
        Recorder(tmp_path / "run", model, [GradNorm()]).__enter__()


def test_a_model_without_trainable_parameters_is_refused(tmp_path):
    model = nn.Linear(5, C).requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match="no parameter is trainable"):
        Recorder(tmp_path / "run", model, [GradNorm()]).__enter__()


def test_frozen_unsupported_layers_are_no_problem(tmp_path):
    model = nn.Sequential(nn.Linear(5, 5), Scale().requires_grad_(False), nn.Linear(5, C))
    expected = grad_norms(model, X, Y, lambda o, y: F.cross_entropy(o, y, reduction="none"))
    with Recorder(tmp_path / "run", model, [GradNorm()]) as recorder:
        losses = cross_entropy(model)
        recorder.observe(losses, IDS)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected["total"].tolist(), rel=1e-5)


def record_partial(out, model):
    with Recorder(out, model, [GradNorm(partial=True)]) as recorder:
        losses = cross_entropy(model)
        recorder.observe(losses, IDS)
        losses.mean().backward()
    (described,) = json.loads((out / "run.json").read_text())["probes"]
    return open_run(out).samples()["grad_norm"].tolist(), described


def test_partial_says_what_it_covers(tmp_path):
    class ByFrequency(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 5, scale_grad_by_freq=True)
            self.head = nn.Linear(5, C)

        def forward(self, x):
            return self.head(self.embed(IDS) + x)

    model = ByFrequency()
    losses = cross_entropy(model)
    gradients = [
        torch.autograd.grad(loss, [model.head.weight, model.head.bias], retain_graph=True)
        for loss in losses
    ]
    expected = [sum(g.square().sum() for g in pair).sqrt().item() for pair in gradients]
    recorded, described = record_partial(tmp_path / "run", model)
    assert recorded == pytest.approx(expected, rel=1e-5)
    assert described["coverage"] == pytest.approx(24 / (45 + 24))
    assert len(described["left_out"]) == 1
    assert "`embed` (Embedding)" in described["left_out"][0]


def test_partial_cannot_mend_layers_that_mix_samples(tmp_path):
    """Before a BatchNorm in train mode, every layer's gradient holds those of other samples."""
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, C))
    with pytest.raises(UnsupportedModelError, match="`1` \\(BatchNorm1d\\)"):
        record_partial(tmp_path / "run", model)
