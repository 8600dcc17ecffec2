"""SIGTERM: everything is durable before the process ends, and the user's handler runs as ever."""

import os
import signal
import sys
import threading
import time

import pytest
import torch
from processes import CONTEXT
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import Recorder, SampleLoss, termination

X, Y = torch.ones(4, 2), torch.tensor([0, 1, 0, 1])


@pytest.fixture
def earlier():
    """A handler of the user's, and the signals that it got."""
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    yield got
    signal.signal(signal.SIGTERM, before)


class Loop:
    def __init__(self, out):
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.recorder = Recorder(out, self.model, [SampleLoss()])

    def observe(self, first):
        losses = F.cross_entropy(self.model(X), Y, reduction="none")
        self.recorder.observe(losses, torch.arange(first, first + 4))
        losses.mean().backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_the_users_handler_runs_at_once_and_the_flush_comes_at_the_next_step(tmp_path, earlier):
    users = signal.getsignal(signal.SIGTERM)
    loop = Loop(tmp_path / "run")
    with loop.recorder as recorder:
        loop.observe(0)
        signal.raise_signal(signal.SIGTERM)
        assert earlier == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is users  # a second one is the user's alone
        assert len(open_run(tmp_path / "run").samples()) == 0
        loop.step()
        run = open_run(tmp_path / "run")
        assert len(run.samples()) == 4
        assert run.events()["name"].tolist() == ["sigterm"]
        assert run.events()["step"].tolist() == [1]
        loop.observe(4)
        recorder.record("a", 1.0)
    run = open_run(tmp_path / "run")
    assert len(run.samples()) == 8
    assert run.events()["name"].tolist() == ["sigterm"]
    assert run.ended_cleanly


def test_without_another_step_it_is_flushed_at_the_end(tmp_path, earlier):
    loop = Loop(tmp_path / "run")
    with loop.recorder:
        loop.observe(0)
        loop.step()
        signal.raise_signal(signal.SIGTERM)
    run = open_run(tmp_path / "run")
    assert len(run.samples()) == 4
    assert run.events()["name"].tolist() == ["sigterm"]


def test_a_handler_that_ends_training_finds_everything_flushed(tmp_path):
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
    loop = Loop(tmp_path / "run")

    def record():
        with loop.recorder:
            loop.observe(0)
            signal.raise_signal(signal.SIGTERM)

    try:
        with pytest.raises(SystemExit):
            record()
    finally:
        signal.signal(signal.SIGTERM, before)
    run = open_run(tmp_path / "run")
    assert len(run.samples()) == 4
    assert run.events()["name"].tolist() == ["interrupted", "sigterm"]


def test_the_earlier_handler_is_put_back(tmp_path, earlier):
    users = signal.getsignal(signal.SIGTERM)
    with Loop(tmp_path / "run").recorder:
        assert signal.getsignal(signal.SIGTERM) is not users
    assert signal.getsignal(signal.SIGTERM) is users


def test_a_handler_installed_meanwhile_stays(tmp_path, earlier):
    def newer(number, frame):
        pass

    with Loop(tmp_path / "run").recorder:
        signal.signal(signal.SIGTERM, newer)
    assert signal.getsignal(signal.SIGTERM) is newer


def test_an_ignored_signal_stays_ignored_but_flushes(tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    loop = Loop(tmp_path / "run")
    try:
        with loop.recorder:
            loop.observe(0)
            signal.raise_signal(signal.SIGTERM)
            loop.step()
            assert len(open_run(tmp_path / "run").samples()) == 4
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_no_handler_is_installed(tmp_path, earlier):
    users = signal.getsignal(signal.SIGTERM)
    seen = []

    def record():
        loop = Loop(tmp_path / "run")
        with loop.recorder:
            seen.append(signal.getsignal(signal.SIGTERM))
            loop.observe(0)
            loop.step()

    thread = threading.Thread(target=record)
    thread.start()
    thread.join()
    assert seen == [users]
    assert open_run(tmp_path / "run").ended_cleanly


def train_until_terminated(out, ready, hangs, grace):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    termination.GRACE_S = grace
    loop = Loop(out)
    with loop.recorder:
        for step in range(10_000):
            loop.observe(4 * step)
            loop.step()
            if step == 20:
                ready.send(None)
                while hangs:
                    time.sleep(0.01)
            time.sleep(0.001)
    os._exit(7)


@pytest.mark.crash
@pytest.mark.parametrize("hangs", [False, True])
def test_where_there_is_no_handler_the_process_dies_by_the_signal_after_the_flush(tmp_path, hangs):
    """At the next step, or, if none comes, after a while."""
    reading, writing = CONTEXT.Pipe(duplex=False)
    arguments = (tmp_path / "run", writing, hangs, 0.3 if hangs else 60)
    process = CONTEXT.Process(target=train_until_terminated, args=arguments)
    process.start()
    assert reading.poll(60)
    process.terminate()
    process.join(30)
    assert process.exitcode == -signal.SIGTERM
    run = open_run(tmp_path / "run")
    rows = run.samples()
    assert len(rows) >= 4 * 21
    assert rows["sample_id"].tolist() == list(range(len(rows)))
    assert run.events()["name"].tolist() == ["sigterm"]
    assert run.events()["step"].item() == len(rows) / 4
    assert not run.ended_cleanly


@pytest.mark.crash
def test_a_process_whose_training_ends_before_the_next_step_still_dies_by_the_signal(tmp_path):
    process = CONTEXT.Process(target=end_after_the_signal, args=(tmp_path / "run",))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
    assert len(open_run(tmp_path / "run").samples()) == 4


def end_after_the_signal(out):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    loop = Loop(out)
    with loop.recorder:
        loop.observe(0)
        loop.step()
        signal.raise_signal(signal.SIGTERM)
    os._exit(7)
