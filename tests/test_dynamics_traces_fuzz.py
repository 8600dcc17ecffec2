"""However a run is mutated, reading it ends in our own errors: no signal, no hang, no gigabytes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recorded import full_run

from dynamics.traces import TraceWriter
from dynamics.traces.compaction.compact import compact

HERE = Path(__file__).parent
TIMEOUT_S = 60
"""Generous: a mutated run takes 0.1 s on an idle machine."""


@pytest.fixture(scope="module")
def sound_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("parts", "buckets"):
        path = full_run(folder / name).path
        writer = TraceWriter(path, attempt=0, rank=1)
        writer.append_vector("fisher_diagonal", {"w": np.ones((20, 20))}, step=3, epoch=1)
        writer.close(clean=False)
    compact(folder / "buckets")
    return folder


def fuzz(sound, work, seeds):
    """Mutates a run once for each seed; returns what the worker said, and asserts it ended well."""
    work.mkdir()
    command = [sys.executable, HERE / "mutations.py", sound, work, *map(str, seeds)]
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(HERE.parent), "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S * len(seeds)
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1:], done.returncode, done.stderr[-3000:])
    ends = [line.split() for line in lines if line.startswith("end ")]
    assert len(ends) == len(seeds)
    assert max(float(end[2]) for end in ends) < TIMEOUT_S
    begins = [line for line in lines if line.startswith("begin ")]
    return list(zip(begins, [end[3] for end in ends], [end[4] for end in ends], strict=True))


@pytest.mark.parametrize("name", ["parts", "buckets"])
@pytest.mark.timeout(600)
def test_mutated_runs_give_only_our_errors(sound_runs, tmp_path, name):
    for what, found, refused in fuzz(sound_runs / name, tmp_path / "work", range(250)):
        by_chance = ".parquet" in what and "hash made to fit" not in what
        if (by_chance and "unchanged" not in what) or refused != "refused=0":
            assert found != "found=0", what


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["parts", "buckets"])
@pytest.mark.parametrize("chunk", range(10))
def test_ten_thousand_mutated_runs_give_only_our_errors(sound_runs, tmp_path, name, chunk):
    first = 1000 + 500 * chunk
    fuzz(sound_runs / name, tmp_path / "work", range(first, first + 500))
