"""`step` counts optimiser updates of the model, whatever the loop looks like."""

import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss

N, D, C = 6, 5, 3
X = torch.linspace(-1, 1, N * D).reshape(N, D)
Y = torch.arange(N) % C
IDS = torch.arange(N)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C))


def one_batch(recorder, model, rows=slice(None)):
    losses = F.cross_entropy(model(X[rows]), Y[rows], reduction="none")
    recorder.observe(losses, IDS[rows])
    losses.mean().backward()


def recorded_steps(out):
    return open_run(out).samples(repeats=True)["step"].unique().tolist()


def test_two_optimisers_that_step_together_count_once(model, tmp_path):
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam(model[2].parameters())
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        for step in range(4):
            assert recorder.step == step
            one_batch(recorder, model)
            first.step()
            second.step()
    assert recorded_steps(tmp_path / "run") == [0, 1, 2, 3]


def test_an_optimiser_of_another_model_does_not_count(model, tmp_path):
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        one_batch(recorder, model)
        foreign.step()
        assert recorder.step == 0


def test_accumulation_does_not_count(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        for _ in range(2):
            for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
                one_batch(recorder, model, rows)
            optimizer.step()
    rows = open_run(tmp_path / "run").samples(repeats=True)
    assert rows.groupby("step").size().to_dict() == {0: N, 1: N}


@pytest.mark.parametrize("keep", [False, True])
def test_a_new_optimiser_goes_on_counting(model, keep, tmp_path):
    """Progressive schedules and critical-period resets replace the optimiser on the way."""
    kept = []
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        for phase in range(3):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            gc.collect()
            if keep:
                kept.append(optimizer)
            for i in range(2):
                assert recorder.step == 2 * phase + i
                one_batch(recorder, model)
                optimizer.step()
    assert recorded_steps(tmp_path / "run") == [0, 1, 2, 3, 4, 5]


def test_updates_without_observe_count(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        one_batch(recorder, model)
        for _ in range(5):
            optimizer.step()
        one_batch(recorder, model)
    assert recorded_steps(tmp_path / "run") == [0, 5]


def test_updates_outside_of_the_recorder_do_not_count(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        assert recorder.step == 0
        optimizer.step()
        assert recorder.step == 1


@pytest.mark.parametrize("together", [False, True])
def test_several_batches_before_their_backward_passes(model, together, tmp_path):
    """observe, observe, then one backward through both, or one after the other."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, [SampleLoss(), GradNorm()]) as recorder:
        totals = []
        for rows in (slice(0, 2), slice(2, 6)):
            losses = F.cross_entropy(model(X[rows]), Y[rows], reduction="none")
            recorder.observe(losses, IDS[rows])
            totals.append(losses.mean())
        for total in [sum(totals)] if together else totals:
            total.backward()
        optimizer.step()
    rows = open_run(tmp_path / "run").samples()
    assert rows["sample_id"].tolist() == IDS.tolist()
    assert (rows["status"] == 0).all()
    assert rows["grad_norm"].notna().all()
    assert rows["weight"].tolist() == pytest.approx([1.0] * N)


def test_grad_scaler_skips_are_no_updates(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        for broken in (False, True, False):
            losses = F.cross_entropy(model(X), Y, reduction="none")
            recorder.observe(losses, IDS)
            scaler.scale(losses.mean() * (float("inf") if broken else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert recorder.step == 2
    assert recorded_steps(tmp_path / "run") == [0, 1]
