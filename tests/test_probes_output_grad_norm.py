"""`OutputGradNorm`: the gradient of each sample's own loss at the network's output."""

import copy
from dataclasses import dataclass

import pytest
import torch
from cases import C, N
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dynamics import open_run
from dynamics.traces import Status
from probes import GradNorm, OutputGradNorm, Recorder, SampleLoss, UnsupportedModelError, every

IDS = torch.arange(N)
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(3))
Y = torch.arange(N) % C
T = 3


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, C))


def cross_entropy(z, y):
    return F.cross_entropy(z, y, reduction="none")


def focal(z, y):
    p = z.softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    return -((1 - p) ** 2) * p.log()


def by_token(z, y):
    tokens = y.unsqueeze(1).expand(-1, z.shape[1])
    return F.cross_entropy(z.transpose(1, 2), tokens, reduction="none").sum(1)


LOSSES = {
    "cross_entropy": cross_entropy,
    "squared_error": lambda z, y: (z - F.one_hot(y, C)).square().sum(1),
    "binary": lambda z, y: F.binary_cross_entropy_with_logits(
        z, F.one_hot(y, C).float(), reduction="none"
    ).mean(1),
    "focal": focal,
    "by_token": by_token,
}


def reference(z, y, loss):
    """One sample after another, in double precision."""
    norms = []
    for i in range(len(z)):
        own = z[i : i + 1].detach().double().requires_grad_()
        norms.append(torch.autograd.grad(loss(own, y[i : i + 1]).sum(), own)[0].norm().item())
    return norms


def recorded(out, model, losses_of, total=torch.mean, *, probes=None):
    """One batch through the recorder; the column, by sample."""
    with Recorder(out, model, probes or [OutputGradNorm()]) as recorder:
        losses = losses_of(model)
        recorder.observe(losses, IDS)
        total(losses).backward()
    assert not any(m._forward_hooks for m in model.modules())
    rows = open_run(out).samples().set_index("sample_id").loc[IDS.tolist()]
    return rows["output_grad_norm"].tolist(), rows["status"].tolist()


def close(expected, rel=1e-6):
    return pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("name", LOSSES)
def test_it_equals_the_loop_for_any_loss(name, tmp_path):
    model = mlp()
    x = torch.randn(N, T, 5) if name == "by_token" else X
    expected = reference(model(x), Y, LOSSES[name])
    found, status = recorded(tmp_path / "run", model, lambda m: LOSSES[name](m(x), Y))
    assert found == close(expected, 2e-6)
    assert status == [0] * N


WEIGHTS = torch.tensor([0.5, 2.0, -1.0, 0.01, 3.0, 1.0])
TOTALS = {
    "sum": torch.sum,
    "weighted": lambda losses: (WEIGHTS * losses).mean(),
    "loss_scale": lambda losses: 1024 * losses.mean(),
    "squared": lambda losses: losses.square().mean(),
}


@pytest.mark.parametrize("total", TOTALS)
def test_the_factor_in_the_total_loss_does_not_matter(total, tmp_path):
    model = mlp()
    expected = reference(model(X), Y, cross_entropy)
    found, _ = recorded(
        tmp_path / "run", model, lambda m: cross_entropy(m(X), Y), total=TOTALS[total]
    )
    assert found == close(expected)


def test_a_factor_of_zero_is_missing_and_flagged(tmp_path):
    model = mlp()
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 1.0])
    expected = reference(model(X), Y, cross_entropy)
    found, status = recorded(
        tmp_path / "run", model, lambda m: cross_entropy(m(X), Y), lambda ls: (weights * ls).sum()
    )
    for value, flag, weight, norm in zip(found, status, weights.tolist(), expected, strict=True):
        assert (value != value) == (weight == 0)
        assert flag == int(Status.ZERO_WEIGHT) * (weight == 0)
        assert weight == 0 or value == close(norm)


def test_for_softmax_cross_entropy_it_is_el2n(tmp_path):
    model = mlp()
    with Recorder(tmp_path / "run", model, [SampleLoss(), OutputGradNorm()]) as recorder:
        logits = model(X)
        losses = cross_entropy(logits, Y)
        recorder.observe(losses, IDS, logits=logits, labels=Y)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["output_grad_norm"].tolist() == close(rows["el2n"].tolist())


def test_it_bounds_the_full_norm_up_to_one_constant():
    """‖∇ℓ_i‖ ≤ Lρ Ĝ_i; for the last layer alone, ‖∇_W ℓ_i‖² + ‖∇_b ℓ_i‖² = (‖a_i‖² + 1) Ĝ_i²."""
    model = nn.Linear(5, C)
    bounds = reference(model(X), Y, cross_entropy)
    for i, bound in enumerate(bounds):
        gradients = torch.autograd.grad(
            cross_entropy(model(X[i : i + 1]), Y[i].unsqueeze(0)).sum(), [*model.parameters()]
        )
        norm = sum(g.square().sum() for g in gradients).sqrt().item()
        assert norm == pytest.approx(bound * (X[i].square().sum() + 1).sqrt().item(), rel=1e-5)


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


class Returns(nn.Module):
    """The MLP, with its output wrapped."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = mlp(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x), x)


WRAPPERS = {
    "tuple": (lambda z, x: (z, x), lambda out: out[0]),
    "dict": (lambda z, x: {"hidden": x, "logits": z}, lambda out: out["logits"]),
    "dataclass": (lambda z, x: Output(z, x), lambda out: out.logits),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_outputs_that_hold_logits(name, tmp_path):
    wrap, unwrap = WRAPPERS[name]
    model = Returns(wrap)
    expected = reference(unwrap(model(X)), Y, cross_entropy)
    found, _ = recorded(tmp_path / "run", model, lambda m: cross_entropy(unwrap(m(X)), Y))
    assert found == close(expected)


@pytest.mark.parametrize("shape", [(N, 5), (N, T, 5)])  # the output of the second is a view
def test_in_place_operations_on_the_logits_come_after_the_output(shape, tmp_path):
    model, x = mlp(), torch.randn(shape)
    loss = cross_entropy if len(shape) == 2 else by_token
    expected = reference(model(x), Y, lambda z, y: loss(3 * z, y))
    found, _ = recorded(tmp_path / "run", model, lambda m: loss(m(x).mul_(3), Y))
    assert found == close(expected, 2e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_the_model(use_reentrant, tmp_path):
    model, x = mlp(), X.clone().requires_grad_()
    expected = reference(model(X), Y, cross_entropy)
    found, _ = recorded(
        tmp_path / "run",
        model,
        lambda m: cross_entropy(checkpoint(m, x, use_reentrant=use_reentrant), Y),
    )
    assert found == close(expected)


def test_several_backward_passes_through_the_same_losses(tmp_path):
    model = mlp()
    expected = reference(model(X), Y, cross_entropy)

    def total(losses):
        losses.sum().backward(retain_graph=True)
        return (3 * WEIGHTS.abs() * losses).sum()

    found, _ = recorded(tmp_path / "run", model, lambda m: cross_entropy(m(X), Y), total)
    assert found == close(expected, 1e-5)


@pytest.mark.parametrize("backward", ["each", "together"])
def test_gradient_accumulation(backward, tmp_path):
    model = mlp()
    expected = reference(model(X), Y, cross_entropy)
    with Recorder(tmp_path / "run", model, [OutputGradNorm()]) as recorder:
        totals = []
        for rows in (slice(0, 1), slice(1, 3), slice(3, N)):
            losses = cross_entropy(model(X[rows]), Y[rows])
            recorder.observe(losses, IDS[rows])
            totals.append(losses.mean() / 3)
            if backward == "each":
                totals.pop().backward()
        if totals:
            sum(totals).backward()
    rows = open_run(tmp_path / "run").samples().set_index("sample_id")
    assert rows["output_grad_norm"].loc[IDS.tolist()].tolist() == close(expected)


def test_under_autocast(tmp_path):
    model = mlp()
    expected = reference(model(X), Y, cross_entropy)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = recorded(
            tmp_path / "run", model, lambda m: cross_entropy(m(X).float(), Y), lambda ls: ls.mean()
        )
    assert found == close(expected, 0.03)


def train(model, recorder, steps=6):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for step in range(steps):
        losses = cross_entropy(model(X + step), Y)
        if recorder is not None:
            expected.append(reference(copy.deepcopy(model)(X + step), Y, cross_entropy))
            recorder.observe(losses, IDS)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model(X)  # a pass that nobody observes
    return expected


def test_schedule_and_bit_identity_with_batch_norm_in_training(tmp_path):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(True), nn.Linear(6, C))

    plain, model = make(), make()
    train(plain, None)
    probes = [OutputGradNorm(every(steps=2))]
    with Recorder(tmp_path / "run", model, probes, repeats=True) as recorder:
        # the reference's own forward pass moves the statistics of its copy only
        expected = train(model, recorder)
    rows = open_run(tmp_path / "run").samples(repeats=True)
    for step, norms in enumerate(expected):
        found = rows[rows["step"] == step].sort_values("sample_id")["output_grad_norm"]
        if step % 2:
            assert found.isna().all()
        else:
            assert found.tolist() == close(norms, 1e-5)
    for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_beside_the_full_norm(tmp_path):
    model = mlp()
    expected = reference(model(X), Y, cross_entropy)
    probes = [GradNorm(), OutputGradNorm(), SampleLoss()]
    found, _ = recorded(tmp_path / "run", model, lambda m: cross_entropy(m(X), Y), probes=probes)
    assert found == close(expected)


def test_what_does_not_fit_is_refused_with_the_reason(tmp_path):
    model = mlp()
    with pytest.raises(UnsupportedModelError, match="no gradient arrived at the model's output"):
        recorded(tmp_path / "a", model, lambda m: cross_entropy(m[2](m[1](m[0](X))), Y))
    x = torch.randn(N * T, 5)
    with pytest.raises(UnsupportedModelError, match=r"18 rows arrived .* for 6 losses"):
        recorded(tmp_path / "b", model, lambda m: m(x).view(N, T, C).square().sum((1, 2)))
    with pytest.raises(ValueError, match=r"every\(steps=k\)"):
        OutputGradNorm(every(epochs=1))
