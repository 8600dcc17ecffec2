"""A compacted run reads as it did before, at every moment of the compaction and after it."""

import numpy as np
import pandas as pd
import pytest
from random_runs import ID_KINDS, continue_run, random_run

from dynamics import open_run
from dynamics.traces import buckets
from dynamics.traces.compact import compact


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 40)


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
@pytest.mark.parametrize("seed", range(12))
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
