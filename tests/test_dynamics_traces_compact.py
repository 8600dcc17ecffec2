"""A compacted run reads as it did before, at every moment of the compaction and after it."""

import contextlib
import gc
import shutil

import numpy as np
import pandas as pd
import pytest
from faults import Killed, fault_at
from random_runs import ID_KINDS, continue_run, random_run
from recorded import add_attempt, write_run

from dynamics import open_run
from dynamics.traces import TraceError, buckets
from dynamics.traces.compact import compact


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 12)


def everything(path):
    run = open_run(path)
    samples = run.samples(repeats=True)
    return {
        "samples": samples[sorted(samples)],
        "scalars": run.scalars(),
        "events": run.events(),
        "roster": run.roster(),
        "vectors": run.vectors(),
    }


def assert_same(left, right):
    for name in left:
        pd.testing.assert_frame_equal(left[name], right[name], check_dtype=False)


@pytest.mark.parametrize("ids", ID_KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_compacted_run_reads_as_before_also_when_resumed_and_compacted_again(tmp_path, seed, ids):
    run = random_run(tmp_path / "run", seed, ids=ids)
    before = everything(run.path)
    compact(run.path)
    assert_same(before, everything(run.path))
    assert list(run.path.glob("*/rank-*/part-*")) == []
    rng = np.random.default_rng(seed)
    last = int(run.samples(repeats=True)["step"].max())
    continue_run(run.path, rng, run.roster().index.to_numpy(), last + 1)
    resumed = everything(run.path)
    assert (resumed["samples"]["step"] > -1).all()
    compact(run.path)
    assert_same(resumed, everything(run.path))
    assert len(list((run.path / "compacted").iterdir())) == 1


def batch(steps, ids=(4, 7, 9)):
    step = np.repeat(np.asarray(steps), len(ids))
    keys = {"step": step, "epoch": step, "sample_id": np.tile(ids, len(steps))}
    return keys | {"loss": keys["sample_id"] + step / 10}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Steps 0 to 5, taken up again from step 4; a row of the other tables."""
    event = {"step": [1], "epoch": [0], "name": ["epoch_end"]}
    first = {"samples": [batch(range(6))], "events": [event], "roster": [{"sample_id": [4]}]}
    run = write_run(tmp_path_factory.mktemp("small") / "run", first, clean=False)
    add_attempt(run.path, {"samples": [batch(range(4, 9))]}, from_step=4, from_epoch=4)
    return run.path


@pytest.mark.parametrize("dies", [False, True], ids=["call fails", "process dies"])
def test_interrupted_at_any_call_no_row_is_lost_or_doubled(small_run, tmp_path, dies):
    before = everything(small_run)
    for n in range(1, 2000):
        path = tmp_path / str(n)
        shutil.copytree(small_run, path)
        with fault_at(n, dies=dies) as faults, contextlib.suppress(OSError, TraceError, Killed):
            compact(path)
        gc.collect()  # files of the process that died
        assert_same(before, everything(path))
        compact(path)
        assert_same(before, everything(path))
        assert [p.name for p in path.glob("compacted/*")] == ["v0001"]
        assert list(path.glob("*/rank-*/part-*")) == []
        shutil.rmtree(path)
        if not faults.struck:
            break
    assert 30 < n < 1999
