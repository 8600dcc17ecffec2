"""Rows that count, in order and epoch by epoch, in bounded memory however parts are cut."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import IN_MEMORY, compacted, make_run, small_reads

from dynamics.summary import iter_epochs
from dynamics.traces import SchemaError, Status
from dynamics.traces.occurrence import number_across_ranks
from dynamics.traces.scan import comes_in_order, epoch_ranges, iter_first


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    world_sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    max_rows=st.integers(3, 40),
    buckets=st.booleans(),
)
def test_epochs_come_ascending_each_whole_and_each_sample_once(
    seed, world_sizes, max_rows, buckets
):
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder, small_reads():
        made = make_run(Path(folder) / "a", seed, world_sizes=world_sizes, max_rows=max_rows)
        if buckets:
            made = compacted(made)
        found = dict(iter_epochs(made.run, ["loss", "grad_norm/none"]))
        expected = {epoch: rows for epoch, rows in made.first.groupby("epoch")}
        assert list(found) == sorted(expected)
        for epoch, rows in found.items():
            known = expected[epoch].set_index("sample_id").sort_index()
            assert rows.index.is_unique
            np.testing.assert_array_equal(rows.sort_index()["loss"], known["loss"])
            assert rows["grad_norm/none"].isna().all()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), buckets=st.booleans(), max_rows=st.integers(3, 40))
def test_first_presentations_stream_in_the_order_of_a_samples_epochs(seed, buckets, max_rows):
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder, small_reads():
        made = make_run(Path(folder) / "a", seed, max_rows=max_rows)
        if buckets:
            made = compacted(made)
        run, reached = made.run, {}
        n = 0
        for rows in iter_first(run.footers(), run.attempts, ["loss"]):
            for sample, epoch in zip(rows["sample_id"], rows["epoch"], strict=True):
                reached.setdefault(sample, []).append(epoch)
            n += len(rows["epoch"])
            assert len(rows["epoch"]) <= 16
        assert n == len(made.first)
        assert all(epochs == sorted(epochs) for epochs in reached.values())


def test_buckets_are_read_in_as_many_passes_as_memory_asks_for(tmp_path):
    made = compacted(make_run(tmp_path / "a", 3))
    footers = made.run.footers()
    assert len(list(epoch_ranges(footers))) == 1
    with small_reads(in_memory=8):
        ranges = list(epoch_ranges(footers))
    assert len(ranges) > 1
    assert [high + 1 for _, high in ranges[:-1]] == [low for low, _ in ranges[1:]]


def test_parts_of_one_rank_come_in_order_and_those_of_several_do_not(tmp_path):
    alone = make_run(tmp_path / "a", 0, world_sizes=(1,))
    both = make_run(tmp_path / "b", 0, world_sizes=(2,))
    assert comes_in_order(alone.run.footers(), alone.run.attempts)
    compacted(alone)
    assert comes_in_order(alone.run.footers(), alone.run.attempts)
    assert not comes_in_order(both.run.footers(), both.run.attempts)


def test_occurrences_are_numbered_by_step_then_rank():
    """Sample 4 is padding on rank 1: seen there at step 0, on rank 0 at step 0 too."""
    rows = pa.table(
        {
            "epoch": pa.array([0, 0, 0, 1], pa.int32()),
            "sample_id": [4, 4, 5, 4],
            "step": [0, 0, 0, 1],
            "rank": [1, 0, 1, 1],
            "occurrence": pa.array([0, 0, 0, 0], pa.int32()),
            "status": pa.array([0, 1, 32, 0], pa.int32()),
        }
    )
    numbered = number_across_ranks(rows)
    assert numbered["occurrence"].to_pylist() == [0, 1, 0, 0]
    assert numbered["status"].to_pylist() == [1, Status.REPEAT, 0, 0]


def test_an_unknown_column_is_refused(tmp_path):
    made = make_run(tmp_path / "run", 0)
    with pytest.raises(SchemaError, match="no column 'los'"):
        list(iter_epochs(made.run, ["los"]))
