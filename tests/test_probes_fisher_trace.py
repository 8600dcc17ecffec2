"""Fisher traces against the sum over all classes, a closed form and an independent library."""

import math
import warnings

import numpy as np
import pytest
import torch
from cases import C, N, build, cross_entropy
from reference import empirical_traces, fisher_traces
from torch import nn
from torch.utils.data import TensorDataset

from dynamics import open_run
from probes import FisherTrace, Recorder, UnsupportedModelError, every, fisher_trace


def mean_and_stderr(values):
    values = np.asarray(values, dtype=float)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "layer_norm"])
def test_mc_is_unbiased_in_total_and_in_each_block(name):
    case = build(name)
    exact = fisher_traces(case.model, case.x)
    estimates = [fisher_trace(case.model, case.x, seed=seed) for seed in range(40)]
    assert {"total", *estimates[0].blocks} == set(exact)
    for block in exact:
        parts = [e if block == "total" else e.blocks[block] for e in estimates]
        mean, stderr = mean_and_stderr([part.value for part in parts])
        assert stderr > 0
        assert abs(mean - exact[block].mean().item()) <= 3 * stderr, block


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "layer_norm", "batch_norm_eval"])
def test_empirical_is_exact(name):
    case = build(name)
    expected = empirical_traces(case.model, case.x, case.y)
    estimate = fisher_trace(case.model, (case.x, case.y), kind="empirical", batch_size=4)
    mean, stderr = mean_and_stderr(expected["total"])
    assert estimate.value == pytest.approx(mean, rel=1e-5)
    assert estimate.stderr == pytest.approx(stderr, rel=1e-4)
    assert (estimate.n, estimate.kind) == (N, "empirical")
    for block, part in estimate.blocks.items():
        mean, stderr = mean_and_stderr(expected[block])
        assert part.value == pytest.approx(mean, rel=1e-5), block
        assert part.stderr == pytest.approx(stderr, rel=1e-3), block


@pytest.mark.parametrize("kind", ["mc", "empirical"])
def test_blocks_add_up_and_batches_do_not_matter(kind):
    case = build("residual")
    estimates = [
        fisher_trace(case.model, (case.x, case.y), kind=kind, batch_size=size) for size in (1, N)
    ]
    for estimate in estimates:
        parts = sum(part.value for part in estimate.blocks.values())
        assert parts == pytest.approx(estimate.value, rel=1e-6)
    if kind == "empirical":
        assert estimates[0].value == pytest.approx(estimates[1].value, rel=1e-5)


def softmax_regression():
    model = nn.Linear(3, 3)
    model.weight.data = torch.tensor([[1.0, 0.5, -1.0], [0.0, 1.5, 0.3], [-1.0, 0.2, 0.8]])
    model.bias.data = torch.tensor([0.3, -0.2, 0.1])
    return model


def closed_form(model, x):
    """tr F(x) = (‖x‖² + 1)(1 − Σ p²) for a linear softmax classifier with a bias."""
    with torch.no_grad():
        p = model(x).softmax(1)
    return (x.square().sum(1) + 1) * (1 - p.square().sum(1))


def test_the_reference_has_the_closed_form():
    model, x = softmax_regression(), torch.randn(8, 3)
    expected = closed_form(model, x).double()
    torch.testing.assert_close(fisher_traces(model, x)["total"], expected, rtol=1e-5, atol=0)


def test_stderr_covers_the_truth_as_often_as_it_should():
    """Inputs and labels both drawn anew; one standard error covers 68 % of the time."""
    model = softmax_regression()
    generator = torch.Generator().manual_seed(4)
    truth = closed_form(model, torch.randn(200_000, 3, generator=generator)).mean().item()
    covered, values, stderrs = 0, [], []
    for seed in range(150):
        x = torch.randn(100, 3, generator=generator)
        estimate = fisher_trace(model, x, seed=seed)
        covered += abs(estimate.value - truth) <= estimate.stderr
        values.append(estimate.value)
        stderrs.append(estimate.stderr)
    assert 0.58 <= covered / 150 <= 0.78
    assert np.mean(stderrs) == pytest.approx(np.std(values), rel=0.2)
    assert abs(np.mean(values) - truth) <= 3 * np.std(values) / math.sqrt(150)


def test_more_draws_reduce_the_error():
    model = softmax_regression()
    x = torch.ones(400, 3) * 0.2  # only the labels vary, so four draws halve the error
    one, four = (fisher_trace(model, x, draws=draws, seed=1) for draws in (1, 4))
    assert four.stderr == pytest.approx(one.stderr / 2, rel=0.2)
    spread = [fisher_trace(model, x[:20], draws=4, seed=seed).value for seed in range(40)]
    spread_of_one = [fisher_trace(model, x[:20], seed=seed).value for seed in range(40)]
    assert np.std(spread) < 0.75 * np.std(spread_of_one)


def test_curvlinops_finds_the_same_trace():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = pytest.importorskip("curvlinops")
        case = build("mlp", torch.float64)
        for layer in case.model:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        parameters = list(case.model.parameters())
        ggn = curvlinops.GGNLinearOperator(
            case.model, nn.CrossEntropyLoss(), parameters, [(case.x, case.y)]
        )
        columns = torch.eye(ggn.shape[1], dtype=torch.float64)
        theirs = torch.trace(ggn @ columns).item()
    exact = fisher_traces(case.model, case.x)["total"].mean().item()
    assert exact == pytest.approx(theirs, rel=1e-9)
    values = [fisher_trace(case.model, case.x, seed=seed).value for seed in range(40)]
    mean, stderr = mean_and_stderr(values)
    assert abs(mean - theirs) <= 3 * stderr


def test_same_seed_same_value():
    case = build("mlp")
    first, second, other = (fisher_trace(case.model, case.x, seed=s).value for s in (1, 1, 2))
    assert first == second != other


class Fails(nn.Module):
    """Uses randomness, and raises at its second call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2:
            raise KeyError("second call")
        return x + torch.rand(()) + float(np.random.rand())  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, C))
    model.insert(1, Fails() if fails else nn.Identity())
    model[2].eval()
    x, y = torch.randn(N, 5), torch.arange(N) % C
    if not fails:
        cross_entropy(model(x), y).sum().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    modes = [module.training for module in model.modules()]
    keys = [sorted(vars(module)) for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    random_states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    if fails:
        with pytest.raises(KeyError, match="second call"):
            fisher_trace(model, x, batch_size=2)
    else:
        fisher_trace(model, x, batch_size=2)
    for before, p in zip(gradients, model.parameters(), strict=True):
        assert p.grad is None if before is None else torch.equal(p.grad, before)
        assert not p._backward_hooks
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert [module.training for module in model.modules()] == modes
    assert [sorted(vars(module)) for module in model.modules()] == keys
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(random_states[0], torch.get_rng_state())
    assert random_states[1] == np.random.get_state()[1].tolist()  # noqa: NPY002


def test_batch_norm_is_measured_in_eval_mode():
    case = build("batch_norm_eval")
    expected = fisher_trace(case.model, (case.x, case.y), kind="empirical").value
    case.model.train()
    assert fisher_trace(case.model, (case.x, case.y), kind="empirical").value == expected


def test_works_under_no_grad_and_autocast():
    case = build("mlp")
    expected = fisher_trace(case.model, case.x).value
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert fisher_trace(case.model, case.x).value == expected


def test_wrong_requests_are_refused():
    case = build("mlp")
    with pytest.raises(ValueError, match=r"one of mc, empirical.*'exakt'"):
        fisher_trace(case.model, case.x, kind="exakt")
    with pytest.raises(ValueError, match="one of mc, empirical"):
        FisherTrace(data=case.x, kind="exakt")
    with pytest.raises(ValueError, match="needs labels"):
        fisher_trace(case.model, case.x, kind="empirical")
    with pytest.raises(ValueError, match="draws=0"):
        fisher_trace(case.model, case.x, draws=0)
    with pytest.raises(ValueError, match="at least one sample"):
        fisher_trace(case.model, case.x[:0])
    with pytest.raises(ValueError, match="6 inputs and 5 labels"):
        fisher_trace(case.model, (case.x, case.y[:5]))
    with pytest.raises(TypeError, match="got dict"):
        fisher_trace(case.model, {})
    batch_statistics = nn.BatchNorm1d(5, track_running_stats=False)
    with pytest.raises(UnsupportedModelError, match=r"`1` \(BatchNorm1d\)"):
        fisher_trace(nn.Sequential(nn.Linear(5, 5), batch_statistics, nn.Linear(5, C)), case.x)


# The probe


def record(out, probe, n_epochs=None, n_steps=4):
    case = build("layer_norm")
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    with Recorder(out, case.model, [probe]) as recorder:
        for _ in [None] if n_epochs is None else recorder.epochs(n_epochs):
            for _ in range(n_steps):
                losses = case.losses()
                recorder.observe(losses, torch.arange(N), labels=case.y)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    return case, open_run(out).scalars()


@pytest.mark.parametrize(
    ("kind", "name", "source"),
    [("mc", "fisher_trace", "model"), ("empirical", "empirical_fisher_trace", "data")],
)
def test_scalars_say_what_they_are(kind, name, source, tmp_path):
    case = build("layer_norm")
    data = TensorDataset(case.x, case.y)
    case, rows = record(tmp_path / "run", FisherTrace(data=data, kind=kind), n_epochs=3)
    assert set(rows["name"]) == {name}
    assert set(rows["estimator"]) == {kind}
    assert set(rows["label_source"]) == {source}
    assert set(rows["mode"]) == {"eval"}
    assert set(rows["n"]) == {N}
    assert rows.groupby("epoch")["block"].apply(sorted).to_dict() == {
        epoch: ["0", "1", "3", "total"] for epoch in (-1, 0, 1, 2)
    }
    assert rows.groupby("epoch")["step"].unique().explode().tolist() == [0, 4, 8, 12]
    total = rows[rows["block"] == "total"].set_index("epoch")
    parts = rows[rows["block"] != "total"].groupby("epoch")["value"].sum()
    np.testing.assert_allclose(parts, total["value"], rtol=1e-6)
    if kind == "empirical":  # after the last epoch, the model is as it is now
        expected = empirical_traces(case.model, case.x, case.y)["total"].mean().item()
        assert total.loc[2, "value"] == pytest.approx(expected, rel=1e-5)


def test_every_k_epochs_and_every_k_steps(tmp_path):
    x = build("layer_norm").x
    _, rows = record(tmp_path / "epochs", FisherTrace(every(epochs=2), data=x), n_epochs=4)
    assert sorted(rows["epoch"].unique()) == [-1, 1, 3]
    _, rows = record(tmp_path / "steps", FisherTrace(every(steps=3), data=x), n_steps=8)
    assert sorted(rows["step"].unique()) == [0, 3, 6]
    assert (rows["epoch"] == 0).all()
    assert not rows.duplicated(["step", "block"]).any()


def test_measurements_draw_anew(tmp_path):
    case = build("mlp")
    probe = FisherTrace(every(steps=1), data=case.x)
    values = [probe.measure(case.model, step=step, epoch=0)[0].value for step in (0, 1, 1)]
    assert values[0] != values[1] == values[2]
