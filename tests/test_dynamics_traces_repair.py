"""After a repair a run reads again, nothing has been deleted, and what is gone has been named."""

import contextlib
import shutil

import numpy as np
import pytest
from faults import Killed, fault_at
from recorded import info, roster

from dynamics import open_run
from dynamics.traces import CorruptTraceError, TraceError, TraceWriter, begin_attempt, create_run
from dynamics.traces.compaction.compact import compact
from dynamics.traces.mending.repair import repair
from dynamics.traces.verification.verify import verify

N, EPOCHS = 6, 5


def rows(epoch, ids=range(N)):
    """Two steps an epoch: the first half of the samples, then the second."""
    ids = np.asarray(ids)
    step = 2 * epoch + (ids >= N // 2)
    return {"step": step, "epoch": np.full(len(ids), epoch), "sample_id": ids, "loss": ids + epoch}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """One part an epoch in two attempts; the second starts at epoch 3, step 6."""
    path = tmp_path_factory.mktemp("repair") / "run"
    create_run(path, info(n_samples=N))
    begin_attempt(path, from_step=0, from_epoch=0)
    record(path, 0, range(4), roster(np.arange(N)))
    begin_attempt(path, from_step=6, from_epoch=3)
    record(path, 1, range(3, EPOCHS))
    return path


def record(path, attempt, epochs, samples=()):
    writer = TraceWriter(path, attempt=attempt)
    for columns in samples:
        writer.append("roster", columns)
    for epoch in epochs:
        writer.append("samples", rows(epoch))
        event = {"step": [2 * epoch + 1], "epoch": [epoch], "name": ["epoch_end"]}
        writer.append("events", event)
        writer.flush()
    writer.append_vector("fisher_diagonal", {"w": np.ones(3)}, step=1 + 7 * attempt, epoch=attempt)
    writer.close()


@pytest.fixture
def run(recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "run")
    return tmp_path / "run"


def contents(run):
    """Every file's bytes, but for records and what is made anew."""
    return sorted(p.read_bytes() for p in run.rglob("*") if p.suffix == ".parquet")


def spoil(path):
    path.write_bytes(path.read_bytes()[:-40])


def repaired(run):
    before = contents(run)
    done = repair(run)
    assert contents(run) == before  # moved, never deleted
    assert "damage" not in {*verify(run)["severity"]}
    open_run(run).samples()
    again = repair(run)
    assert again.set_aside.equals(done.set_aside)
    assert again.gone.equals(done.gone)
    return done


def test_a_sound_run_needs_no_repair(run):
    done = repaired(run)
    assert done.set_aside.empty
    assert done.gone.empty
    assert not (run / "set-aside").exists()


def test_of_a_broken_part_each_sample_and_epoch_that_is_gone_is_named(run):
    spoil(open_run(run).parts("samples")[1].path)  # epoch 1
    done = repaired(run)
    (lost,) = done.set_aside["lost"]
    assert lost == "rows of `samples` of steps 2 to 3, recorded by rank-00000 in attempt 0."
    assert done.gone.to_numpy().tolist() == [[1, i] for i in range(N)]
    assert open_run(run).samples()["epoch"].unique().tolist() == [0, 2, 3, 4]
    assert (run / "set-aside" / "gone.csv").read_text().splitlines()[:2] == [
        "epoch,sample_id",
        "1,0",
    ]


def test_a_broken_part_whose_rows_were_all_replaced_takes_nothing_with_it(run):
    before = open_run(run).samples()
    (part,) = (p for p in open_run(run).parts("samples") if p.name.sequence == 3)
    spoil(part.path)
    done = repaired(run)
    assert done.set_aside["lost"].item().startswith("nothing that counts")
    assert done.gone.empty
    assert open_run(run).samples().equals(before)


def test_a_missing_part_is_recorded_as_lost(run):
    open_run(run).parts("samples")[2].path.unlink()
    done = repaired(run)
    assert done.set_aside["file"].tolist() == ["samples/rank-00000/part-0000-000002"]
    assert done.gone["epoch"].unique().tolist() == [2]


def test_a_broken_bucket_is_set_aside_and_its_samples_are_named(run, monkeypatch):
    monkeypatch.setattr("dynamics.traces.compaction.buckets.BUCKET_ROWS", 10)
    before = open_run(run).samples()
    compact(run)
    bucket = open_run(run).parts("samples")[1]
    first, last = bucket.sample_range
    spoil(bucket.path)
    done = repaired(run)
    assert f"samples {first} to {last}" in done.set_aside["lost"].item()
    assert {*done.gone["sample_id"]} == {*range(first, last + 1)}
    assert {*done.gone["epoch"]} == {*range(EPOCHS)}
    assert (
        open_run(run)
        .samples()
        .equals(before[~before["sample_id"].between(first, last)].reset_index(drop=True))
    )


def test_a_broken_bucket_beside_the_parts_it_replaced_gives_way_to_them(run, monkeypatch):
    before = open_run(run).samples()
    with monkeypatch.context() as patch:
        patch.setattr(
            "dynamics.traces.compaction.compact._retire", lambda run: None
        )  # interrupted there
        compact(run)
    bucket = open_run(run).parts("samples")[0]
    assert bucket.sample_range is not None
    spoil(bucket.path)
    with pytest.raises(CorruptTraceError):
        compact(run)  # would remove the parts, the only sound copy
    done = repaired(run)
    assert done.set_aside["lost"].item().startswith("nothing")
    assert done.gone.empty
    assert open_run(run).samples().equals(before)


def test_what_was_never_recorded_is_not_said_to_be_gone_with_a_part(run):
    begin_attempt(run, from_step=10, from_epoch=5)
    writer = TraceWriter(run, attempt=2)
    for epoch in (5, 6):
        writer.append("samples", rows(epoch, ids=[0, 1, 2, 3]))
        writer.flush()
    writer.close()
    spoil(open_run(run).parts("samples")[1].path)  # epoch 1
    assert repair(run).gone["epoch"].unique().tolist() == [1]


@pytest.mark.parametrize("table", ["events", "roster"])
def test_a_broken_part_of_a_small_table_is_set_aside(run, table):
    samples = open_run(run).samples()
    spoil(open_run(run).parts(table)[0].path)
    done = repaired(run)
    assert len(done.set_aside) == 1
    assert open_run(run).samples().equals(samples)


def test_a_broken_vector_is_set_aside(run):
    spoil(next(run.glob("vectors/*/*epoch1*")))
    assert "vector" in repaired(run).set_aside["lost"].item()
    assert len(open_run(run).vectors()) == len([*run.glob("vectors/*/*")])


@pytest.mark.parametrize("content", [None, b"", b'{"schema_ver'], ids=["gone", "empty", "torn"])
def test_a_torn_run_file_is_made_anew(run, content):
    before = open_run(run).samples()
    replace(run / "run.json", content)
    assert "configuration" in repaired(run).set_aside["lost"].item()
    assert open_run(run).samples().equals(before)
    assert open_run(run).config == {}


def replace(path, content):
    path.unlink() if content is None else path.write_bytes(content)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("content", [None, b"{}"], ids=["gone", "torn"])
def test_the_record_of_an_attempt_is_made_anew_from_its_rows(run, number, content):
    before = open_run(run).samples()
    attempts = open_run(run).attempts
    replace(run / "attempts" / f"attempt-{number:04d}.json", content)
    done = repaired(run)
    assert len(done.set_aside) >= 1
    again = open_run(run)
    assert [a.attempt for a in again.attempts] == [a.attempt for a in attempts]
    assert [a.from_step for a in again.attempts] == [a.from_step for a in attempts]
    assert again.samples().equals(before)


def test_a_torn_record_of_the_clean_end_is_set_aside(run):
    replace(run / "end" / "attempt-0001-rank-00000.json", b"{}")
    assert "proof" in repaired(run).set_aside["lost"].item()
    assert not open_run(run).ended_cleanly
    with pytest.raises(TraceError, match="force=True"):
        compact(run)


@pytest.mark.parametrize("copy_too", [False, True], ids=["copy left", "copy torn too"])
def test_a_torn_manifest_is_made_anew(run, copy_too):
    before = open_run(run).samples()
    compact(run)
    names = ["manifest.json", "manifest.copy.json"][: 1 + copy_too]
    for name in names:
        (run / "compacted" / "v0001" / name).write_bytes(b"{}")
    with pytest.raises(TraceError, match="repair"):
        open_run(run).samples()
    repaired(run)
    assert open_run(run).samples().equals(before)
    assert open_run(run).ended_cleanly != copy_too


def test_everything_broken_at_once_still_leaves_a_run_that_opens(run):
    for path in run.rglob("*"):
        if path.is_file():
            spoil(path)
    repaired(run)
    assert open_run(run).samples().empty


@pytest.mark.crash
@pytest.mark.parametrize("dies", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_repair_interrupted_at_any_call_loses_nothing_and_can_be_repeated(
    recorded, tmp_path, dies
):
    spoiled = tmp_path / "spoiled"
    shutil.copytree(recorded, spoiled)
    spoil(open_run(spoiled).parts("samples")[1].path)
    (spoiled / "run.json").write_bytes(b"")
    (spoiled / "attempts" / "attempt-0001.json").write_bytes(b"")
    whole = tmp_path / "whole"
    shutil.copytree(spoiled, whole)
    repair(whole)
    after = open_run(whole).samples()
    for n in range(1, 200):
        path = tmp_path / str(n)
        shutil.copytree(spoiled, path)
        with fault_at(n, dies=dies) as faults, contextlib.suppress(OSError, TraceError, Killed):
            repair(path)
        assert contents(path) == contents(spoiled)
        repair(path)
        assert contents(path) == contents(spoiled)
        assert open_run(path).samples().equals(after)
        shutil.rmtree(path)
        if not faults.struck:
            break
    assert 10 < n < 199


def test_what_is_not_a_run_is_not_repaired(tmp_path):
    with pytest.raises(TraceError, match=r"no run\.json"):
        repair(tmp_path)
