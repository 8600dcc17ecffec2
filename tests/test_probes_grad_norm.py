"""Recorded gradient norms are those of a loop over samples, whatever the loop puts on the loss."""

import warnings

import numpy as np
import pytest
import torch
from cases import NAMES, N, build, permuted_ids, record
from reference import grad_norms
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from dynamics.traces import Status
from probes import GradNorm, Recorder, SampleLoss, UnsupportedModelError, every
from probes.engines.backpack import BackpackEngine


def reference_of(case):
    return grad_norms(case.model, case.x, case.y, case.loss)


def assert_norms(recorded, expected, rtol=1e-5):
    np.testing.assert_allclose(np.asarray(recorded, dtype=float), expected.numpy(), rtol=rtol)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_norms_equal_a_loop_over_samples(name, tmp_path):
    case = build(name)
    expected = reference_of(case)["total"]
    rows = record(tmp_path / "run", case, [GradNorm()])
    assert_norms(rows["grad_norm"], expected)
    assert (rows["status"] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_engine_is_exact_in_double_precision(name):
    case = build(name, torch.float64)
    expected = reference_of(case)
    engine = BackpackEngine(case.model)
    engine.attach()
    engine.armed = True
    losses = case.losses()
    capture = engine.take()
    engine.begin_backward(capture)
    losses.sum().backward()
    engine.detach()
    assert engine.problems == []
    assert engine.coverage == 1.0
    assert engine.finish(capture, len(losses)) == []
    torch.testing.assert_close(
        sum(capture.norms_sq.values()).sqrt().cpu(), expected["total"], rtol=1e-10, atol=0
    )
    assert set(capture.norms_sq) == set(expected) - {"total"} == set(engine.blocks)
    for block, norms_sq in capture.norms_sq.items():
        torch.testing.assert_close(norms_sq.sqrt(), expected[block], rtol=1e-10, atol=1e-14)


WEIGHTS = torch.tensor([0.5, 2.0, -1.0, 0.01, 3.0, 1.0])
TOTALS = {
    "mean": torch.mean,
    "sum": torch.sum,
    "weighted": lambda losses: (WEIGHTS * losses).mean(),
    "weighted_in_place": lambda losses: losses.mul_(WEIGHTS).sum(),
    "loss_scale_1024": lambda losses: losses.mean() * 1024,
    "squared": lambda losses: losses.square().mean(),
}


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "embedding_padded"])
def test_factor_in_the_total_loss_does_not_matter(name, total, tmp_path):
    case = build(name)
    expected = reference_of(case)["total"]
    rows = record(tmp_path / "run", case, [GradNorm()], TOTALS[total])
    assert_norms(rows["grad_norm"], expected)


def test_weight_is_the_factor_over_the_mean_factor(tmp_path):
    rows = record(tmp_path / "run", build("mlp"), [GradNorm()], TOTALS["weighted"])
    np.testing.assert_allclose(rows["weight"], WEIGHTS / WEIGHTS.mean(), rtol=1e-5)


def test_factors_of_several_backward_passes_add_up(tmp_path):
    def total(losses):
        losses.sum().backward(retain_graph=True)
        return (WEIGHTS * losses).sum()

    rows = record(tmp_path / "run", build("mlp"), [SampleLoss()], total)
    expected = 1 + WEIGHTS
    zero = (expected == 0).numpy()
    np.testing.assert_allclose(rows["weight"], expected / expected.mean(), rtol=1e-5)
    assert rows["status"].tolist() == [int(Status.ZERO_WEIGHT) * int(z) for z in zero]


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "embedding_padded"])
@pytest.mark.parametrize("backward", ["each", "together"])
def test_gradient_accumulation(name, backward, tmp_path):
    case = build(name)
    expected = reference_of(case)["total"]
    ids = permuted_ids(N)
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.0)
    with Recorder(tmp_path / "run", case.model, [GradNorm()]) as recorder:
        totals = []
        for rows in (slice(0, 1), slice(1, 3), slice(3, N)):
            losses = case.losses(rows)
            recorder.observe(losses, ids[rows])
            totals.append(losses.mean() / 3)
            if backward == "each":
                totals.pop().backward()
        if totals:
            sum(totals).backward()
        optimizer.step()
    rows = open_run(tmp_path / "run").samples().set_index("sample_id").loc[ids.tolist()]
    assert_norms(rows["grad_norm"], expected)
    assert (rows["step"] == 0).all()


@pytest.mark.parametrize("name", ["mlp", "cnn", "layer_norm"])
def test_weight_zero_is_missing_and_flagged(name, tmp_path):
    case = build(name)
    expected = reference_of(case)["total"]
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0, 1.0])
    rows = record(tmp_path / "run", case, [GradNorm()], lambda ls: (weights * ls).mean())
    zero = (weights == 0).numpy()
    assert rows["grad_norm"].isna().tolist() == zero.tolist()
    assert rows["status"].tolist() == [int(Status.ZERO_WEIGHT) if z else 0 for z in zero]
    assert rows["weight"][zero].tolist() == [0.0, 0.0]
    assert_norms(rows["grad_norm"][~zero], expected[weights != 0])


@pytest.mark.parametrize("name", ["mlp", "frozen", "residual", "embedding", "batch_norm_eval"])
def test_blocks_add_up(name, tmp_path):
    case = build(name)
    expected = reference_of(case)
    rows = record(tmp_path / "run", case, [GradNorm(blocks=True)], TOTALS["weighted"])
    blocks = [column for column in rows if column.startswith("grad_norm/")]
    assert set(blocks) == {f"grad_norm/{block}" for block in expected if block != "total"}
    squares = sum(rows[block].astype(float) ** 2 for block in blocks)
    np.testing.assert_allclose(squares, rows["grad_norm"].astype(float) ** 2, rtol=1e-5)
    for block in blocks:
        assert_norms(rows[block], expected[block.removeprefix("grad_norm/")])


def nothing():
    pass


def train(recorder, case, steps, before_update=nothing, after_update=nothing):
    """SGD on the whole batch; returns the reference norms before each step."""
    optimizer = torch.optim.SGD(case.model.parameters(), lr=0.1)
    expected = []
    for _ in range(steps):
        expected.append(reference_of(case)["total"])
        losses = case.losses()
        recorder.observe(losses, torch.arange(len(losses)))
        losses.mean().backward()
        before_update()
        optimizer.step()
        optimizer.zero_grad()
        after_update()
    return expected


def test_schedule_records_due_steps_only(tmp_path):
    case = build("mlp")
    probes = [SampleLoss(), GradNorm(every(steps=3))]
    with Recorder(tmp_path / "run", case.model, probes, repeats=True) as recorder:
        expected = train(recorder, case, 8)
    rows = open_run(tmp_path / "run").samples(repeats=True)
    assert len(rows) == 8 * N
    assert rows["loss"].notna().all()
    recorded = rows[rows["grad_norm"].notna()]
    assert sorted(recorded["step"].unique()) == [0, 3, 6]
    for step in (0, 3, 6):
        at_step = recorded[recorded["step"] == step].sort_values("sample_id")
        assert_norms(at_step["grad_norm"], expected[step])


def assert_due_norms(out, expected, steps):
    rows = open_run(out).samples(repeats=True)
    for step, norms in enumerate(expected):
        at_step = rows[rows["step"] == step].sort_values("sample_id")
        if step % steps:
            assert at_step["grad_norm"].isna().all()
        else:
            assert_norms(at_step["grad_norm"], norms)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("place", ["before_update", "after_update"])
def test_an_unobserved_pass_leaves_nothing_behind(place, backward, steps, tmp_path):
    """SAM takes a second pass before each update; others validate without `torch.no_grad`."""
    case = build("mlp")

    def unobserved():
        total = case.losses().mean() * 3
        if backward:
            total.backward()

    probes = [GradNorm(every(steps=steps))]
    try:
        with Recorder(tmp_path / "run", case.model, probes, repeats=True) as recorder:
            expected = train(recorder, case, 4, **{place: unobserved})
    except UnsupportedModelError:  # where it cannot be told from a layer used twice
        assert (place, backward) == ("after_update", True)
        return
    assert_due_norms(tmp_path / "run", expected, steps)


def test_an_epoch_schedule_is_refused():
    with pytest.raises(ValueError, match=r"every\(steps=k\).*every\(epochs=2\)"):
        GradNorm(every(epochs=2))


def test_autocast_norms_are_those_of_the_rounded_pass(tmp_path):
    case = build("mlp")
    expected = reference_of(case)["total"]
    with (
        Recorder(tmp_path / "run", case.model, [GradNorm()]) as recorder,
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        losses = F.cross_entropy(case.model(case.x).float(), case.y, reduction="none")
        recorder.observe(losses, torch.arange(N))
        losses.mean().backward()
    assert_norms(open_run(tmp_path / "run").samples()["grad_norm"], expected, rtol=0.03)


OPACUS_KNOWS = (  # of embeddings it counts the padding index, which has no gradient
    *("mlp", "cnn", "grouped", "conv1d", "conv3d", "sequence", "embedding"),
    *("layer_norm", "group_norm", "instance_norm", "rms_norm"),
)


@pytest.mark.parametrize("name", OPACUS_KNOWS)
def test_opacus_finds_the_same_norms(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opacus = pytest.importorskip("opacus.grad_sample")
        case, theirs = build(name), build(name)
        for layer in theirs.model.modules():  # their hooks do not bear in-place activations
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
        wrapped = opacus.GradSampleModule(theirs.model, loss_reduction="sum")
        F.cross_entropy(wrapped(theirs.x), theirs.y, reduction="sum").backward()
        squared = [p.grad_sample.flatten(1).square().sum(1) for p in wrapped.parameters()]
    rows = record(tmp_path / "run", case, [GradNorm()])
    assert_norms(rows["grad_norm"], torch.stack(squared).sum(0).sqrt(), rtol=1e-4)
