"""Processes that are killed at any moment: nothing acknowledged is lost, nothing is doubled."""

import os

import crash_loop
import pytest

from dynamics import open_run

pytestmark = pytest.mark.crash


def test_a_writer_killed_again_and_again(fast_path):
    kills, _, _ = crash_loop.crash_loop(fast_path, crash_loop.train_writer, kills=14, per_run=7)
    assert kills == 14


def test_a_recorder_killed_again_and_again_leaves_the_trace_of_a_run_never_killed(fast_path):
    seconds = (0.0, 0.2)
    target = crash_loop.train_recorder
    killed, _ = crash_loop.crash_run(fast_path, target, seed=1, kills=6, seconds=seconds)
    assert killed > 0
    target(fast_path / "reference", fast_path / "no checkpoint", None, 0)
    run, reference = open_run(fast_path / "run-1"), open_run(fast_path / "reference")
    assert run.samples(repeats=True).equals(reference.samples(repeats=True))
    assert len(run.attempts) > 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills(fast_path):
    kills, n_runs, _ = crash_loop.crash_loop(
        fast_path, crash_loop.train_writer, kills=180, seed=100
    )
    for seed in range(4):
        killed, _ = crash_loop.crash_run(
            fast_path / "torch", crash_loop.train_recorder, seed=seed, kills=8, seconds=(0.0, 0.3)
        )
        kills += killed
    assert kills >= 200
    assert n_runs >= 9


def loses_the_tail(folder, checkpoint, pipe, seed):
    """Acknowledges before the flush."""
    flush = crash_loop.TraceWriter.flush
    crash_loop.TraceWriter.flush = lambda writer: None
    try:
        crash_loop.train_writer(folder, checkpoint, pipe, seed)
    finally:
        crash_loop.TraceWriter.flush = flush
        os.close(pipe.fileno())


def never_fences(folder, checkpoint, pipe, seed):
    """Every attempt pretends that it starts where nothing has been recorded."""
    begin = crash_loop.begin_attempt
    crash_loop.begin_attempt = lambda folder, **kwargs: begin(folder, from_step=10**6, from_epoch=0)
    try:
        crash_loop.train_writer(folder, checkpoint, pipe, seed)
    finally:
        crash_loop.begin_attempt = begin


@pytest.mark.parametrize("broken", [loses_the_tail, never_fences])
def test_the_loop_notices_a_writer_that_is_broken(fast_path, broken):
    with pytest.raises(AssertionError, match=r"lost|too many"):
        crash_loop.crash_loop(fast_path, broken, kills=8, per_run=8)
