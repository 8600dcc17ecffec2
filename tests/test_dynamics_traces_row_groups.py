"""Only row groups that a question needs are read, and no damaged byte of them is averaged in."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import IDS, IN_MEMORY, VALUES, compacted, make_run, small_reads
from recorded import write_run

from dynamics import open_run
from dynamics.traces import CorruptTraceError, TraceError, parts, row_groups, rows
from dynamics.traces.row_groups import ROWS_PER_READ, Selection, in_threads, plan


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ids=st.sampled_from(list(IDS)),
    world_sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    buckets=st.booleans(),
    repeats=st.booleans(),
)
def test_a_selection_reads_what_filtering_the_whole_would_give(
    seed, ids, world_sizes, buckets, repeats
):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder, small_reads():
        made = make_run(Path(folder) / "a", seed, ids=ids, world_sizes=world_sizes)
        if buckets:
            made = compacted(made)
        chosen = rng.choice(IDS[ids], 3)
        epochs = rng.integers(0, 5, 2)
        table = made.run.samples(sample_id=chosen, epochs=epochs, repeats=repeats)
        whole = made.rows if repeats else made.first
        expected = whole[whole["sample_id"].isin(chosen) & whole["epoch"].isin(epochs)]
        expected = expected.sort_values(["epoch", "sample_id", "occurrence"])
        keys = ["step", "epoch", "sample_id", "occurrence"]
        assert table[keys].to_numpy().tolist() == expected[keys].to_numpy().tolist()
        for name in VALUES:
            np.testing.assert_array_equal(table[name], expected[name])


def sorted_run(path, n=1000, epochs=3):
    """Sample i has loss i + epoch / 4."""
    batches = [
        {"step": np.full(n, e), "epoch": np.full(n, e), "sample_id": np.arange(n)}
        | {"loss": np.arange(n) + e / 4}
        for e in range(epochs)
    ]
    return write_run(path, {"samples": batches})


def test_a_trajectory_reads_one_row_group_an_epoch(tmp_path, monkeypatch):
    with small_reads(per_group=100):
        run = sorted_run(tmp_path / "run")
    readings = plan(run.footers(), Selection(sample_ids=np.array([250])))
    assert sum(len(reading.groups) for reading in readings) == 3
    assert sum(reading.n_rows for reading in readings) == 300
    assert run.samples(sample_id=250)["loss"].tolist() == [250, 250.25, 250.5]


def test_row_groups_are_read_about_as_many_rows_at_once_as_stated(tmp_path):
    with small_reads(per_group=100, per_read=250):
        run = sorted_run(tmp_path / "run")
        sizes = [reading.n_rows for reading in plan(run.footers(), Selection())]
    assert sum(sizes) == 3000
    assert max(sizes) <= 300
    assert ROWS_PER_READ > 10**5


def test_every_part_is_hashed_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    run = sorted_run(tmp_path / "run")
    hashed = []
    hash_of = parts.content_hash
    monkeypatch.setattr(parts, "content_hash", lambda data: hashed.append(1) or hash_of(data))
    run.samples(sample_id=1)
    run.samples()
    assert len(hashed) == len(run.parts("samples"))
    path = run.parts("samples")[0].path
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    run.samples()
    assert len(hashed) == len(run.parts("samples")) + 1


def test_of_a_compacted_run_only_the_bucket_that_holds_the_sample_is_hashed(tmp_path, monkeypatch):
    path = compacted(make_run(tmp_path / "run", 3)).path
    run, hashed = open_run(path), []
    hash_of = parts.content_hash
    monkeypatch.setattr(parts, "content_hash", lambda data: hashed.append(1) or hash_of(data))
    assert set(run.samples(sample_id=4)["sample_id"]) == {4}
    assert len(hashed) == 1 < len(run.parts("samples"))


@pytest.mark.parametrize("is_known", [False, True], ids=["first read", "after a sound read"])
def test_a_flipped_byte_anywhere_is_never_read_as_data(tmp_path, monkeypatch, is_known):
    """Also when the file's time says that nothing changed, as after rot on the disk."""
    run = sorted_run(tmp_path / "run", n=300)
    path = run.parts("samples")[0].path
    data = path.read_bytes()
    expected = run.samples()
    if is_known:
        monkeypatch.setattr(row_groups, "_stamp", lambda part: (0, 0, 0))
        run = open_run(run.path)
        run.footers()
    silent = []
    for at in range(0, len(data), 23):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        try:
            found = (run if is_known else open_run(run.path)).samples()
        except CorruptTraceError:
            continue
        silent.append(at)
        pd.testing.assert_frame_equal(found, expected)  # a byte that no reader looks at
    assert is_known or not silent


def test_a_part_that_vanishes_or_shrinks_after_it_was_known_is_an_error(tmp_path):
    run = sorted_run(tmp_path / "run")
    run.footers()
    path = run.parts("samples")[0].path
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptTraceError, match="is damaged"):
        run.samples()
    shutil.rmtree(run.path / "samples")
    assert run.samples().empty


def test_an_error_in_a_thread_is_raised_and_order_is_kept():
    assert list(in_threads(lambda x: x * x, range(20))) == [x * x for x in range(20)]

    def fail(x):
        if x == 7:
            raise TraceError("seven")
        return x

    found = []
    with pytest.raises(TraceError, match="seven"):
        found.extend(in_threads(fail, range(20)))


def test_a_column_is_not_taken_for_another_whose_name_goes_on_after_a_dot(tmp_path):
    values = {"grad_norm/a": [1.0], "grad_norm/a.b": [2.0]}
    columns = {"step": [0], "epoch": [0], "sample_id": [0], **values}
    columns = {name: np.array(value) for name, value in columns.items()}
    run = write_run(tmp_path / "run", {"samples": [columns]})
    table = run.samples(columns=["grad_norm/a"])
    assert list(table.columns) == ["epoch", "sample_id", "grad_norm/a"]
    assert table["grad_norm/a"].tolist() == [1]
    assert rows._ROWS_PER_GROUP == 16_384
