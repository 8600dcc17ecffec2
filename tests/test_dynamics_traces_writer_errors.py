"""What cannot be written raises at the next call; nothing is lost, doubled or half taken."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dynamics import open_run
from dynamics.traces import SchemaError, StaleWriterError, TraceError, TraceWriter
from dynamics.traces.layout import write_durably
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


def fail(*args):
    raise OSError(28, "No space left on device")


def test_no_temporary_file_stays(folder, start, monkeypatch):
    writer = start()
    writer.append("samples", rows([0]))
    writer.close()
    with monkeypatch.context() as patch:
        patch.setattr("dynamics.traces.layout.os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            write_durably(folder, "a", b"1")
    assert [path.name for path in folder.rglob("*") if "tmp" in path.name] == []
    assert not (folder / "a").exists()


BAD_ROWS = {
    "loss too long": rows([7, 8], loss=np.ones(3)),
    "grad_norm too long": rows([7, 8], grad_norm=np.ones(3)),
    "predicted too short": rows([7, 8], predicted=np.array([1])),
    "epoch too long": rows([7, 8]) | {"epoch": np.zeros(3, dtype=int)},
    "ids too short": rows([7, 8]) | {"sample_id": np.array([7])},
    "no ids": {"step": np.zeros(1, dtype=int), "epoch": np.zeros(1, dtype=int)},
    "text": rows([7, 8], loss=np.array(["a", "b"])),
    "too large": rows([7, 8], predicted=np.array([1, 2**40])),
    "fraction": rows([7, 8], predicted=np.array([0.5, 1.0])),
    "unknown": rows([7, 8], los=np.ones(2)),
}


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_do_not_fit_are_refused_at_the_next_call(folder, start, bad):
    writer = start()
    writer.append("samples", rows([0, 1], loss=np.ones(2)))
    writer.append("samples", bad)
    with pytest.raises(SchemaError):
        writer.flush()
    writer.append("samples", rows([9], step=1))
    writer.close()
    assert [row["sample_id"] for row in stored(folder)] == [0, 1, 9]


def test_refused_rows_leave_no_trace(folder, start):
    writer = start()
    writer.append("samples", rows([7], loss=np.array([np.nan]), predicted=np.array([2**40])))
    with pytest.raises(SchemaError, match="predicted"):
        writer.flush()
    writer.append("samples", rows([7], loss=np.array([1.0])))
    writer.close()
    (row,) = stored(folder)
    assert (row["occurrence"], row["status"]) == (0, 0)
    assert stored(folder, "events") == []


def test_the_error_for_refused_rows_does_not_say_that_they_are_kept(start):
    writer = start()
    writer.append("samples", rows([7, 8], grad_norm=np.ones(3)))
    with pytest.raises(TraceError) as error:
        writer.flush()
    assert "still in memory" not in str(error.value)


def test_a_missing_key_of_scalars_is_refused(start):
    writer = start()
    writer.append("scalars", {"step": [0], "epoch": [0], "name": ["a"], "value": [1.0]})
    with pytest.raises(SchemaError, match=r"scalars\.block"):
        writer.flush()


@pytest.mark.parametrize("where", ["outbox.write_durably", "layout.sync_folder"])
def test_rows_that_could_not_be_written_are_written_once_later(folder, start, monkeypatch, where):
    writer = start()
    writer.append("samples", rows([0, 1]))
    with monkeypatch.context() as patch:
        patch.setattr(f"dynamics.traces.{where}", fail)
        with pytest.raises(TraceError, match="No space left"):
            writer.flush()
    writer.append("samples", rows([2], step=1))
    writer.flush()
    writer.close()
    assert [row["sample_id"] for row in stored(folder)] == [0, 1, 2]


class SlowEvent(threading.Event):
    def set(self):
        super().set()
        time.sleep(0.05)


def test_flush_raises_even_if_it_wakes_before_the_thread_has_gone_on(start, monkeypatch):
    writer = start()
    writer.append("samples", rows([0]))
    monkeypatch.setattr("dynamics.traces.outbox.write_durably", fail)
    names = SimpleNamespace(Event=SlowEvent, Thread=threading.Thread)
    monkeypatch.setattr("dynamics.traces.writer.threading", names)
    with pytest.raises(TraceError, match="No space left"):
        writer.flush()


def test_a_writer_stops_when_the_run_has_been_taken_over(folder, start):
    writer = start()
    writer.append("samples", rows([0]))
    writer.flush()
    begin_attempt(folder, from_step=0, from_epoch=0)
    writer.append("samples", rows([1], step=1))
    with pytest.raises(StaleWriterError, match="attempt 0"):
        writer.flush()
    with pytest.raises(StaleWriterError):
        writer.close()
    assert [row["sample_id"] for row in stored(folder)] == [0]
    assert not open_run(folder).ended_cleanly


def test_rows_for_a_closed_writer_are_refused(start):
    writer = start()
    writer.close()
    with pytest.raises(TraceError):
        writer.append("samples", rows([0]))
