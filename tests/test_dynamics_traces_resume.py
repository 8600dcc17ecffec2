"""Names of runs, attempts, and fences: a resumed run reads as if never interrupted."""

import datetime
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import add_attempt

from dynamics import open_run
from dynamics.traces import SchemaError, TraceError, TraceWriter, begin_attempt, create_run
from dynamics.traces.layout import read_json, run_folder, write_json_once
from dynamics.traces.resume import check_folder, latest_attempt, read_attempts

STEPS = 3  # per epoch


@pytest.mark.parametrize("name", ["a", "7", "run-1", "A.b_c-d", "x" * 128, "console", "com10"])
def test_a_plain_name_is_the_folder_of_that_name(tmp_path, name):
    assert run_folder(tmp_path, name) == tmp_path / name


BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "a/../../b", "/abs", "a\\b", "C:x", "a\0b", "a\n", "a b", "-rf",
    ".hidden", "_a", "x" * 129, "x" * 300, "CON", "con", "nul.txt", "LPT1", "com7.log", "aux.",
    "ａbc", "run\u2024a", "run\u2215a", "ran\u0261", "é", "a\u202eb", "١",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(TraceError, match="cannot be the name of a run"):
        run_folder(tmp_path, name)


@given(st.text(alphabet="aZ09._-/\\\0\n :~é", max_size=12) | st.text(max_size=12))
def test_an_accepted_name_is_one_plain_step_below_the_parent(name):
    parent = Path("/nowhere/runs")
    try:
        folder = run_folder(parent, name)
    except TraceError:
        return
    assert folder.parent == parent
    assert folder.name == name
    assert folder.resolve().parent == parent
    assert name.isascii()


def test_a_run_is_never_written_through_a_symbolic_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    assert run_folder(tmp_path, "real").is_dir()
    for name in ("link", "dangling"):
        with pytest.raises(TraceError, match="symbolic link"):
            run_folder(tmp_path, name)


def test_a_run_is_created_once(tmp_path):
    create_run(tmp_path / "run", {"config": {"lr": 1}})
    with pytest.raises(TraceError, match="already holds a run"):
        create_run(tmp_path / "run", {"config": {"lr": 2}})
    assert open_run(tmp_path / "run").config == {"lr": 1}
    assert [path.name for path in (tmp_path / "run").glob(".*")] == []


def test_what_cannot_be_stored_as_json_leaves_no_run(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        create_run(tmp_path / "run", {"config": {"lr": float("nan")}})
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_folder_is_refused_if_rows_would_be_mixed_or_there_is_nothing_to_resume(tmp_path):
    folder = tmp_path / "run"
    check_folder(folder, resume=False)
    with pytest.raises(TraceError, match="no run to resume"):
        check_folder(folder, resume=True)
    create_run(folder, {})
    check_folder(folder, resume=False)  # no rows yet
    record(folder, range(2))
    check_folder(folder, resume=True)
    with pytest.raises(TraceError, match="already holds a run"):
        check_folder(folder, resume=False)


def test_attempts_are_numbered_from_0_and_keep_what_they_were_given(tmp_path):
    create_run(tmp_path / "run", {})
    assert latest_attempt(tmp_path / "run") == -1
    starts = [(0, 0), (7, 2), (7, 2), (3, 1)]
    for number, (step, epoch) in enumerate(starts):
        found = begin_attempt(tmp_path / "run", from_step=step, from_epoch=epoch, world_size=2)
        assert found == number == latest_attempt(tmp_path / "run")
    attempts = read_attempts(tmp_path / "run")
    assert [a.attempt for a in attempts] == [0, 1, 2, 3]
    assert [(a.from_step, a.from_epoch) for a in attempts] == starts
    assert {a.world_size for a in attempts} == {2}


@pytest.mark.parametrize("content", ["{}", '{"attempt": 0}', "[]", ""])
def test_a_garbled_attempt_is_refused_and_named(tmp_path, content):
    create_run(tmp_path / "run", {})
    (tmp_path / "run" / "attempts" / "attempt-0000.json").write_text(content)
    with pytest.raises(TraceError, match=r"attempt-0000\.json"):
        read_attempts(tmp_path / "run")


def test_an_attempt_with_text_for_a_step_is_refused(tmp_path):
    create_run(tmp_path / "run", {})
    begin_attempt(tmp_path / "run", from_step=0, from_epoch=0)
    path = tmp_path / "run" / "attempts" / "attempt-0000.json"
    path.write_text(path.read_text().replace('"from_step": 0', '"from_step": "0"'))
    with pytest.raises(SchemaError, match=r"attempt-0000\.json"):
        read_attempts(tmp_path / "run")


def record(folder, steps, *, from_epoch=None, tag=0.0):
    """An attempt that records one sample per step and a value at the end of each epoch."""
    samples = [
        {"step": [s], "epoch": [s // STEPS], "sample_id": [s % STEPS], "loss": [tag]} for s in steps
    ]
    ends = [(s + 1, s // STEPS) for s in steps if s % STEPS == STEPS - 1]
    scalars = [
        {"step": [s], "epoch": [e], "name": ["a"], "block": ["total"], "value": [tag]}
        for s, e in ends
    ]
    samples = [{name: np.array(v) for name, v in row.items()} for row in samples]
    epoch = steps.start // STEPS if from_epoch is None else from_epoch
    tables = {"samples": samples, "scalars": scalars}
    add_attempt(folder, tables, from_step=steps.start, from_epoch=epoch, clean=False)


def test_samples_of_earlier_attempts_count_up_to_the_step_of_the_restart(tmp_path):
    create_run(tmp_path / "run", {})
    record(tmp_path / "run", range(6), tag=1)
    record(tmp_path / "run", range(4, 8), tag=2)
    table = open_run(tmp_path / "run").samples(columns=["step", "loss"])
    assert table["step"].tolist() == list(range(8))
    assert table["loss"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize(("from_epoch", "kept"), [(2, [0, 1]), (1, [0]), (0, [0])])
def test_at_the_step_of_the_restart_values_of_finished_epochs_are_kept(tmp_path, from_epoch, kept):
    create_run(tmp_path / "run", {})
    record(tmp_path / "run", range(9))  # ends at steps 3, 6, 9
    begin_attempt(tmp_path / "run", from_step=6, from_epoch=from_epoch)
    assert open_run(tmp_path / "run").scalars()["epoch"].tolist() == kept


def test_two_restarts_in_a_row_fence_all_that_lies_behind_them(tmp_path):
    create_run(tmp_path / "run", {})
    record(tmp_path / "run", range(9), tag=1)
    record(tmp_path / "run", range(6, 9), tag=2)
    record(tmp_path / "run", range(3, 5), tag=3)
    run = open_run(tmp_path / "run")
    assert run.samples(columns=["loss"])["loss"].tolist() == [1, 1, 1, 3, 3]
    assert run.scalars()["value"].tolist() == [1]
    assert len(run.parts("samples")) == 3  # nothing is deleted


def epoch_ids(epoch):
    """Samples of an epoch in order, two a step, the first one repeated as padding."""
    order = np.random.default_rng(epoch).permutation(2 * STEPS - 1)
    return np.append(order, order[0])


def uninterrupted(end):
    """The rows of a run that was never interrupted."""
    for step in range(end):
        epoch, turn = divmod(step, STEPS)
        ids = epoch_ids(epoch)
        for at in (2 * turn, 2 * turn + 1):
            yield step, epoch, int(ids[at]), int(at == 2 * STEPS - 1)


def train(folder, start, end, from_epoch, tag, max_rows):
    attempt = begin_attempt(folder, from_step=start, from_epoch=from_epoch)
    writer = TraceWriter(folder, attempt=attempt, max_rows=max_rows, max_seconds=1e9)
    seen = open_run(folder).samples(columns=["step"], epochs=[start // STEPS], repeats=True)
    writer.seen(start // STEPS, seen["sample_id"].to_numpy())
    if start == 0 or from_epoch < start // STEPS:
        append_end(writer, start, from_epoch, tag)
    for step in range(start, end):
        epoch, turn = divmod(step, STEPS)
        ids = epoch_ids(epoch)[2 * turn : 2 * turn + 2]
        keys = {"step": np.full(2, step), "epoch": np.full(2, epoch), "sample_id": ids}
        writer.append("samples", keys | {"loss": np.full(2, float(tag))})
        if turn == STEPS - 1:
            append_end(writer, step + 1, epoch, tag)
    writer.close(clean=False)


def append_end(writer, step, epoch, tag):
    place = {"step": [step], "epoch": [epoch], "name": ["a"], "block": ["total"]}
    writer.append("scalars", place | {"value": [float(tag)]})


@settings(max_examples=40)
@given(
    restarts=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 7), st.booleans()), max_size=4),
    first=st.integers(0, 11),
    max_rows=st.integers(1, 9),
)
def test_a_run_with_restarts_reads_as_if_never_interrupted(restarts, first, max_rows):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_run(folder, {})
        starts, end = [0], first
        train(folder, 0, end, -1, 0, max_rows)
        for tag, (back, steps, at_epoch_end) in enumerate(restarts, start=1):
            start = max(0, end - back)
            again = at_epoch_end and start % STEPS == 0  # saved before the epoch's measurement
            starts, end = [*starts, start], start + steps
            train(folder, start, end, start // STEPS - (again or start == 0), tag, max_rows)
        run = open_run(folder)
        rows = run.samples(repeats=True, columns=["step", "occurrence", "loss"])
        scalars = run.scalars()
    keys = rows[["step", "epoch", "sample_id", "occurrence"]].itertuples(index=False, name=None)
    assert sorted(keys) == sorted(uninterrupted(end))
    latest = [max(t for t, s in enumerate(starts) if s <= step) for step in rows["step"]]
    assert rows["loss"].tolist() == latest
    ends = [(STEPS * (e + 1), e) for e in range(-1, end // STEPS)]
    assert list(zip(scalars["step"], scalars["epoch"], strict=True)) == ends


LEFTOVERS = {
    ".tmp-run.json-aa": True,
    "attempts/.tmp-attempt-0001.json-aa": True,
    "attempts/.tmp-attempt-0002.json-aa": False,  # of another that begins now
    "end/.tmp-attempt-0000-rank-00003.json-aa": True,
    "end/.tmp-attempt-0001-rank-00003.json-aa": False,
    "samples/rank-00003/.tmp-part-0000-000004-1-2-0123456789abcdef.parquet-aa": True,
    "samples/rank-00003/.tmp-part-0001-000004-1-2-0123456789abcdef.parquet-aa": False,
    "vectors/rank-00000/.tmp-fisher_diagonal-0000-4-epoch0-0123456789abcdef.parquet-aa": True,
    "vectors/rank-00000/.tmp-fisher_diagonal-0001-4-epoch0-0123456789abcdef.parquet-aa": False,
    "compacted/.tmp-bucket-0000.parquet-aa": False,
    "samples/rank-00003/.tmp-else": False,
    "samples/rank-00003/kept.parquet": False,
}


def test_a_new_attempt_clears_away_what_killed_processes_left_and_nothing_of_the_living(tmp_path):
    folder = tmp_path / "run"
    create_run(folder, {})
    begin_attempt(folder, from_step=0, from_epoch=0)
    for name in LEFTOVERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    open_run(folder).samples()  # readers pass them over
    begin_attempt(folder, from_step=0, from_epoch=0)
    assert {name: not (folder / name).exists() for name in LEFTOVERS} == LEFTOVERS


def test_nothing_is_cleared_away_through_a_symbolic_link(tmp_path):
    folder = tmp_path / "run"
    create_run(folder, {})
    begin_attempt(folder, from_step=0, from_epoch=0)
    elsewhere = tmp_path / "elsewhere" / "rank-00000"
    elsewhere.mkdir(parents=True)
    file = elsewhere / ".tmp-part-0000-000004-1-2-0123456789abcdef.parquet-aa"
    file.touch()
    (folder / "samples").symlink_to(tmp_path / "elsewhere")
    begin_attempt(folder, from_step=0, from_epoch=0)
    assert file.exists()


def test_the_file_of_an_attempt_whose_first_writer_cleared_ours_away_counts_as_taken(
    tmp_path, monkeypatch
):
    path = tmp_path / "attempt-0000.json"
    link = os.link

    def late(temporary, target):
        os.link = link
        write_json_once(path, {"of": "another"})
        temporary.unlink()
        link(temporary, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(FileExistsError):
        write_json_once(path, {"of": "us"})
    assert read_json(path) == {"of": "another"}


class Clock:
    """Goes back a day at each look."""

    def __init__(self):
        self.seconds = 2e9

    def time(self):
        self.seconds -= 86400
        return self.seconds

    def now(self, zone):
        return datetime.datetime.fromtimestamp(self.time(), zone)


def test_the_time_of_day_orders_nothing(tmp_path, monkeypatch):
    found = []
    for name in ("steady", "backwards"):
        if name == "backwards":
            clock = Clock()
            monkeypatch.setattr("time.time", clock.time)
            fake = SimpleNamespace(datetime=clock, UTC=datetime.UTC)
            monkeypatch.setattr("dynamics.traces.resume.datetime", fake)
        folder = tmp_path / name
        create_run(folder, {})
        for tag, steps in enumerate([range(9), range(6, 9), range(3, 8)]):
            record(folder, steps, tag=tag)
        run = open_run(folder)
        steps = [(p.name.attempt, p.name.sequence, p.name.first_step) for p in run.parts("samples")]
        rows = run.samples(repeats=True).to_dict("list")
        fences = [(a.attempt, a.from_step) for a in run.attempts]
        found.append((steps, rows, run.scalars().to_dict("list"), fences))
        days = [a.created_utc for a in run.attempts]
    assert days == sorted(days, reverse=True)  # the clock did go back
    assert days[0] != days[-1]
    assert repr(found[0]) == repr(found[1])  # repr: missing values equal themselves
