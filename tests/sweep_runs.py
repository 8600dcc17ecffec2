"""Runs of a sweep that other processes make, some of which die; imported by those processes."""

import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from dynamics import open_run, open_study
from dynamics.noise_table import noise_table
from studies import noise_ratio
from studies.lab import checkpoint
from studies.lab.executors.process import ProcessExecutor
from studies.lab.sweep import begun, content_of, run_sweep

SMALL = {"data": "digits", "n_images": 80, "width": 8, "batch_size": 16, "max_epochs": 4}


def plan(ratios=(0.2, 0.4), seeds=2, noises=("symmetric",), **changed):
    return [
        noise_ratio.NoiseRatioConfig(**(SMALL | changed), noise=noise, ratio=ratio, seed=seed)
        for noise, ratio, seed in product(noises, ratios, range(seeds))
    ]


def plan_24():
    return plan(ratios=(0.0, 0.2, 0.4, 0.6), seeds=3, noises=("symmetric", "asymmetric"))


def sweep(out, configs, run_one=noise_ratio.run_one, executor=None):
    return run_sweep(out, noise_ratio.NAME, configs, noise_ratio.FACTORS, run_one, executor)


def note(out, word):
    """Count a word for a run, beside its study; how often it has been counted before."""
    notes = out.parent.parent / "notes"
    notes.mkdir(exist_ok=True)
    path = notes / f"{word}-{out.name}"
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(path.read_text().split()) - 1


def noted(out, word):
    """How often a word has been counted, by run."""
    notes = out.parent / "notes"
    paths = notes.glob(f"{word}-*")
    return Counter({p.name.removeprefix(f"{word}-"): len(p.read_text().split()) for p in paths})


def run_one(out, config):
    """Make a run with a checkpoint after each epoch, and count that it was made."""
    checkpoint.INTERVAL_S = 0
    is_new = begun(out, content_of(noise_ratio.NAME, config)) is not None
    note(out, "started")
    noise_ratio.run_one(out, config)
    if is_new:
        note(out, "made")


def run_and_die_twice(out, config):
    """The same; the process of the run with ratio .4 and seed 1 dies after its second epoch."""
    save = checkpoint.Checkpoint.save_if_due

    def save_and_die(self):
        save(self)
        if self._recorder.epoch >= 1 and note(out, "died") < 2:
            os.kill(os.getpid(), signal.SIGKILL)

    if (config.ratio, config.seed) == (0.4, 1):
        checkpoint.Checkpoint.save_if_due = save_and_die
    try:
        run_one(out, config)
    finally:
        checkpoint.Checkpoint.save_if_due = save


def run_and_always_die(out, config):
    if config.seed == 1:
        sys.stdout.write("about to die\n")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    noise_ratio.run_one(out, config)


def run_and_fail(out, config):
    if config.seed == 1:
        raise ZeroDivisionError("seed 1 is unlucky")
    noise_ratio.run_one(out, config)


def run_with_threads(out, config):
    """Say how many threads the run has."""
    import torch

    note(out, f"threads-{torch.get_num_threads()}")
    noise_ratio.run_one(out, config)


def run_slowly(out, config):
    """Say that the run is going on, and wait for a word to go on."""
    note(out, "going")
    with (out.parent.parent / "go").open() as pipe:  # a named pipe: opens when it is written to
        pipe.read()
    run_one(out, config)


@dataclass(frozen=True)
class DyingExecutor:
    """Processes whose driver is killed when some runs have ended."""

    workers: int
    after: int

    def run(self, tasks):
        for done, outcome in enumerate(ProcessExecutor(self.workers).run(tasks)):
            if done == self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield outcome


def die_driving(out):
    """Drive a sweep in two processes, and be killed after three runs."""
    sweep(Path(out), plan(seeds=4), run_and_die_twice, DyingExecutor(2, 3))


def assert_same(out, other):
    """Two studies hold the same runs, to the bit, each row once."""
    first, second = open_study(out), open_study(other)
    assert [r.name for r in first.runs] == [r.name for r in second.runs]
    assert noise_table(first).equals(noise_table(second))
    for name in (run.name for run in first.runs):
        a, b = open_run(out / name), open_run(other / name)
        assert a.ended_cleanly
        assert b.ended_cleanly
        assert not b.samples(repeats=True).duplicated(["epoch", "sample_id"]).any()
        assert a.samples(repeats=True).equals(b.samples(repeats=True))
        assert a.scalars().equals(b.scalars())
        assert a.roster().equals(b.roster())
