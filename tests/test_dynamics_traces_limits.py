"""A file that promises more than a trace can hold, or other things, is not decoded."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recorded import full_run

from dynamics import open_run
from dynamics.traces import CorruptTraceError, SchemaError, TraceError, limits
from dynamics.traces.layout import PartName, content_hash, read_json
from dynamics.traces.parts import open_part, read_part
from dynamics.traces.schema import SCHEMA_VERSION, TABLES
from dynamics.traces.verification.verify import verify


@pytest.fixture
def run(tmp_path):
    return full_run(tmp_path / "run")


def plant(run, rows, table="samples", **how):
    """Put rows in place of the table's part, as somebody who knows the format would."""
    (part,) = run.parts(table)
    sink = io.BytesIO()
    pq.write_table(rows, sink, **how)
    steps = np.asarray(rows["step"]) if "step" in rows.column_names and len(rows) else [0]
    name = PartName(0, 0, int(np.min(steps)), int(np.max(steps)), content_hash(sink.getvalue()))
    part.path.unlink()
    (part.path.parent / str(name)).write_bytes(sink.getvalue())
    return open_run(run.path)


def as_stored(run, table="samples"):
    (part,) = run.parts(table)
    file = open_part(part, table)
    rows = read_part(file, TABLES[table], part.path)
    return rows.replace_schema_metadata({"schema_version": "1.0", "table": table})


def newer(rows, version=f"1.{int(SCHEMA_VERSION[2:]) + 1}"):
    return rows.replace_schema_metadata({"schema_version": version, "table": "samples"})


def refused(run, error, match):
    with pytest.raises(error, match=match):
        run.samples()
    with pytest.raises(error, match=match):
        run.column_names()
    assert verify(run.path)["severity"].iloc[0] == "damage"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("surprise", pa.array([1.0])),
        ("grad_norm2", pa.array([1.0], pa.float32())),
        ("grad_norm/0", pa.array([1.0], pa.float64())),
        ("grad_norm/0", pa.array([[1.0]])),
        ("grad_norm/" + "x" * 600, pa.array([1.0], pa.float32())),
        ("surprise", pa.array(["text"])),
    ],
    ids=["unknown", "nearly a block", "double", "list", "long name", "text"],
)
def test_a_column_that_is_not_the_formats_is_refused(run, column, values):
    rows = as_stored(run)
    column_values = pa.concat_arrays([values] * len(rows))
    refused(plant(run, rows.append_column(column, column_values)), SchemaError, "column|holds")


@pytest.mark.parametrize(
    ("column", "kind"), [("step", pa.int32()), ("loss", pa.float64()), ("sample_id", pa.uint64())]
)
def test_a_column_of_another_type_is_refused(run, column, kind):
    rows = as_stored(run)
    at = rows.column_names.index(column)
    rows = rows.set_column(at, pa.field(column, kind, nullable=False), rows[column].cast(kind))
    refused(plant(run, rows), SchemaError, f"`{column}` as {kind}")


def test_a_key_that_may_be_missing_or_is_left_out_is_refused(run):
    rows = as_stored(run)
    at = rows.column_names.index("epoch")
    nullable = rows.set_column(at, "epoch", rows["epoch"])
    refused(plant(run, nullable), SchemaError, "`epoch` as int32, nullable")
    refused(plant(run, rows.drop_columns("epoch")), SchemaError, "lacks epoch")


def test_a_newer_minor_version_may_add_columns_of_fixed_width_which_are_not_read(run):
    rows, before = as_stored(run), run.samples()
    added = newer(rows.append_column("invented_later", pa.array(np.arange(len(rows)))))
    later = plant(run, added)
    assert later.samples().equals(before)
    assert verify(run.path).empty
    text = newer(rows.append_column("invented_later", pa.array(["x"] * len(rows))))
    refused(plant(run, text), SchemaError, "invented_later")


def test_an_older_file_without_a_nullable_column_reads_as_missing(run):
    later = plant(run, as_stored(run).drop_columns("output_grad_norm"))
    assert later.samples(columns=["output_grad_norm"])["output_grad_norm"].isna().all()


@pytest.mark.parametrize("version", ["2.0", "", "1", "1.x", "1." + "9" * 5000])
def test_another_major_or_no_version_is_refused(run, version):
    refused(plant(run, newer(as_stored(run), version)), SchemaError, "version")


def test_rows_of_another_table_are_refused(run):
    rows = as_stored(run).replace_schema_metadata({"schema_version": "1.0", "table": "events"})
    refused(plant(run, rows), SchemaError, "lies among `samples`")


@pytest.mark.parametrize(
    ("limit", "value", "match"),
    [
        ("MAX_ROWS", 959, "960 rows"),
        ("MAX_DECODED_BYTES", 10_000, "bytes once"),
        ("MAX_COLUMNS", 14, "15 columns"),
        ("MAX_ROW_GROUPS", 9, "10 row groups"),
    ],
)
def test_more_than_a_part_can_hold_is_refused_by_its_footer(run, monkeypatch, limit, value, match):
    run = plant(run, as_stored(run), row_group_size=96)
    monkeypatch.setattr(limits, limit, value)
    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", None)  # decoding would fail
    with pytest.raises(CorruptTraceError, match=match):
        open_run(run.path).samples()


def test_a_bomb_is_refused_by_what_its_footer_promises(run):
    """2²⁵ rows of zeros in some kilobytes."""
    n = 1 << 25
    zeros = pa.chunked_array([pa.repeat(pa.scalar(0, pa.int64()), n)])
    fields = {"step": zeros}
    rows = pa.table(fields, schema=pa.schema([pa.field("step", pa.int64(), nullable=False)]))
    rows = rows.replace_schema_metadata({"schema_version": "1.0", "table": "samples"})
    bombed = plant(run, rows, compression="zstd", row_group_size=n)
    assert bombed.parts("samples")[0].path.stat().st_size < 1_000_000
    refused(bombed, CorruptTraceError, f"promises {n} rows")


def test_a_text_beyond_the_limit_is_refused_before_it_is_copied_to_every_row(run):
    """A megabyte and a byte, once in the dictionary, named by 100,000 rows: 100 GB of strings."""
    n = 100_000
    detail = pa.DictionaryArray.from_arrays(
        pa.repeat(pa.scalar(0, pa.int32()), n), ["x" * (limits.MAX_TEXT_BYTES + 1)]
    )
    columns = {"step": pa.repeat(0, n), "epoch": pa.repeat(pa.scalar(0, pa.int32()), n)}
    columns |= {"name": pa.repeat("n", n), "subject": pa.nulls(n, pa.string()), "detail": detail}
    fields = [
        pa.field(f.name, columns[f.name].type, nullable=f.nullable)
        for f in TABLES["events"].schema()
    ]
    rows = pa.table(columns, schema=pa.schema(fields))
    rows = rows.replace_schema_metadata({"schema_version": "1.0", "table": "events"})
    bombed = plant(run, rows, "events")
    with pytest.raises(CorruptTraceError, match="texts of up to 1048577 bytes"):
        bombed.events()


def test_a_text_beyond_the_limit_is_refused_when_it_is_recorded():
    from dynamics.traces.rows import to_arrow

    event = {"step": [0], "epoch": [0], "name": ["n"], "detail": ["é" * (1 << 19)]}
    assert len(to_arrow(TABLES["events"], event)) == 1
    with pytest.raises(SchemaError, match=r"`events\.detail` has a text of 1,048,578 bytes"):
        to_arrow(TABLES["events"], event | {"detail": ["é" * ((1 << 19) + 1)]})


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}",
        b"[" * 1_000_000,
        b'{"a": "' + b"x" * (17 << 20) + b'"}',
    ],
    ids=["NaN", "infinity", "surrogate", "digits", "deep", "deeper", "long"],
)
def test_json_that_no_trace_holds_is_refused(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"x\.json"):
        read_json(path)
    path.write_text(json.dumps({"a": [[[1]]]}))
    assert read_json(path) == {"a": [[[1]]]}


def test_pipes_folders_and_links_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "true.json").write_text("{}")
    (tmp_path / "link.json").symlink_to(tmp_path / "true.json")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(TraceError, match=name):
            read_json(tmp_path / f"{name}.json")


@pytest.mark.parametrize("folder", ["samples", "samples/rank-00000", "vectors", "attempts"])
def test_a_folder_that_is_a_link_is_not_followed(run, tmp_path, folder):
    place = run.path / folder
    place.mkdir(exist_ok=True)
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert verify(run.path)["what"].str.contains("symbolic link").any()
    try:
        assert open_run(run.path).samples().empty or folder == "vectors"
    except TraceError:
        assert folder == "attempts"
