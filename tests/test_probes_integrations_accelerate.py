"""Accelerate: the same trace as the plain loop, the same training, and its checkpoints."""

import pytest
import torch
from loops import EPOCHS, N, make_loader, make_network, make_optimizer, train_plainly
from loops import Y as LABELS
from test_probes_integrations_lightning import same_rows
from torch.nn import functional as F

from dynamics import open_run
from probes import GradNorm, SampleLoss

accelerate = pytest.importorskip("accelerate")
from probes.integrations.accelerate import prepare_recorder  # noqa: E402 (after the skip)


@pytest.fixture(autouse=True)
def no_state_of_an_earlier_test():
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def prepared(**options):
    accelerator = accelerate.Accelerator(cpu=True, **options)
    model = make_network()
    return accelerator, *accelerator.prepare(model, make_optimizer(model), make_loader())


def recorder_of(accelerator, model, folder, **options):
    probes = [SampleLoss(), GradNorm()]
    roster = {"label": LABELS.tolist()}
    return prepare_recorder(accelerator, folder, model, probes, roster=roster, **options)


def train_epoch(accelerator, model, optimizer, loader, recorder=None):
    for x, y, sample_id in loader:
        with accelerator.accumulate(model):
            logits = model(x)
            losses = F.cross_entropy(logits, y, reduction="none")
            if recorder is not None:
                recorder.observe(losses, sample_id, logits=logits, labels=y)
            accelerator.backward(losses.mean())
            optimizer.step()
            optimizer.zero_grad()


def test_the_trace_is_that_of_the_plain_loop_and_training_is_bit_identical(tmp_path):
    accelerator, model, optimizer, loader = prepared()
    torch.manual_seed(5)
    with recorder_of(accelerator, model, tmp_path / "run") as recorder:
        for _ in recorder.epochs(EPOCHS):
            train_epoch(accelerator, model, optimizer, loader, recorder)
    plain = train_plainly(tmp_path / "plain")
    same_rows(open_run(tmp_path / "run").samples(), open_run(tmp_path / "plain").samples())
    accelerator, unrecorded, optimizer, loader = prepared()
    torch.manual_seed(5)
    for _ in range(EPOCHS):
        train_epoch(accelerator, unrecorded, optimizer, loader)
    for other in (unrecorded, plain):
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_accumulation_and_bf16(tmp_path):
    made = prepared(gradient_accumulation_steps=2, mixed_precision="bf16")
    with recorder_of(*made[:2], tmp_path / "run") as recorder:
        for _ in recorder.epochs(1):
            train_epoch(*made, recorder)
        assert recorder.step == 3
    rows = open_run(tmp_path / "run").samples()
    assert len(rows) == N
    assert (rows["weight"] == 1).all()
    assert rows["grad_norm"].notna().all()


def test_its_checkpoints_hold_the_recorders_state(tmp_path):
    made = prepared()
    recorder = recorder_of(*made[:2], tmp_path / "run")
    with pytest.raises(RuntimeError), recorder:  # noqa: PT012 (the loop is what fails)
        for epoch in recorder.epochs(EPOCHS):
            if epoch == 1:
                made[0].save_state(tmp_path / "checkpoint")
                train_epoch(*made, recorder)
                raise RuntimeError
            train_epoch(*made, recorder)
    made = prepared()
    with recorder_of(*made[:2], tmp_path / "run", resume=True) as recorder:
        made[0].load_state(tmp_path / "checkpoint")
        for _ in recorder.epochs(EPOCHS, start=1):
            train_epoch(*made, recorder)
    run = open_run(tmp_path / "run")
    assert [attempt.from_step for attempt in run.attempts] == [0, 6]
    rows = run.samples()
    keys = list(zip(rows["epoch"], rows["sample_id"], strict=True))
    assert keys == [(e, i) for e in range(EPOCHS) for i in range(N)]


def test_padding_to_even_batches_may_repeat_within_a_batch(tmp_path):
    made = prepared()
    made[0].state.num_processes = 2  # as if: what counts is that batches may be evened out
    recorder = recorder_of(*made[:2], tmp_path / "run")
    ids = torch.tensor([3, 3, 4])
    with recorder:
        losses = F.cross_entropy(made[1](torch.ones(3, 5)), LABELS[ids], reduction="none")
        recorder.observe(losses, ids)
    rows = open_run(tmp_path / "run").samples(repeats=True)
    assert rows["occurrence"].tolist() == [0, 1, 0]
