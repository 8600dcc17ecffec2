"""A recorder whose trace cannot be written any more, under each policy."""

import errno
import threading
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from dynamics.traces import TraceError, create_run, layout, outbox
from probes import GradNorm, Probe, Recorder, SampleLoss
from probes.launch import Launch
from probes.recording import Recording

N, STEPS = 12, 3
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 3


@pytest.fixture
def disk(monkeypatch):
    """A disk that takes nothing while `disk.error` is set."""

    class Disk:
        error = None
        tries = 0

    def failing(original):
        def call(*args):
            if Disk.error is not None:
                Disk.tries += 1
                raise Disk.error
            return original(*args)

        return call

    monkeypatch.setattr(outbox, "write_durably", failing(outbox.write_durably))
    monkeypatch.setattr(layout, "_write_synced", failing(layout._write_synced))
    return Disk


class Training:
    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Linear(4, 3)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def step(self, recorder, ids):
        losses = F.cross_entropy(self.model(X[ids]), Y[ids], reduction="none")
        recorder.observe(losses, ids)
        losses.mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def epoch(self, recorder):
        for ids in torch.arange(N).split(N // STEPS):
            self.step(recorder, ids)


def full():
    return OSError(errno.ENOSPC, "No space left on device")


def record_with_a_full_disk(folder, disk, *, until, epochs=6, full_from=2):
    """Epochs 0 and 1 are fine; the disk is full from 2 on, and up to `until`."""
    training = Training()
    with Recorder(folder, training.model, [SampleLoss(), GradNorm()]) as recorder:
        for epoch in recorder.epochs(epochs):
            disk.error = full() if full_from <= epoch < until else None
            training.epoch(recorder)
            recorder.record("accuracy", float(epoch))
            state = recorder.state_dict()
        hooks = len(training.model._forward_hooks)
        disk.error = None if until <= epochs else full()
    return training, state, hooks


@pytest.mark.filterwarnings("default:Recording into:UserWarning")
def test_by_default_training_goes_on_and_the_trace_says_from_where_it_is_silent(tmp_path, disk):
    reference = Training()
    for _ in range(6):
        for ids in torch.arange(N).split(N // STEPS):
            F.cross_entropy(reference.model(X[ids]), Y[ids]).backward()
            reference.optimizer.step()
            reference.optimizer.zero_grad()
    with pytest.warns(UserWarning, match="stopped at step 9, and training goes on: OSError") as w:
        training, state, hooks = record_with_a_full_disk(tmp_path / "run", disk, until=4)
    assert len(w) == 1
    assert hooks == 0  # nothing slows training down any more
    assert torch.equal(training.model.weight, reference.model.weight)
    assert (state["step"], state["epoch"]) == (6 * STEPS, 5)  # it goes on counting
    run = open_run(tmp_path / "run")
    assert run.samples()["epoch"].value_counts().to_dict() == {0: N, 1: N, 2: N}
    assert run.scalars()["value"].tolist() == [0, 1, 2, 3, 4, 5]  # what the loop records is kept
    (event,) = run.events().query("name == 'recording_disabled'").to_dict("records")
    assert (event["step"], event["epoch"], event["subject"]) == (9, 2, "OSError")
    assert "No space left" in event["detail"]
    assert not run.ended_cleanly
    assert list(run.path.rglob(".tmp-*")) == []


def test_what_cannot_be_written_by_the_end_is_told(tmp_path, disk):
    with pytest.warns(UserWarning, match="stopped|are lost") as caught:
        record_with_a_full_disk(tmp_path / "run", disk, until=99)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert "stopped at step 9" in texts[0]
    assert "could not be written and are lost: OSError" in texts[1]
    run = open_run(tmp_path / "run")
    assert run.samples()["epoch"].value_counts().to_dict() == {0: N, 1: N}


@pytest.mark.parametrize("until", [1, 99])
def test_a_disk_that_is_full_from_the_start(tmp_path, disk, until):
    training = Training()

    def record():
        with Recorder(tmp_path / "run", training.model, [SampleLoss()]) as recorder:
            disk.error = full()
            for epoch in recorder.epochs(2):
                training.epoch(recorder)
                disk.error = None if epoch + 1 >= until else full()

    with pytest.warns(UserWarning, match="stopped at step 0|are lost"):
        record()
    run = open_run(tmp_path / "run")
    assert len(run.samples()) == 0
    names = ["recording_disabled", "epoch_end", "epoch_end"] if until == 1 else []
    assert run.events()["name"].tolist() == names
    assert not run.ended_cleanly


def test_a_disabled_run_can_be_resumed(tmp_path, disk):
    with pytest.warns(UserWarning, match="stopped"):
        training, state, _ = record_with_a_full_disk(tmp_path / "run", disk, until=4)
    with Recorder(tmp_path / "run", training.model, [SampleLoss()], resume=True) as recorder:
        recorder.load_state_dict(state)
        for _ in recorder.epochs(8, start=6):
            training.epoch(recorder)
    run = open_run(tmp_path / "run")
    counts = run.samples()["epoch"].value_counts().to_dict()
    assert counts == {0: N, 1: N, 2: N, 6: N, 7: N}
    assert run.ended_cleanly


def test_raise_raises_at_the_next_call(tmp_path, disk):
    training = Training()

    def run():
        settings = {"on_error": "raise"}
        with Recorder(tmp_path / "run", training.model, [SampleLoss()], **settings) as recorder:
            for epoch in recorder.epochs(3):
                disk.error = full() if epoch == 1 else None
                training.epoch(recorder)
                recorder.flush()

    with pytest.raises(TraceError, match="No space left on device"):
        run()
    run = open_run(tmp_path / "run")
    assert run.samples()["epoch"].value_counts().to_dict() == {0: N}


def test_raise_raises_where_the_attempt_cannot_begin(tmp_path, disk):
    training = Training()
    settings = {"on_error": "raise"}
    recorder = Recorder(tmp_path / "run", training.model, [SampleLoss()], **settings)
    with recorder:
        disk.error = full()
        with pytest.raises(TraceError, match="Could not begin"):
            training.step(recorder, torch.arange(4))
        disk.error = None


@pytest.mark.filterwarnings("ignore:Could not")
def test_block_waits_and_loses_nothing(tmp_path, disk, monkeypatch):
    monkeypatch.setattr("probes.recording._PAUSE_S", 0.01)
    monkeypatch.setattr("dynamics.traces.writer._PATIENCE_S", 0.01)
    training = Training()
    settings = {"on_error": "block"}

    def free():
        for _ in range(4):  # at the attempt, then at each flush
            while disk.error is None:
                time.sleep(0.001)
            seen = disk.tries
            while disk.tries < seen + 2:
                time.sleep(0.001)
            disk.error = None

    helper = threading.Thread(target=free)
    helper.start()
    with Recorder(tmp_path / "run", training.model, [SampleLoss()], **settings) as recorder:
        disk.error = full()
        for _ in recorder.epochs(3):
            training.epoch(recorder)
            disk.error = full()
            recorder.flush()
    helper.join()
    run = open_run(tmp_path / "run")
    assert run.samples()["epoch"].value_counts().to_dict() == {0: N, 1: N, 2: N}
    assert run.ended_cleanly


@pytest.mark.parametrize("on_error", ["disable", "block"])
def test_a_mistake_raises_under_every_policy(tmp_path, on_error):
    class Broken(Probe):
        def finish(self, batch):
            raise KeyError("broken probe")

    training = Training()
    settings = {"on_error": on_error}

    def record():
        with Recorder(tmp_path / "run", training.model, [Broken()], **settings) as recorder:
            with pytest.raises(ValueError, match="sample_id"):
                recorder.observe(torch.zeros(3, requires_grad=True), torch.tensor([1, 1, 2]))
            training.epoch(recorder)

    with pytest.raises(KeyError, match="broken probe"):
        record()


def test_an_unknown_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="on_error"):
        Recorder(tmp_path / "run", nn.Linear(2, 2), [], on_error="warn")


def test_outside_of_the_block_nothing_is_recorded(tmp_path):
    recorder = Recorder(tmp_path / "run", nn.Linear(2, 2), [])
    for call in (lambda: recorder.record("a", 1.0), lambda: recorder.event("a"), recorder.flush):
        with pytest.raises(RuntimeError, match="with Recorder"):
            call()
    with recorder:
        pass
    with pytest.raises(RuntimeError, match="with Recorder"):
        recorder.record("a", 1.0)


def test_a_rank_that_saw_no_batch_belongs_to_the_clean_end(tmp_path):
    create_run(tmp_path, {"run_id": "a"})
    first, second = (
        Recording(tmp_path, Launch(rank, 2, "a", "launch"), None, "raise") for rank in range(2)
    )
    first.begin(3, 1)
    first.close(clean=True)
    assert not open_run(tmp_path).ended_cleanly
    second.close(clean=True)
    run = open_run(tmp_path)
    assert run.ended_cleanly
    assert [(a.from_step, a.world_size) for a in run.attempts] == [(3, 2)]


def test_ranks_that_all_saw_nothing_begin_no_attempt(tmp_path):
    create_run(tmp_path, {"run_id": "a"})
    Recording(tmp_path, Launch(1, 2, "a", "launch"), None, "raise").close(clean=True)
    assert open_run(tmp_path).attempts == []
