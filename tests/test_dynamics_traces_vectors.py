"""Vectors of a run: files of their own that come back as they were, or say what is wrong."""

import errno
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamics import open_run
from dynamics.traces import CorruptTraceError, SchemaError, TraceError, TraceWriter, outbox, schema
from dynamics.traces.layout import content_hash, make_folder, write_durably
from dynamics.traces.resume import begin_attempt, create_run
from dynamics.traces.vectors import (
    VECTORS,
    encode_vector,
    list_vectors,
    read_vector,
    vector_file_name,
)

RNG = np.random.default_rng(0)
VALUES = {
    "0.weight": RNG.random((3, 4), dtype=np.float32),
    "0.bias": np.array([1.0, 0.0, 1e-30], dtype=np.float32),
    "scale": np.float32(0.5),
    "none": np.empty((0, 2), dtype=np.float32),
}


@pytest.fixture
def folder(tmp_path):
    create_run(tmp_path / "run", {})
    begin_attempt(tmp_path / "run", from_step=0, from_epoch=0)
    return tmp_path / "run"


def write(folder, name="fisher_diagonal", values=VALUES, *, attempt=0, step=4, epoch=0):
    data = encode_vector(values)
    file = vector_file_name(name, data, attempt=attempt, step=step, epoch=epoch)
    place = folder / VECTORS / "rank-00000"
    make_folder(place)
    write_durably(place, file, data)


def assert_equal(found, expected=VALUES):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].shape == np.shape(values)
        np.testing.assert_array_equal(found[name], values)


def test_values_names_and_shapes_come_back(folder):
    write(folder, epoch=-1)
    assert_equal(open_run(folder).vector("fisher_diagonal", epoch=-1))
    assert open_run(folder).vectors().to_dict("records") == [
        {"name": "fisher_diagonal", "step": 4, "epoch": -1}
    ]


def test_no_parameters_at_all(folder):
    write(folder, values={})
    assert open_run(folder).vector("fisher_diagonal") == {}


def test_values_that_are_not_finite_come_back_as_missing(folder):
    write(folder, values={"a": np.array([1.0, np.inf, np.nan, -np.inf])})
    found = open_run(folder).vector("fisher_diagonal")["a"]
    np.testing.assert_array_equal(found, [1.0, np.nan, np.nan, np.nan])
    (file,) = list_vectors(folder)
    column = pq.read_table(file.path)["value"]
    assert column.null_count == 3
    assert column.type == pa.float32()


def test_the_last_of_several_is_taken_in_the_order_of_steps(folder):
    for step, epoch in ((10, 1), (4, 0), (9, 1)):
        write(folder, values={"a": np.array([step])}, step=step, epoch=epoch)
    run = open_run(folder)
    assert run.vectors()["step"].tolist() == [4, 9, 10]
    assert run.vector("fisher_diagonal")["a"] == run.vector("fisher_diagonal", epoch=1)["a"] == 10
    assert run.vector("fisher_diagonal", epoch=0)["a"] == 4


def test_a_later_attempt_hides_what_it_repeats(folder):
    for epoch in (-1, 0, 1, 2):
        write(folder, values={"a": np.zeros(1)}, step=4 * epoch + 4, epoch=epoch)
    begin_attempt(folder, from_step=8, from_epoch=1)
    run = open_run(folder)
    assert run.vectors()["epoch"].tolist() == [-1, 0]
    with pytest.raises(TraceError, match="epoch 2; it has fisher_diagonal of epoch -1, "):
        run.vector("fisher_diagonal", epoch=2)
    write(folder, values={"a": np.ones(1)}, attempt=1, step=8, epoch=1)
    assert open_run(folder).vector("fisher_diagonal", epoch=1)["a"] == 1
    assert len(list_vectors(folder)) == 5


@pytest.mark.parametrize("name", ["", "Fisher", "fisher-diagonal", "../x", "1a", "a" * 65])
def test_names_that_cannot_be_files(folder, name):
    with pytest.raises(SchemaError, match="cannot be the name of a vector"):
        write(folder, name=name)
    assert list_vectors(folder) == []


def test_other_files_are_left_alone(folder):
    write(folder)
    place = next((folder / "vectors").glob("rank-*"))
    (place / "notes.parquet").write_bytes(b"")
    (place / "a.tmp").write_bytes(b"")
    (place / f"x-0000-1-epoch0-{'0' * 16}.parquet").symlink_to(list_vectors(folder)[0].path)
    assert len(list_vectors(folder)) == 1


def damaged(folder, change):
    """The only vector, with other bytes under the same name."""
    (file,) = list_vectors(folder)
    file.path.write_bytes(change(file.path.read_bytes()))
    return file


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    ],
)
def test_damage_is_found_and_named(folder, change):
    write(folder)
    file = damaged(folder, change)
    with pytest.raises(CorruptTraceError, match=f"{file.path.name} is damaged.*Restore the file"):
        open_run(folder).vector("fisher_diagonal")


def parquet(metadata, values=(1.0, 2.0), column="value"):
    sink = pa.BufferOutputStream()
    table = pa.table({column: pa.array(values, pa.float32())})
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue())


GOOD = {"schema_version": schema.SCHEMA_VERSION, "parameters": json.dumps([["a", [2]]])}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"text", "is not a vector's file"),
        (parquet({}), "is not a vector's file"),
        (parquet(GOOD, column="other"), "is not a vector's file"),
        (parquet(GOOD | {"parameters": "{"}), "is not a vector's file"),
        (parquet(GOOD | {"parameters": "[1]"}), "is not a vector's file"),
        (parquet(GOOD | {"parameters": '[["a", [3]]]'}), "shapes hold 3 values, the column 2"),
    ],
)
def test_files_of_something_else(folder, data, message):
    """Their hash is right, so that only their content can tell."""
    place = folder / "vectors" / "rank-00000"
    place.mkdir(parents=True)
    path = place / f"fisher_diagonal-0000-4-epoch0-{content_hash(data)}.parquet"
    path.write_bytes(data)
    with pytest.raises(CorruptTraceError, match=message):
        open_run(folder).vector("fisher_diagonal")


def test_a_newer_format_is_refused_as_such(folder):
    data = parquet(GOOD | {"schema_version": "99.0"})
    place = folder / "vectors" / "rank-00000"
    place.mkdir(parents=True)
    (place / f"fisher_diagonal-0000-4-epoch0-{content_hash(data)}.parquet").write_bytes(data)
    (file,) = list_vectors(folder)
    with pytest.raises(SchemaError, match=r"version 99\.0"):
        read_vector(file)


def test_a_full_disk_keeps_the_vectors_for_the_next_flush(folder, monkeypatch):
    writer = TraceWriter(folder, attempt=0, max_seconds=1e9)
    writer.append_vector("fisher_diagonal", {"a": np.zeros(2)}, step=0, epoch=-1)
    writer.append_vector("fisher_diagonal", {"a": np.ones(2)}, step=4, epoch=0)
    written = outbox.write_durably

    def fails_at_the_second(place, name, data):
        if "epoch0" in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(place, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "write_durably", fails_at_the_second)
        with pytest.raises(TraceError, match="No space left on device"):
            writer.flush()
    assert open_run(folder).vectors()["epoch"].tolist() == [-1]
    writer.flush()
    assert open_run(folder).vectors()["epoch"].tolist() == [-1, 0]  # neither lost nor doubled
    writer.close()
    assert len(list_vectors(folder)) == 2
    np.testing.assert_array_equal(open_run(folder).vector("fisher_diagonal")["a"], [1, 1])
