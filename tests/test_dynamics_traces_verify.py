"""Whatever is wrong with a run, verify names it and its file; a sound run has no finding."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from random_runs import ID_KINDS, random_run
from recorded import add_attempt, full_run, write_run, write_study

from dynamics import open_run, open_study
from dynamics.traces import CorruptTraceError, TraceError, TraceWriter
from dynamics.traces.compaction.compact import compact
from dynamics.traces.layout import PartName, content_hash
from dynamics.traces.parts import open_part, read_part
from dynamics.traces.rows import encode_part, replace_column
from dynamics.traces.schema import TABLES
from dynamics.traces.verification.part_checks import check_part
from dynamics.traces.verification.untrusted import verify_untrusted
from dynamics.traces.verification.verify import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "run"
    run = full_run(path)
    writer = TraceWriter(path, attempt=0, rank=1)
    writer.append_vector("fisher_diagonal", {"w": np.ones((2, 2))}, step=3, epoch=1)
    writer.close(clean=False)
    return run.path


@pytest.fixture
def run(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def the_part(run, table="samples"):
    (part,) = open_run(run).parts(table)
    return part


def flip(path, at, bits=0xFF):
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


def rewrite(run, change, table="samples", **name):
    """Changes the rows of a part, under a name whose hash fits again."""
    part = the_part(run, table)
    rows = change(read_part(open_part(part, table), TABLES[table], part.path))
    data = encode_part(rows, TABLES[table])
    fields = {f: getattr(part.name, f) for f in ("attempt", "sequence", "first_step", "last_step")}
    new = PartName(**(fields | name), content_hash=content_hash(data))
    part.path.unlink()
    (part.path.parent / str(new)).write_bytes(data)
    return str(new)


def with_values(rows, column, values):
    return replace_column(rows, column, pa.array(values, rows.schema.field(column).type))


def assert_found(run, severity, file, what):
    found = verify(run)
    hits = found[(found["severity"] == severity) & found["file"].str.contains(file)]
    assert hits["what"].str.contains(what).any(), found.to_string()


def test_a_sound_run_has_no_finding(run):
    assert verify(run).empty
    compact(run)
    assert verify(run).empty


@pytest.mark.parametrize("ids", ID_KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_random_runs_are_sound_before_and_after_compaction(tmp_path, seed, ids):
    path = random_run(tmp_path / "run", seed, ids=ids).path
    assert {*verify(path)["severity"]} <= {"note"}
    compact(path)
    assert {*verify(path)["severity"]} <= {"note"}


def every_kth_byte(part, table, k):
    content = part.path.read_bytes()
    for at in range(0, len(content), k):
        part.path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found = check_part(part, table).findings
        assert [f.severity.name for f in found] == ["damage"], at
        with pytest.raises(CorruptTraceError, match=part.path.name):
            open_part(part, table)
    part.path.write_bytes(content)


@pytest.mark.parametrize("table", TABLES)
def test_a_flipped_bit_anywhere_in_a_part_is_reported(run, table):
    every_kth_byte(the_part(run, table), table, 41)


@pytest.mark.slow
def test_a_flipped_bit_in_every_byte_of_every_file_is_reported(run):
    for table in TABLES:
        every_kth_byte(the_part(run, table), table, 1)
    compact(run)
    for table in TABLES:
        every_kth_byte(the_part(run, table), table, 1)


def test_a_flipped_bit_is_reported_by_verify_for_every_kind_of_file(run):
    compact(run)
    files = [p for p in run.rglob("*") if p.is_file() and p.suffix == ".parquet"]
    assert len(files) == 5
    for path in [*files, run / "compacted" / "v0001" / "manifest.json"]:
        flip(path, 77, 1)
        found = verify(run)
        assert found["severity"].tolist() == ["damage"]
        flip(path, 77, 1)
    assert verify(run).empty


@pytest.mark.parametrize(
    "file", ["run.json", "attempts/attempt-0000.json", "end/attempt-0000-rank-00000.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": NaN}', b"{}", b"[" * 100_000])
def test_a_torn_record_is_named(run, file, content):
    (run / file).write_bytes(content)
    assert_found(run, "damage", file, "")


def test_a_link_or_a_stranger_is_a_finding_and_a_leftover_is_a_note(run, tmp_path):
    part = the_part(run).path
    (part.parent / "notes.txt").write_text("x")
    (part.parent / ".tmp-samples-0000-x").write_text("x")
    (run / "report.html").write_text("x")
    shutil.copytree(run, tmp_path / "elsewhere")
    (run / "scalars" / "rank-00007").symlink_to(tmp_path / "elsewhere" / "scalars" / "rank-00000")
    assert_found(run, "finding", "notes.txt", "not a file of a trace")
    assert_found(run, "finding", "rank-00007", "symbolic link")
    assert_found(run, "note", ".tmp-", "temporary")
    assert_found(run, "note", "report.html", "not a file of a trace")
    assert open_run(run).scalars().equals(open_run(tmp_path / "elsewhere").scalars())


@pytest.mark.parametrize("file", ["run.json", "attempts/attempt-0000.json"])
def test_a_record_that_is_a_link_is_not_followed(run, tmp_path, file):
    (run / file).rename(tmp_path / "elsewhere.json")
    (run / file).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(TraceError, match=file):
        open_run(run).samples()
    assert_found(run, "damage", file, "cannot be opened")


def test_a_missing_part_is_found_by_its_number_or_by_the_clean_end(tmp_path):
    rows = {"step": [0], "epoch": [0], "sample_id": [1]}
    run = write_run(tmp_path / "run", {}, clean=False)
    writer = TraceWriter(run.path, attempt=0)
    for step in range(3):
        writer.append("samples", rows | {"step": [step], "epoch": [step]})
        writer.flush()
    writer.close()
    assert verify(run.path).empty
    parts = [part.path for part in run.parts("samples")]
    parts[2].unlink()
    assert_found(run.path, "damage", "end/", "says 3 parts with 3 rows of `samples`; there are 2")
    parts[1].unlink()
    parts[2].write_bytes(parts[0].read_bytes())
    assert_found(run.path, "damage", "samples/rank-00000", r"lacks its parts 1\.")


@pytest.mark.parametrize(
    ("severity", "what", "change"),
    [
        ("damage", "NaN or infinite", lambda r: with_values(r, "loss", [np.nan] * len(r))),
        ("finding", "status bits", lambda r: with_values(r, "status", [1 << 20] * len(r))),
        ("finding", "`correct`", lambda r: with_values(r, "correct", [7] * len(r))),
        ("finding", "REPEAT", lambda r: with_values(r, "status", [32] * len(r))),
        ("finding", "not sorted", lambda r: r.take(np.arange(len(r))[::-1])),
        (
            "finding",
            "twice",
            lambda r: pa.concat_tables([r, r]).sort_by(
                [(key, "ascending") for key in TABLES["samples"].sorted_by]
            ),
        ),
        ("damage", "steps", lambda r: with_values(r, "step", np.asarray(r["step"]) + 1)),
        ("damage", "rows of `samples`; there are 1 with 959", lambda r: r.slice(1)),
    ],
    ids=["nan", "status", "correct", "repeat", "order", "doubled", "steps", "short"],
)
def test_rows_that_no_writer_writes_are_named(run, severity, what, change):
    rewrite(run, change)
    assert_found(run, severity, "", what)


def test_a_part_that_is_there_twice_is_named(run):
    part = the_part(run)
    again = PartName(0, 1, part.name.first_step, part.name.last_step, part.name.content_hash)
    shutil.copy(part.path, part.path.parent / str(again))
    assert_found(run, "finding", str(again), "120 samples have the same .* twice")
    assert_found(run, "damage", "end/", "there are 2 with 1920")


def test_samples_that_an_epoch_lacks_are_named(run):
    lacking = [17, 18, 40]

    def without(rows):
        gone = np.isin(rows["sample_id"], lacking) & (np.asarray(rows["epoch"]) == 3)
        return rows.filter(pa.array(~gone))

    rewrite(run, without)
    found = verify(run)
    (what,) = found.loc[found["severity"] == "finding", "what"]
    assert what == "epoch 3: 3 of 120 samples missing, namely 17, 18, 40."


def test_the_last_epoch_and_a_loader_that_drops_the_last_batch_are_notes(tmp_path):
    rng = np.random.default_rng(0)
    batches = []
    for epoch in range(5):
        ids = rng.permutation(20)[: 12 if epoch == 4 else 18]
        keys = {"step": np.full(len(ids), epoch), "epoch": np.full(len(ids), epoch)}
        batches.append(keys | {"sample_id": ids})
    roster = [{"sample_id": np.arange(20)}]
    run = write_run(tmp_path / "run", {"samples": batches, "roster": roster}, clean=False)
    found = verify(run.path)
    assert {*found["severity"]} == {"note"}
    assert found["mend"].str.contains("drop_last").sum() == 4
    assert found["mend"].str.contains("interrupted").sum() == 1


def test_a_lost_record_of_an_attempt_is_damage_and_stops_readers(run):
    row = {"step": [30], "epoch": [10], "sample_id": [0]}
    add_attempt(run, {"samples": [row]}, from_step=24, from_epoch=8)
    (run / "attempts" / "attempt-0001.json").unlink()
    assert_found(run, "damage", "samples/", "no readable record of attempt 1")
    with pytest.raises(CorruptTraceError, match="no record of attempt 1"):
        open_run(run).samples()


def test_a_study_is_verified_run_by_run(tmp_path):
    plain = {"noise": "symmetric", "ratio": 0.0, "scalars": []}
    study = write_study(tmp_path / "s", [plain | {"seed": seed} for seed in range(2)])
    assert verify(study.path).empty
    (study.path / "symmetric-0-seed1" / "run.json").write_text("{")
    assert verify(study.path)["run"].tolist() == ["symmetric-0-seed1"]
    with pytest.raises(TraceError, match="does not exist"):
        verify(tmp_path / "nothing")


def test_a_run_that_is_a_link_is_not_part_of_a_study(tmp_path):
    plain = {"noise": "symmetric", "ratio": 0.0, "scalars": []}
    study = write_study(tmp_path / "s", [plain | {"seed": seed} for seed in range(2)])
    (study.path / "symmetric-0-seed1").rename(tmp_path / "elsewhere")
    (study.path / "symmetric-0-seed1").symlink_to(tmp_path / "elsewhere")
    assert verify(study.path)[["severity", "file"]].to_numpy().tolist() == [
        ["finding", "symmetric-0-seed1"]
    ]
    with pytest.raises(TraceError, match="seed1 is a symbolic link"):
        open_study(study.path).table()


def test_untrusted_traces_are_verified_in_a_process_of_their_own(run):
    assert verify_untrusted(run).empty
    flip(the_part(run).path, 77)
    assert verify_untrusted(run).equals(verify(run))
    (run / "run.json").write_text(json.dumps({"schema_version": "9.0"}))
    assert verify_untrusted(run)["severity"].tolist() == ["damage", "damage"]
