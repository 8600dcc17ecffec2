"""A run that is taken up again reads as if it had never stopped."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from dynamics.traces import TraceError
from probes import FisherTrace, GradNorm, Recorder, SampleLoss, every

N, D, C, SIZE = 12, 5, 3, 4
STEPS = N // SIZE  # in an epoch
X = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % C


class Training:
    """Model, optimiser and the generator of the batches: all that a checkpoint holds."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, C))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2, momentum=0.9)
        self.generator = torch.Generator().manual_seed(5)

    def state(self, recorder):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "recorder": recorder.state_dict(),
        }

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])

    def step(self, recorder, ids):
        logits = self.model(X[ids])
        losses = F.cross_entropy(logits, Y[ids], reduction="none")
        recorder.observe(losses, ids, logits=logits, labels=Y[ids])
        losses.mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def epoch(self, recorder):
        for ids in torch.randperm(N, generator=self.generator).split(SIZE):
            self.step(recorder, ids)
        recorder.record("accuracy", recorder.epoch / 10, block="test")


def probes():
    return [
        SampleLoss(),
        GradNorm(),
        FisherTrace(data=X),
        FisherTrace(every(steps=STEPS), data=(X, Y), kind="empirical"),
    ]


def uninterrupted(out, n_epochs=4):
    training = Training()
    with Recorder(out, training.model, probes()) as recorder:
        for _ in recorder.epochs(n_epochs):
            training.epoch(recorder)
    return open_run(out)


def abandoned(out, checkpoint, n_epochs=2, extra_steps=2):
    """Train past the checkpoint, which is of the end of epoch 0, then die."""
    training = Training()
    try:
        with Recorder(out, training.model, probes()) as recorder:
            for epoch in recorder.epochs(n_epochs + 1):
                if epoch == n_epochs:
                    for ids in torch.arange(N).split(SIZE)[:extra_steps]:
                        training.step(recorder, ids)
                    raise SystemExit
                training.epoch(recorder)
                if epoch == 0:
                    torch.save(training.state(recorder), checkpoint)
    except SystemExit:
        pass


def assert_same_tables(run, reference):
    rows, expected = run.samples(), reference.samples()
    assert not rows.duplicated(["epoch", "sample_id"]).any()
    columns = ["epoch", "sample_id", "step", "occurrence", "status", "loss", "grad_norm", "margin"]
    for column in columns:
        assert rows[column].tolist() == expected[column].tolist(), column
    keys = ["epoch", "step", "name", "block"]
    scalars, expected = (r.scalars().sort_values(keys) for r in (run, reference))
    for column in [*keys, "value"]:
        found, wanted = scalars[column].to_numpy(), expected[column].to_numpy()
        np.testing.assert_array_equal(
            found, wanted, err_msg=column
        )  # a missing value equals itself


def test_resumed_equals_uninterrupted(tmp_path):
    reference = uninterrupted(tmp_path / "reference")
    abandoned(tmp_path / "run", tmp_path / "checkpoint.pt")
    assert open_run(tmp_path / "run").samples()["epoch"].max() == 2
    training = Training()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    with Recorder(tmp_path / "run", training.model, probes(), resume=True) as recorder:
        training.restore(state)
        recorder.load_state_dict(state["recorder"])
        assert recorder.step == STEPS
        for _ in recorder.epochs(4, start=1):
            training.epoch(recorder)
    run = open_run(tmp_path / "run")
    assert_same_tables(run, reference)
    assert run.ended_cleanly
    assert [attempt.from_step for attempt in run.attempts] == [0, STEPS]
    assert run.roster()["label"].tolist() == Y.tolist()


def test_an_event_before_the_first_batch_moves_no_fence(tmp_path):
    reference = uninterrupted(tmp_path / "reference")
    abandoned(tmp_path / "run", tmp_path / "checkpoint.pt")
    training = Training()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    with Recorder(tmp_path / "run", training.model, probes(), resume=True) as recorder:
        training.restore(state)
        recorder.load_state_dict(state["recorder"])
        recorder.event("resumed", "checkpoint.pt")
        for _ in recorder.epochs(4, start=1):
            training.epoch(recorder)
    assert_same_tables(open_run(tmp_path / "run"), reference)
    assert "resumed" in open_run(tmp_path / "run").events()["name"].tolist()


def test_resumed_in_the_middle_of_an_epoch(tmp_path):
    training = Training()
    batches = torch.arange(N).split(SIZE)
    with Recorder(tmp_path / "run", training.model, [SampleLoss()]) as recorder:
        recorder.begin_epoch(0)
        for ids in batches[:2]:
            training.step(recorder, ids)
        state = recorder.state_dict()
        training.step(recorder, batches[2])
    with Recorder(tmp_path / "run", training.model, [SampleLoss()], resume=True) as recorder:
        recorder.load_state_dict(state)
        for epoch in recorder.epochs(2, start=0):
            for ids in batches[2:] if epoch == 0 else batches:
                training.step(recorder, ids)
    rows = open_run(tmp_path / "run").samples(repeats=True)
    assert rows["sample_id"].tolist() == [*range(N)] * 2
    assert (rows["occurrence"] == 0).all()
    assert rows["step"].tolist() == [s for s in range(2 * STEPS) for _ in range(SIZE)]


def test_state_dict_makes_rows_durable(tmp_path):
    training = Training()
    with Recorder(tmp_path / "run", training.model, [SampleLoss(), GradNorm()]) as recorder:
        for epoch in recorder.epochs(1):
            training.epoch(recorder)
            state = recorder.state_dict()
            rows = open_run(tmp_path / "run").samples()
            assert len(rows) == N
            assert rows["grad_norm"].notna().all()
            assert (state["epoch"], state["step"]) == (epoch, STEPS)
            assert {type(value) for value in state.values()} == {int, str}


def test_after_a_checkpoint_the_first_epoch_must_be_said(tmp_path):
    abandoned(tmp_path / "run", tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["recorder"]
    training = Training()
    with Recorder(tmp_path / "run", training.model, probes(), resume=True) as recorder:
        recorder.load_state_dict(state)
        with pytest.raises(ValueError, match=r"epochs\(4, start=1\).*start=0 if not"):
            next(recorder.epochs(4))


def test_resume_without_a_state_restarts_from_nothing(tmp_path):
    reference = uninterrupted(tmp_path / "reference", n_epochs=2)
    abandoned(tmp_path / "run", tmp_path / "checkpoint.pt")
    training = Training()
    with Recorder(tmp_path / "run", training.model, probes(), resume=True) as recorder:
        for _ in recorder.epochs(2):
            training.epoch(recorder)
    assert_same_tables(open_run(tmp_path / "run"), reference)


def test_a_resumed_run_that_dies_at_once_has_lost_nothing(tmp_path):
    abandoned(tmp_path / "run", tmp_path / "checkpoint.pt")
    before = open_run(tmp_path / "run").samples()
    with (
        pytest.raises(KeyError),
        Recorder(tmp_path / "run", Training().model, probes(), resume=True),
    ):
        raise KeyError
    after = open_run(tmp_path / "run").samples()
    assert after.equals(before)


def test_a_state_of_another_run_is_refused(tmp_path):
    abandoned(tmp_path / "run", tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["recorder"]
    with (
        Recorder(tmp_path / "run", Training().model, probes(), resume=True) as recorder,
        pytest.raises(ValueError, match="is of run other"),
    ):
        recorder.load_state_dict(state | {"run_id": "other"})


def test_a_state_comes_before_the_first_batch_of_a_resumed_run(tmp_path):
    abandoned(tmp_path / "run", tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["recorder"]
    training = Training()
    with (
        Recorder(tmp_path / "new", training.model, probes()) as recorder,
        pytest.raises(ValueError, match="resume=True"),
    ):
        recorder.load_state_dict(state)
    with Recorder(tmp_path / "run", training.model, [SampleLoss()], resume=True) as recorder:
        training.step(recorder, torch.arange(4))
        with pytest.raises(ValueError, match="before the first batch"):
            recorder.load_state_dict(state)


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(TraceError, match="no run to resume"):
        Recorder(tmp_path / "run", Training().model, probes(), resume=True)
