"""What was written is found again by sample, epoch and column, and damage is never read as data."""

import json

import numpy as np
import pandas as pd
import pytest
from recorded import add_attempt, write_run, write_study

from dynamics import open_run, open_study
from dynamics.traces import CorruptTraceError, SchemaError, TraceError, TraceWriter
from dynamics.traces.layout import PartName, content_hash

N, EPOCHS = 4, 3


def batches():
    """Loss 10 · epoch + sample_id; the samples of an epoch in falling order, sample 3 twice."""
    for epoch in range(EPOCHS):
        ids = np.array([3, 2, 1, 0, 3])
        step = 2 * epoch + np.array([0, 0, 0, 1, 1])
        loss = 10.0 * epoch + ids
        keys = {"step": step, "epoch": np.full(len(ids), epoch), "sample_id": ids}
        yield keys | {"loss": loss, "grad_norm/0": 2 * loss}


def tables():
    scalar = {"step": [4, 2], "epoch": [1, 0], "name": ["b", "a"], "block": ["total", "total"]}
    event = {"step": [3, 1, 2], "epoch": [1, 0, 0], "name": ["late", "early", "middle"]}
    return {
        "samples": list(batches()),
        "scalars": [scalar | {"value": [2.0, 1.0]}],
        "events": [event],
        "roster": [{"sample_id": [2, 0], "label": [5, 6]}],
    }


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", tables())


def test_samples_come_by_epoch_then_sample_without_repeats(run):
    table = run.samples()
    assert table["epoch"].tolist() == [0] * N + [1] * N + [2] * N
    assert table["sample_id"].tolist() == [0, 1, 2, 3] * EPOCHS
    assert table["loss"].tolist() == [10 * e + i for e in range(EPOCHS) for i in range(N)]
    assert (table["occurrence"] == 0).all()


def test_repeats_come_when_asked_for(run):
    table = run.samples(repeats=True, epochs=[1])
    assert table["sample_id"].tolist() == [0, 1, 2, 3, 3]
    assert table["occurrence"].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("sample_id", "found"),
    [
        (2, [2]),
        (0, [0]),
        (np.int64(2), [2]),  # what an index of a summary holds
        ([3, 1], [1, 3]),
        ((i for i in (3, 1)), [1, 3]),
        (np.array([1, 3, 3]), [1, 3]),
        ([99], []),
        ([], []),
    ],
    ids=["int", "zero", "numpy int", "list", "generator", "array", "unknown", "none"],
)
def test_samples_are_found_by_id(run, sample_id, found):
    assert run.samples(sample_id=sample_id, epochs=[2])["sample_id"].tolist() == found


@pytest.mark.parametrize("epochs", [[0, 2], range(0, 3, 2), np.array([2, 0])])
def test_samples_are_found_by_epoch(run, epochs):
    assert run.samples(sample_id=1, epochs=epochs)["loss"].tolist() == [1, 21]


def test_only_the_columns_asked_for_come_beside_the_keys(run):
    table = run.samples(columns=["grad_norm/0", "loss"])
    assert list(table.columns) == ["epoch", "sample_id", "grad_norm/0", "loss"]
    assert table["grad_norm/0"].tolist() == (2 * table["loss"]).tolist()
    assert list(run.samples(columns=["epoch", "step"]).columns) == ["epoch", "sample_id", "step"]


def test_a_block_that_was_not_recorded_is_missing(run):
    assert run.samples(columns=["grad_norm/9"])["grad_norm/9"].isna().all()


@pytest.mark.parametrize("column", ["los", "label", "grad_norm2", ""])
def test_an_unknown_column_is_refused_by_name(run, column):
    with pytest.raises(SchemaError, match=f"no column '{column}'"):
        run.samples(columns=["loss", column])


def test_column_names_are_those_of_the_parts(run):
    names = run.column_names()
    assert names[:2] == ["step", "epoch"]
    assert names[-1] == "grad_norm/0"


def test_scalars_come_in_order_of_step_and_by_name(run):
    assert run.scalars()["name"].tolist() == ["a", "b"]
    assert run.scalars("b")["value"].tolist() == [2.0]
    assert run.scalars("c").empty


def test_events_come_in_order_of_step(run):
    assert run.events()["name"].tolist() == ["early", "middle", "late"]


def test_of_several_rosters_the_first_entry_of_a_sample_counts(run):
    again = {"sample_id": [0, 3], "label": [7, 8]}
    add_attempt(run.path, {"roster": [again]}, from_step=6, from_epoch=3)
    roster = open_run(run.path).roster()
    assert roster["label"].to_dict() == {0: 6, 2: 5, 3: 8}


def test_an_empty_run_has_tables_with_columns_and_no_rows(tmp_path):
    run = write_run(tmp_path / "run", {}, clean=False)
    assert run.samples().empty
    assert "loss" in run.samples()
    assert run.samples(columns=["loss"]).columns.tolist() == ["epoch", "sample_id", "loss"]
    assert run.scalars().empty
    assert run.roster().empty
    assert list(run.iter_samples()) == []
    assert not run.ended_cleanly


def test_iter_samples_gives_a_sample_in_the_order_in_which_it_was_recorded(tmp_path):
    run = write_run(tmp_path / "run", tables() | {"samples": []}, clean=False)
    for step, batch in enumerate(batches()):
        add_attempt(run.path, {"samples": [batch]}, from_step=2 * step, from_epoch=step)
    rows = pd.concat(open_run(run.path).iter_samples(["loss"], repeats=True))
    assert len(rows) == (N + 1) * EPOCHS
    assert rows.groupby("sample_id")["step"].is_monotonic_increasing.all()


def test_parts_of_all_ranks_come_in_order_of_their_first_step(tmp_path):
    run = write_run(tmp_path / "run", {}, clean=False)
    for rank, epochs in ((1, (0, 2)), (0, (1, 3))):
        writer = TraceWriter(run.path, attempt=0, rank=rank, max_rows=1, max_seconds=1e9)
        for e in epochs:
            keys = {"step": np.array([e]), "epoch": np.array([e]), "sample_id": np.array([5])}
            writer.append("samples", keys)
        writer.close()
    run = open_run(run.path)
    assert [part.name.first_step for part in run.parts("samples")] == [0, 1, 2, 3]
    assert [rows["epoch"].item() for rows in run.iter_samples()] == [0, 1, 2, 3]


def damage(part, content):
    part.path.chmod(0o644)
    part.path.write_bytes(content)


@pytest.mark.parametrize("table", ["samples", "scalars", "events", "roster"])
def test_any_flipped_byte_is_noticed_and_the_part_named(run, table):
    (part,) = run.parts(table)
    content = part.path.read_bytes()
    for at in range(0, len(content), 7):
        damage(part, content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with pytest.raises(CorruptTraceError, match=part.path.name):
            getattr(open_run(run.path), table)()
    damage(part, content)
    assert len(open_run(run.path).samples()) == N * EPOCHS


@pytest.mark.parametrize("length", [0, 1, 4, -1, -4, -100])
def test_a_truncated_part_is_noticed_and_named(run, length):
    (part,) = run.parts("samples")
    damage(part, part.path.read_bytes()[:length])
    with pytest.raises(CorruptTraceError, match=part.path.name):
        open_run(run.path).samples()


def test_a_part_whose_name_fits_but_is_not_parquet_is_named(run):
    data = b"not parquet"
    name = str(PartName(0, 7, 0, 0, content_hash(data)))
    (run.path / "samples" / "rank-00000" / name).write_bytes(data)
    with pytest.raises(CorruptTraceError, match=name):
        open_run(run.path).samples()


def test_files_that_are_not_parts_are_left_alone(run):
    folder = run.parts("samples")[0].path.parent
    data = run.parts("samples")[0].path.read_bytes()
    for name in (".tmp-0123", "part-0000.parquet", "notes.txt", ".DS_Store", "x.parquet"):
        (folder / name).write_bytes(data[:20])
    (run.path / "samples" / "notes").mkdir()
    (run.path / "samples" / "notes" / run.parts("samples")[0].path.name).write_bytes(data)
    assert len(open_run(run.path).samples()) == N * EPOCHS


def test_a_part_that_is_a_symbolic_link_is_left_alone(run, tmp_path):
    part = run.parts("scalars")[0]
    part.path.rename(tmp_path / "elsewhere.parquet")
    part.path.symlink_to(tmp_path / "elsewhere.parquet")
    assert open_run(run.path).scalars().empty


def rewrite(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_a_run_of_a_newer_major_is_refused(run):
    rewrite(run.path / "run.json", schema_version="2.0")
    with pytest.raises(SchemaError, match=r"run\.json is of schema version 2\.0"):
        open_run(run.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"a"', b"\xff\xfe", b"{}"])
def test_a_garbled_run_file_is_refused_and_named(run, content):
    (run.path / "run.json").write_bytes(content)
    with pytest.raises(TraceError, match=r"run\.json"):
        open_run(run.path)


def test_opening_what_is_not_a_run_says_what_it_is(run, tmp_path):
    with pytest.raises(TraceError, match="does not exist"):
        open_run(tmp_path / "nothing")
    with pytest.raises(TraceError, match=r"no run\.json.*Below it there are run\."):
        open_run(tmp_path)
    with pytest.raises(TraceError, match=r"no run\.json"):
        open_run(run.path / "run.json")
    with pytest.raises(TraceError, match="is a run, not a study"):
        open_study(run.path)


def a_run(ratio, seed, **more):
    return {"noise": "symmetric", "ratio": ratio, "seed": seed, "scalars": []} | more


def test_a_study_knows_its_factors_and_has_a_row_per_run(tmp_path):
    study = write_study(tmp_path / "s", [a_run(0.4, 1, clean=False), a_run(0.0, 0)], name="noise")
    assert study.name == "noise"
    assert study.factors == {"noise": ["symmetric"], "ratio": [0.0, 0.4], "seed": [0, 1]}
    assert study.table().to_dict("list") == {
        "run": ["symmetric-0-seed0", "symmetric-0.4-seed1"],
        "noise": ["symmetric", "symmetric"],
        "ratio": [0.0, 0.4],
        "seed": [0, 1],
        "ended_cleanly": [True, False],
    }
    with pytest.raises(TraceError, match="is a study, not a run"):
        open_run(study.path)


def test_a_study_without_factors_or_of_a_newer_major_is_refused(tmp_path):
    path = write_study(tmp_path / "s", [a_run(0.0, 0)]).path
    rewrite(path / "study.json", schema_version="2.0")
    with pytest.raises(SchemaError, match=r"2\.0"):
        open_study(path)
    rewrite(path / "study.json", schema_version="1.0", factors=None)
    with pytest.raises(SchemaError, match="factors"):
        open_study(path)
