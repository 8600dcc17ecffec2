"""A summary by ranges of samples is the summary of the whole, whatever the ranges."""

import copy
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import IDS, IN_MEMORY, compacted, make_run, naive_summary, small_reads

from dynamics import open_run, sample_ranges
from dynamics.sample_ranges import cut_ranges, summarise_ranges
from dynamics.summary import summarise_samples
from dynamics.traces import TraceWriter, begin_attempt, create_run, row_groups

LIMIT = 10**9


def one_by_one(function, common, arguments):
    """An executor without workers, which like others hands over copies."""
    return (function(copy.deepcopy(common), copy.deepcopy(argument)) for argument in arguments)


def by_ranges(run, workers, until_epoch=None):
    return summarise_ranges(run, one_by_one, workers, until_epoch=until_epoch, memory_limit=LIMIT)


def write_run(folder, epochs, **values):
    """One row of each sample an epoch, in one part."""
    create_run(folder, {})
    writer = TraceWriter(folder, attempt=begin_attempt(folder, from_step=0, from_epoch=0))
    for epoch in range(epochs):
        n = len(values["sample_id"])
        writer.append("samples", {"step": np.full(n, epoch), "epoch": np.full(n, epoch), **values})
    writer.close()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ids=st.sampled_from(list(IDS)),
    world_sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    max_rows=st.integers(1, 30),
    buckets=st.booleans(),
    workers=st.integers(1, 5),
    until_epoch=st.sampled_from([None, 0, 2]),
)
def test_any_run_by_any_ranges(seed, ids, world_sizes, max_rows, buckets, workers, until_epoch):
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder, small_reads():
        path = Path(folder) / "a"
        made = make_run(path, seed, ids=ids, world_sizes=world_sizes, max_rows=max_rows)
        if buckets:
            made = compacted(made)
        found = by_ranges(made.run, workers, until_epoch)
        last = np.inf if until_epoch is None else until_epoch
        expected = naive_summary(made.first[made.first["epoch"] <= last])
    assert found.index.tolist() == expected.index.tolist()
    for column in ("n_observed", "n_correct", "n_forgotten"):
        assert found[column].tolist() == expected[column].tolist()
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], atol=1e-12, err_msg=column)


def test_the_same_bits_as_the_embedded_engine(tmp_path):
    """Rows of a part stay in their order, so no sum is taken in another one."""
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(-(2**62), 2**62, 40_000))
    loss = rng.standard_normal(len(ids)).astype(np.float32)
    write_run(tmp_path / "a", 5, sample_id=ids, loss=loss, correct=np.sign(loss) > 0)
    expected = summarise_samples(open_run(tmp_path / "a"))
    pd.testing.assert_frame_equal(
        by_ranges(open_run(tmp_path / "a"), 3), expected, check_exact=True
    )


def test_ranges_hold_every_id_once_and_about_as_many_rows(tmp_path):
    write_run(tmp_path / "a", 3, sample_id=np.arange(1000) * 2**50 - 2**58)
    with mock.patch("dynamics.traces.rows._ROWS_PER_GROUP", 50):
        write_run(tmp_path / "b", 3, sample_id=np.arange(1000) * 2**50 - 2**58)
    ranges = cut_ranges(open_run(tmp_path / "b").footers(), 4)
    assert (ranges[0].first, ranges[-1].last) == (-(2**63), 2**63 - 1)
    assert [r.last + 1 for r in ranges[:-1]] == [r.first for r in ranges[1:]]
    firsts = [r.first / 2**50 + 256 for r in ranges[1:]]
    assert firsts == [250, 500, 750]
    assert len(cut_ranges(open_run(tmp_path / "a").footers(), 4)) == 1  # one row group an epoch
    assert cut_ranges([], 4) == []


def count_rows_read(run, workers):
    read, rows = row_groups.read, []

    def counted(reading, *arguments):
        rows.append(reading.n_rows)
        return read(reading, *arguments)

    with mock.patch("dynamics.traces.scan.read", counted):
        by_ranges(run, workers)
    return sum(rows)


def test_a_range_reads_the_row_groups_that_can_hold_it_and_no_others(tmp_path):
    with mock.patch("dynamics.traces.rows._ROWS_PER_GROUP", 50):
        write_run(tmp_path / "a", 4, sample_id=np.arange(1000))
    assert count_rows_read(open_run(tmp_path / "a"), 1) == 4000
    assert count_rows_read(open_run(tmp_path / "a"), 4) == 4000
    made = compacted(make_run(tmp_path / "b", 5))
    n_rows = sum(int(footer.n_rows.sum()) for footer in made.run.footers())
    assert len(made.run.parts("samples")) > 1
    assert count_rows_read(made.run, 3) == n_rows


def test_each_part_is_hashed_once_by_whoever_reads_it_first(tmp_path):
    made = make_run(tmp_path / "a", 7)
    run, calls = made.run, []

    def noted(function, common, arguments):
        calls.append((function, len(arguments)))
        return one_by_one(function, common, arguments)

    with mock.patch.object(sample_ranges, "PARTS_PER_CALL", 1):
        summarise_ranges(run, noted, 2, until_epoch=None, memory_limit=LIMIT)
    assert calls[0] == (sample_ranges.prove_parts, len(run.parts("samples")))
    assert [function for function, _ in calls[1:]] == [sample_ranges.summarise_range]
    with mock.patch("dynamics.traces.row_groups.open_part", side_effect=AssertionError):
        assert len(run.footers()) == len(run.parts("samples"))  # known from the workers


def test_a_run_without_rows_has_an_empty_summary(tmp_path):
    create_run(tmp_path / "a", {})
    expected = summarise_samples(open_run(tmp_path / "a"))
    pd.testing.assert_frame_equal(by_ranges(open_run(tmp_path / "a"), 2), expected)
