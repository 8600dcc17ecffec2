"""A compacted run reads as it did before, at every moment of the compaction and after it."""

import contextlib
import gc
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from faults import Killed, fault_at
from random_runs import ID_KINDS, continue_run, random_run
from recorded import add_attempt, write_run

from dynamics import open_run
from dynamics.traces import (
    CorruptTraceError,
    TraceError,
    TraceWriter,
    begin_attempt,
    create_run,
)
from dynamics.traces.compaction import buckets
from dynamics.traces.compaction import compact as compact_module
from dynamics.traces.compaction.buckets import bucket_bounds, row_checksum
from dynamics.traces.compaction.compact import compact
from dynamics.traces.compaction.manifest import read_manifest


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
    before, never_compacted = everything(run.path), tmp_path / "twin"
    shutil.copytree(run.path, never_compacted)
    compact(run.path)
    assert_same(before, everything(run.path))
    assert list(run.path.glob("*/rank-*/part-*")) == []
    last = int(run.samples(repeats=True)["step"].max())
    for path in (run.path, never_compacted):
        rng = np.random.default_rng(seed)
        continue_run(path, rng, run.roster().index.to_numpy(), last + 1, ranks=(1, 2))
    resumed = everything(never_compacted)
    assert_same(resumed, everything(run.path))
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


@pytest.mark.crash
@pytest.mark.parametrize("dies", [pytest.param(False, marks=pytest.mark.slow), True])
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
        if n % 4 == 0:
            assert_same(before, everything(path))
        assert [p.name for p in path.glob("compacted/*")] == ["v0001"]
        assert list(path.glob("*/rank-*/part-*")) == []
        shutil.rmtree(path)
        if not faults.struck:
            break
    assert 30 < n < 1999


def test_a_run_that_may_be_written_to_is_refused_unless_forced(tmp_path):
    run = write_run(tmp_path / "run", {"samples": [batch(range(3))]}, clean=False)
    before = everything(run.path)
    with pytest.raises(TraceError, match=r"Attempt 0 began .* as process \d+.*force=True"):
        compact(run.path)
    assert not (run.path / "compacted").exists()
    compact(run.path, force=True)
    assert_same(before, everything(run.path))


def test_rows_written_while_a_forced_compaction_ran_are_kept(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", {"samples": [batch(range(3))]}, clean=False)

    def sort_and_write(path):
        add_part(run.path, [3])
        monkeypatch.undo()
        return buckets.sort_bucket(path)

    monkeypatch.setattr("dynamics.traces.compaction.compact.sort_bucket", sort_and_write)
    with pytest.raises(TraceError, match="was written to while"):
        compact(run.path, force=True)
    assert open_run(run.path).samples()["step"].max() == 3
    assert list((run.path / "compacted").iterdir()) == []


def add_part(path, steps):
    writer = TraceWriter(path, attempt=0, rank=1)
    writer.append("samples", batch(steps))
    writer.close(clean=False)


def test_rows_of_a_writer_that_lives_after_a_forced_compaction_count(tmp_path):
    run = write_run(tmp_path / "run", {"samples": [batch(range(3))]}, clean=False)
    compact(run.path, force=True)
    add_part(run.path, [3])
    assert sorted({*open_run(run.path).samples()["step"]}) == [0, 1, 2, 3]


def test_a_damaged_part_stops_the_compaction_and_nothing_changes(small_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(small_run, path)
    (part, *_) = open_run(path).parts("samples")
    part.path.write_bytes(part.path.read_bytes()[:-1])
    before = sorted(path.rglob("*"))
    with pytest.raises(CorruptTraceError, match=part.path.name):
        compact(path)
    assert sorted(p for p in path.rglob("*") if p.name != "compacted") == before


def test_what_reads_back_differently_stops_the_compaction(small_run, tmp_path, monkeypatch):
    path = tmp_path / "run"
    shutil.copytree(small_run, path)
    before = everything(path)

    def corrupt(rows, *args, **kwargs):
        loss = rows["loss"].to_numpy().copy()
        loss[0] += 1
        at = rows.column_names.index("loss")
        return write(rows.set_column(at, rows.schema.field("loss"), [loss]), *args, **kwargs)

    write = buckets.encode_part
    monkeypatch.setattr(
        buckets,
        "encode_part",
        lambda r, t, **how: (corrupt if t.name == "samples" else write)(r, t, **how),
    )
    with pytest.raises(CorruptTraceError, match="does not read back"):
        compact(path)
    assert_same(before, everything(path))
    assert len(list(path.glob("samples/*/part-*"))) == 2


def test_a_reader_that_listed_the_parts_before_is_told_or_lists_again(tmp_path):
    path = tmp_path / "run"
    create_run(path, {})
    writer = TraceWriter(path, attempt=begin_attempt(path, from_step=0, from_epoch=0), max_rows=1)
    for step in range(10):
        writer.append("samples", batch([step]))
    writer.close()
    run = open_run(path)
    before = run.samples()
    rows = run.iter_samples(["loss"])
    next(rows)  # two parts are read ahead
    assert len(run.parts("samples")) == 10
    compact(path)
    with pytest.raises(TraceError, match="compacted or repaired while it was read"):
        list(rows)
    assert run.samples().equals(before)  # the same object, opened before


def test_of_two_compactions_at_once_one_wins(small_run, tmp_path, monkeypatch):
    path = tmp_path / "run"
    shutil.copytree(small_run, path)
    before = everything(path)

    def commit_after_another(run, folder, number):
        monkeypatch.undo()
        shutil.move(folder, tmp_path / "kept")  # or the other would take it for a leftover
        compact(path)
        shutil.move(tmp_path / "kept", folder)
        real(run, folder, number)

    real = compact_module._commit
    monkeypatch.setattr(compact_module, "_commit", commit_after_another)
    with pytest.raises(TraceError, match="another compaction"):
        compact(path)
    assert_same(before, everything(path))
    assert len(list(path.glob("compacted/*"))) == 1


def test_a_compacted_run_is_not_compacted_again_for_nothing(small_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(small_run, path)
    first = compact(path)
    assert compact(path) == first == read_manifest(path)
    assert compact(write_run(tmp_path / "empty", {}).path) is None


def test_one_samples_trajectory_touches_only_its_bucket(small_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(small_run, path)
    before = open_run(path).samples(sample_id=9)
    compact(path)
    first, *others = open_run(path).parts("samples")
    assert first.sample_range != others[-1].sample_range
    for part in (first, *others[:-1]):
        part.path.write_bytes(b"")
    assert others[-1].sample_range == (9, 9)
    assert open_run(path).samples(sample_id=9).equals(before)
    with pytest.raises(CorruptTraceError):
        open_run(path).samples(sample_id=4)


def test_a_file_that_changes_after_it_was_read_is_compared_again(small_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(small_run, path)
    run = open_run(path)
    run.samples()
    (part, *_) = run.parts("samples")
    data = bytearray(part.path.read_bytes())
    data[100] ^= 1
    part.path.write_bytes(data)
    with pytest.raises(CorruptTraceError, match=part.path.name):
        run.samples()
    with pytest.raises(CorruptTraceError, match=part.path.name):
        run.sql("SELECT count(*) FROM samples")


@pytest.mark.parametrize("kind", ID_KINDS)
@pytest.mark.parametrize("n_parts", [1, 7])
def test_buckets_are_even_and_keep_a_sample_together(monkeypatch, kind, n_parts):
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 1000)
    rng = np.random.default_rng(0)
    ids = ID_KINDS[kind](rng, 500)
    parts = [rng.choice(ids, 2000) for _ in range(n_parts)]
    bounds = bucket_bounds(parts)
    sizes = np.bincount(np.searchsorted(bounds, np.concatenate(parts), "right"))
    assert len(sizes) == 2 * n_parts
    assert sizes.min() > 800
    assert sizes.max() < 1200


def test_bounds_of_nothing_and_of_one_sample(monkeypatch):
    monkeypatch.setattr(buckets, "BUCKET_ROWS", 10)
    assert len(bucket_bounds([])) == 0
    assert len(bucket_bounds([np.empty(0, np.int64)])) == 0
    assert len(bucket_bounds([np.full(1000, 3)])) <= 1


def test_the_checksum_sees_every_value_and_no_order():
    rng = np.random.default_rng(0)
    columns = {"sample_id": np.arange(50), "loss": rng.random(50, dtype=np.float32)}
    rows = pa.table(columns | {"correct": pa.array([None, 0, 1, 1, 0] * 10, pa.int8())})
    checksum = row_checksum(rows)
    assert row_checksum(rows.take(rng.permutation(50))) == checksum
    halves = row_checksum(rows.slice(0, 20)) + row_checksum(rows.slice(20))
    assert halves % 2**64 == checksum
    for at, name in enumerate(rows.column_names):
        for row in range(50):
            values = rows[name].to_pylist()
            values[row] = None if values[row] is not None else 0
            changed = rows.set_column(at, name, pa.array(values, rows[name].type))
            assert row_checksum(changed) != checksum
    swapped = rows.set_column(1, "loss", rows["loss"].take(pa.array([1, 0, *range(2, 50)])))
    assert row_checksum(swapped) != checksum
