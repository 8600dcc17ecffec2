"""`GradNorm(mode="eval")`: norms in a neutral pass over the batch just seen."""

import copy
import json

import pytest
import torch
from cases import C, N, cross_entropy, squared_error
from reference import grad_norms
from torch import nn

from dynamics import open_run
from dynamics.traces import Status
from probes import GradNorm, Recorder, SampleLoss, UnsupportedModelError, every

IDS = torch.arange(N)
X = torch.randn(N, 5, generator=torch.Generator().manual_seed(6))
Y = torch.arange(N) % C


def normalised():
    """BatchNorm in train mode and dropout: the training's own pass has no per-sample norms."""
    return nn.Sequential(
        nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, C)
    )


def reference_in_eval_mode(model, x=X, y=Y, loss=cross_entropy):
    return grad_norms(copy.deepcopy(model).eval(), x, y, loss)


def train(recorder, model, n_steps, *, x=X, observe=None, before_update=lambda: None):
    """Returns the reference norms at each step, after the forward pass has moved the statistics."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for step in range(n_steps):
        losses = cross_entropy(model(x + step), Y)
        expected.append(reference_in_eval_mode(model, x + step))
        if recorder is not None:
            recorder.observe(losses, IDS, **({"labels": Y} if observe is None else observe))
        losses.mean().backward()
        before_update()
        optimizer.step()
        optimizer.zero_grad()
    return expected


def at_step(run, step, column="grad_norm"):
    rows = run.samples(repeats=True)
    return rows[rows["step"] == step].sort_values("sample_id")[column]


def test_norms_are_those_of_the_model_in_eval_mode(tmp_path):
    model = normalised()
    probe = GradNorm(every(steps=2), mode="eval", blocks=True)
    with Recorder(tmp_path / "run", model, [SampleLoss(), probe], repeats=True) as recorder:
        expected = train(recorder, model, 5)
    run = open_run(tmp_path / "run")
    for step in range(5):
        if step % 2:
            assert at_step(run, step).isna().all()
            continue
        norms = expected[step]
        assert at_step(run, step).tolist() == pytest.approx(norms["total"].tolist(), rel=1e-5)
        for block in ("0", "1", "4"):
            recorded = at_step(run, step, f"grad_norm/{block}").tolist()
            assert recorded == pytest.approx(norms[block].tolist(), rel=1e-4, abs=1e-7)
    (described,) = [
        probe
        for probe in json.loads((run.path / "run.json").read_text())["probes"]
        if probe["probe"] == "GradNorm"
    ]
    assert described["mode"] == "eval"
    assert described["when"] == "every(steps=2)"


def test_training_is_bit_identical(tmp_path):
    ends = []
    for recorded in (False, True):
        torch.manual_seed(0)
        model = normalised()
        if recorded:
            probes = [GradNorm(mode="eval")]
            with Recorder(tmp_path / "run", model, probes, repeats=True) as recorder:
                train(recorder, model, 20)
        else:
            train(None, model, 20)
        ends.append([*model.parameters(), *model.buffers(), torch.get_rng_state()])
        assert all(module.training for module in model.modules())
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_weight_of_zero_does_not_matter(tmp_path):
    model = normalised()
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 1.0])
    with Recorder(tmp_path / "run", model, [GradNorm(mode="eval")]) as recorder:
        losses = cross_entropy(model(X), Y)
        expected = reference_in_eval_mode(model)["total"].tolist()
        recorder.observe(losses, IDS, labels=Y)
        (weights * losses).mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)
    assert rows["status"].tolist() == [int(Status.ZERO_WEIGHT) * (w == 0) for w in weights.tolist()]


def test_a_loss_of_ones_own(tmp_path):
    model = normalised()
    targets = torch.randn(N, C)

    def losses_of(output, labels):
        return squared_error(output, targets[labels])

    probe = GradNorm(mode="eval", losses=losses_of)
    with Recorder(tmp_path / "run", model, [probe]) as recorder:
        losses = squared_error(model(X), targets)
        expected = reference_in_eval_mode(model, X, targets, squared_error)["total"].tolist()
        recorder.observe(losses, IDS, labels=IDS)  # the labels say which target
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_an_unobserved_pass_leaves_nothing_behind(steps, tmp_path):
    model = normalised()
    probe = GradNorm(every(steps=steps), mode="eval")
    with Recorder(tmp_path / "run", model, [probe], repeats=True) as recorder:
        expected = train(recorder, model, 4, before_update=lambda: model(3 * X))
    run = open_run(tmp_path / "run")
    for step in range(4):
        if step % steps:
            assert at_step(run, step).isna().all()
        else:
            norms = expected[step]["total"].tolist()
            assert at_step(run, step).tolist() == pytest.approx(norms, rel=1e-5)


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mode must be one of train, eval, but is 'test'"):
        GradNorm(mode="test")
    model = normalised()
    with (
        Recorder(tmp_path / "labels", model, [GradNorm(mode="eval")]) as recorder,
        pytest.raises(ValueError, match="needs labels"),
    ):
        train(recorder, model, 1, observe={})
    probe = GradNorm(mode="eval", losses=lambda output, labels: output.sum())
    with (
        Recorder(tmp_path / "shape", model, [probe]) as recorder,
        pytest.raises(ValueError, match=r"one loss per sample, shape \(6,\)"),
    ):
        train(recorder, model, 1)
    assert all(module.training for module in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def test_what_has_no_rule_in_eval_mode_either_is_refused_before_training(tmp_path):
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, track_running_stats=False))
    with pytest.raises(UnsupportedModelError, match=r"`1` \(BatchNorm1d\)"):
        Recorder(tmp_path / "run", model, [GradNorm(mode="eval")]).__enter__()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_ride_along_names_the_way_out(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"GradNorm\(mode='eval', when=every\(steps="):
        Recorder(tmp_path / "run", normalised(), [GradNorm()]).__enter__()
