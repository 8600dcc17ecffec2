"""What is appended is what lies on disk: once, typed, in immutable parts, or an error says why."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from dynamics import open_run
from dynamics.traces import Status, TraceWriter
from dynamics.traces.layout import PartName, content_hash
from dynamics.traces.resume import begin_attempt, create_run


@pytest.fixture
def folder(tmp_path):
    create_run(tmp_path / "run", {})
    begin_attempt(tmp_path / "run", from_step=0, from_epoch=0)
    return tmp_path / "run"


@pytest.fixture
def start(folder):
    writers = []

    def start(**settings):
        writers.append(TraceWriter(folder, attempt=0, max_seconds=1e9, **settings))
        return writers[-1]

    yield start
    for writer in writers:
        writer._queue.put(None)  # whatever the test left behind, no thread stays


def rows(ids, *, step=0, epoch=0, **columns):
    keys = {"step": np.full(len(ids), step), "epoch": np.full(len(ids), epoch)}
    return keys | {"sample_id": np.array(ids)} | columns


def stored(folder, table="samples"):
    """Rows of every part, read without the reader."""
    parts = sorted((folder / table).glob("rank-*/*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def test_every_column_of_every_table_comes_back(folder, start):
    samples = {
        "loss": np.array([0.5, 2.0], np.float32),
        "weight": np.array([1.0, 3.0]),
        "margin": np.array([-1.5, 4.0]),
        "p_true": np.array([0.25, 0.75]),
        "el2n": np.array([0.125, 1.25]),
        "predicted": np.array([3, 0]),
        "correct": np.array([False, True]),
        "grad_norm": np.array([7.0, 0.0]),
        "grad_norm_stderr": np.array([0.5, 0.0]),
        "output_grad_norm": np.array([0.25, 0.0]),
        "grad_norm/0": np.array([6.5, 0.0]),
    }
    scalar = {"name": ["fisher_trace"], "block": ["total"], "value": [1.1], "stderr": [0.1]}
    scalar |= {"n": [64], "estimator": ["mc"], "label_source": ["model"], "mode": ["eval"]}
    event = {"name": ["epoch_end"], "subject": ["a"], "detail": ["b"]}
    place = {"step": [9], "epoch": [2]}
    roster = {"sample_id": [8, 5], "label": [1, 2], "true_label": [1, 0], "group": [0, 1]}
    writer = start()
    writer.append("samples", rows([8, 5], step=9, epoch=2, **samples))
    writer.append("scalars", place | scalar)
    writer.append("events", place | event)
    writer.append("roster", roster)
    writer.close()

    run = open_run(folder)
    back = run.samples().set_index("sample_id").loc[[8, 5]]
    assert set(back.columns) == {"step", "epoch", "occurrence", "status", *samples}
    for name, values in samples.items():
        np.testing.assert_array_equal(back[name], values, err_msg=name)
    assert back[["step", "epoch", "occurrence", "status"]].to_numpy().tolist() == [[9, 2, 0, 0]] * 2
    for table, columns in ((run.scalars(), scalar), (run.events(), event)):
        assert table.to_dict("list") == place | columns
    assert run.roster().loc[[8, 5]].reset_index().to_dict("list") == roster


def test_columns_left_out_are_missing_in_every_row(folder, start):
    writer = start()
    writer.append("samples", rows([0, 1], loss=np.ones(2)))
    writer.append("samples", rows([2], **{"loss": np.ones(1), "grad_norm/0": np.ones(1)}))
    writer.close()
    table = open_run(folder).samples()
    assert table["grad_norm"].isna().all()
    assert table["grad_norm/0"].isna().tolist() == [True, True, False]
    assert (table["status"] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("column", "bit"),
    [
        ("loss", Status.NON_FINITE_LOSS),
        ("grad_norm", Status.NON_FINITE_GRAD_NORM),
        ("grad_norm/0", Status.NON_FINITE_GRAD_NORM),
        ("p_true", Status.NON_FINITE_OUTPUT),
        ("margin", Status.NON_FINITE_OUTPUT),
    ],
)
def test_a_non_finite_value_is_missing_with_a_bit_and_an_event(folder, start, column, bit, bad):
    writer = start()
    values = np.array([1.0, bad, 1.0, bad])
    writer.append("samples", rows([3, 70, 5, 60], step=4, epoch=1, **{column: values}))
    writer.close()
    table = {row["sample_id"]: row for row in stored(folder)}
    assert [table[i][column] for i in (3, 70, 5, 60)] == [1.0, None, 1.0, None]
    assert [table[i]["status"] for i in (3, 70, 5, 60)] == [0, bit, 0, bit]
    (event,) = stored(folder, "events")
    assert (event["step"], event["epoch"], event["name"]) == (4, 1, "non_finite")
    assert event["subject"] == column
    assert "2 values" in event["detail"]
    assert "sample 70" in event["detail"]


@pytest.mark.parametrize(
    ("column", "bit"),
    [("loss", Status.NON_FINITE_LOSS), ("grad_norm", Status.NON_FINITE_GRAD_NORM)],
)
def test_a_value_that_overflows_as_stored_is_non_finite_too(folder, start, column, bit):
    writer = start()
    writer.append("samples", rows([0, 1], **{column: np.array([1e39, 1e38])}))
    writer.close()
    first, second = stored(folder)
    assert (first[column], first["status"]) == (None, bit)
    assert (second[column], second["status"]) == (pytest.approx(1e38), 0)


@pytest.mark.parametrize("why", [Status.ZERO_WEIGHT, Status.NO_BACKWARD])
def test_a_norm_that_could_not_be_known_is_missing_but_not_called_non_finite(folder, start, why):
    writer = start()
    status = np.array([int(why), 0])
    writer.append("samples", rows([0, 1], grad_norm=np.array([np.nan, 2.0]), status=status))
    writer.close()
    assert [(row["grad_norm"], row["status"]) for row in stored(folder)] == [(None, why), (2.0, 0)]
    assert stored(folder, "events") == []


def test_a_weight_that_no_backward_pass_told_is_not_called_non_finite(folder, start):
    writer = start()
    status = np.array([int(Status.NO_BACKWARD), 0])
    writer.append("samples", rows([0, 1], weight=np.array([np.nan, np.nan]), status=status))
    writer.close()
    assert [row["status"] for row in stored(folder)] == [
        Status.NO_BACKWARD,
        Status.NON_FINITE_OUTPUT,
    ]


def test_repeats_are_numbered_across_appends_and_flagged(folder, start):
    writer = start()
    writer.append("samples", rows([4, 9, 4]))
    writer.flush()
    writer.append("samples", rows([9, 4, 5], step=1))
    both = {"step": np.array([2, 3]), "epoch": np.array([0, 1]), "sample_id": np.array([4, 4])}
    writer.append("samples", both)
    writer.append("samples", rows([4], step=4, epoch=1))
    writer.close()
    found = sorted((r["epoch"], r["sample_id"], r["occurrence"], r["step"]) for r in stored(folder))
    assert found == [
        (0, 4, 0, 0), (0, 4, 1, 0), (0, 4, 2, 1), (0, 4, 3, 2), (0, 5, 0, 1), (0, 9, 0, 0),
        (0, 9, 1, 1), (1, 4, 0, 3), (1, 4, 1, 4),
    ]  # fmt: skip
    assert all(
        (row["status"] == Status.REPEAT) == (row["occurrence"] > 0) for row in stored(folder)
    )


def test_samples_seen_before_a_resume_count(folder, start):
    writer = start()
    writer.seen(3, np.array([1, 2, 2]))
    writer.append("samples", rows([2, 1, 0], epoch=3))
    writer.close()
    assert [(r["sample_id"], r["occurrence"]) for r in stored(folder)] == [(0, 0), (1, 1), (2, 2)]


def test_parts_are_cut_at_max_rows_and_named_by_their_content(folder, start):
    writer = start(max_rows=4, rank=3)
    for step in range(6):
        writer.append("samples", rows([2 * step, 2 * step + 1], step=step))
    writer.append("samples", rows([99], step=6))
    writer.close()
    parts = sorted((folder / "samples" / "rank-00003").iterdir())
    names = [PartName.parse(part.name) for part in parts]
    assert [(n.attempt, n.sequence, n.first_step, n.last_step) for n in names] == [
        (0, 0, 0, 1), (0, 1, 2, 3), (0, 2, 4, 5), (0, 3, 6, 6),
    ]  # fmt: skip
    for part, name in zip(parts, names, strict=True):
        assert content_hash(part.read_bytes()) == name.content_hash
        assert str(name) == part.name
    assert [pq.ParquetFile(part).metadata.num_rows for part in parts] == [4, 4, 4, 1]


def test_a_clean_end_leaves_a_record_of_what_was_written(folder, start):
    writer = start(max_rows=2)
    for step in range(3):
        writer.append("samples", rows([2 * step, 2 * step + 1], step=step))
    writer.close()
    writer.close()  # a second time does nothing
    record = json.loads((folder / "end" / "attempt-0000-rank-00000.json").read_text())
    assert record["tables"]["samples"] == {"parts": 3, "rows": 6}
    assert record["tables"]["roster"] == {"parts": 0, "rows": 0}
    assert open_run(folder).ended_cleanly


def test_an_end_after_an_exception_keeps_the_rows_and_leaves_no_record(folder, start):
    writer = start()
    writer.append("samples", rows([0]))
    writer.close(clean=False)
    assert len(stored(folder)) == 1
    assert not open_run(folder).ended_cleanly
