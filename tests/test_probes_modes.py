"""Every way to train with every probe: values as in float64, training as without, or refused.

docs/integrations.md is made from what benchmarks/modes.py writes of the same table; here it is
checked that the committed results are what happens.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from modes import MODES, PROBES, judge
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from dynamics.traces import Status
from probes import GradNorm, Recorder, SampleLoss, UnsupportedModelError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # within torch's compiler
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "modes.json"
COMMITTED = {
    (row["mode"], row["probe"]): row for row in json.loads(RESULTS.read_text("utf-8"))["verdicts"]
}
LOW_PRECISION = {"autocast bfloat16": 0.02, "autocast float16, GradScaler": 0.002}
ALL = [
    pytest.param(mode, probe, marks=[pytest.mark.slow] if "compile" in mode else [])
    for mode in MODES
    for probe in PROBES
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.mark.parametrize(("mode", "probe"), ALL)
def test_each_is_what_the_table_says(mode, probe, fast_path):
    verdict, committed = judge(mode, probe, fast_path / "run"), COMMITTED[mode, probe]
    assert (verdict.kind, verdict.reason) == (committed["kind"], committed["reason"])
    if verdict.kind == "exact":
        assert verdict.identical
        assert verdict.error < 1e-5
    elif verdict.kind == "rounding":
        assert verdict.error < LOW_PRECISION.get(mode, 1e-5)


def test_the_table_has_every_mode_and_probe_and_says_why_of_each_refusal():
    single = {key for key in COMMITTED if key[0] in MODES}
    assert single == {(mode, probe) for mode in MODES for probe in PROBES}
    refused = {key for key, row in COMMITTED.items() if row["kind"] == "refused" and key in single}
    compiled_before = "torch.compile, called before entering"
    assert refused == {
        ("BatchNorm in training", "GradNorm"),
        ("BatchNorm in training", "GradNorm fused"),
        ("checkpointing, reentrant", "GradNorm eval"),
        ("checkpointing, reentrant", "FisherTrace"),
        (compiled_before, "GradNorm"),
        (compiled_before, "GradNorm eval"),
        (compiled_before, "OutputGradNorm"),
    }
    assert all(COMMITTED[key]["reason"] for key in refused)


# What only a mode's own test shows


def make_training():
    model = nn.Linear(3, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")


def scaled_step(recorder, made, broken, ids=(0, 1)):
    model, optimizer, scaler = made
    losses = F.cross_entropy(model(torch.ones(2, 3)), torch.tensor([0, 1]), reduction="none")
    recorder.observe(losses, torch.tensor(ids))
    scaler.scale(losses.mean() * (float("inf") if broken else 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def skips(folder):
    events = open_run(folder).events()
    return events[events["name"] == "step_skipped"][["step", "epoch"]].to_numpy().tolist()


def test_a_step_that_the_scaler_skips_is_an_event(tmp_path):
    made = make_training()
    with Recorder(tmp_path / "run", made[0], [SampleLoss(), GradNorm()]) as recorder:
        for epoch in recorder.epochs(2):
            for batch, broken in enumerate([False, epoch == 0, False, epoch == 1]):
                scaled_step(recorder, made, broken, ids=(2 * batch, 2 * batch + 1))
    assert skips(tmp_path / "run") == [[1, 0], [6, 1]]  # the second at the end of the epoch
    rows = open_run(tmp_path / "run").samples()
    lost = rows[rows["grad_norm"].isna()]
    assert lost[["epoch", "sample_id"]].to_numpy().tolist() == [[0, 2], [0, 3], [1, 6], [1, 7]]
    assert (lost["status"] & int(Status.NON_FINITE_GRAD_NORM)).all()


def test_accumulation_and_losses_without_a_step_are_no_skips(tmp_path):
    model, optimizer, _ = make_training()
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        for batch in range(5):
            ids = torch.tensor([2 * batch, 2 * batch + 1])
            losses = F.cross_entropy(model(torch.ones(2, 3)), ids % 2, reduction="none")
            recorder.observe(losses, ids)
            if batch == 2:
                torch.autograd.grad(losses.sum(), list(model.parameters()))
                continue
            losses.mean().backward()
            if batch in (1, 4):
                optimizer.step()
                optimizer.zero_grad()
    assert skips(tmp_path / "run") == []


def test_a_part_of_the_model_that_the_loop_calls_is_missed_by_an_own_pass(tmp_path):
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 2)))
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    with (
        pytest.raises(UnsupportedModelError, match="a part of the model"),
        Recorder(tmp_path / "run", model, [GradNorm(mode="eval")]) as recorder,
    ):
        recorder.observe(F.cross_entropy(model[0](x), y, reduction="none"), y, labels=y)
