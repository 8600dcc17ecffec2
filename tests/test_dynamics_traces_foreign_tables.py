"""Plain tables: every type that a column may come in, and every mistake named by file and row."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamics import import_log
from dynamics.traces import TraceError

HEADER = "sample_id,epoch,loss\n"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path, **options):
    with pytest.raises(TraceError) as caught:
        import_log(path, path.parent / "run", **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (HEADER + "0,0\n", "Row #2: Expected 3 columns, got 2"),
        (HEADER + "0,0,1\n1,0,1,1\n", "Row #3: Expected 3 columns, got 4"),
        (HEADER + "0,0,1\n1,0,abc\n", "row 3, column `loss`: expected a number, but got 'abc'"),
        (HEADER + "0,0.5,1\n", "row 1: `epoch` should be a whole number"),
        (HEADER + "0,,1\n", "row 1: `epoch` is missing"),
        (HEADER + "0,0,1\n,0,1\n", "row 2: `sample_id` is missing"),
        (HEADER + "0,99999999999,1\n", "row 1: `epoch` should be a whole number from"),
        ("sample_id,epoch,correct\n0,0,1\n1,0,2\n", "row 2: `correct` should be a whole number"),
        ("sample_id,epoch,correct\n0,0,maybe\n", "row 1: `correct` should be a number"),
        ("sample_id,epoch,step,loss\n0,0,-1,2\n", "row 1: `step` should be a whole number from 0"),
        ("sample_id,epoch,loss,label\n0,0,1,cat\n", "column `label`: expected a number"),
        ("sample_id,epoch,loss,loss\n0,0,1,1\n", "two columns called 'loss'"),
        (b"\xff\xfe\x00", "not a header of CSV in UTF-8"),
        (HEADER.encode() + b"\xff,0,1\n", "invalid UTF8"),
        ("", "is empty"),
        (HEADER + "x" * 2000 + ",0,1\n", "1,024 bytes are the most"),
    ],
)
def test_a_mistake_in_a_csv_file_is_named_by_row_and_column(tmp_path, content, told):
    assert told in refusal(write(tmp_path / "log.csv", content))


def test_a_line_longer_than_a_block_is_refused(tmp_path):
    text = HEADER + "0,0,1\n" + '"' + "x" * 9_000_000 + '",0,1\n'
    refusal(write(tmp_path / "log.csv", text))


def test_truth_values_tabs_and_a_byte_order_mark_are_read(tmp_path):
    text = "\ufeffsample_id\tepoch\tcorrect\n0\t0\tTrue\n1\t0\tfalse\n2\t0\t1\n3\t0\t\n"
    run = import_log(write(tmp_path / "log.tsv", text), tmp_path / "run")
    assert run.samples()["correct"].tolist()[:3] == [1, 0, 1]
    assert np.isnan(run.samples()["correct"].tolist()[3])


def test_text_behind_an_apostrophe_loses_it_only_before_a_formula(tmp_path):
    text = "step,epoch,name,detail\n0,0,a,'=1+1\n1,0,b,''-x\n2,0,c,'tis\n3,0,d,it's\n"
    run = import_log(write(tmp_path / "log.csv", text), tmp_path / "run")
    assert run.events()["detail"].tolist() == ["=1+1", "'-x", "'tis", "it's"]


def test_json_lines_hold_numbers_truth_and_text(tmp_path):
    lines = [
        {"sample_id": "a", "epoch": 0, "loss": 1, "correct": True},
        {"sample_id": "b", "epoch": 0.0, "loss": 0.5},
        {"sample_id": 3, "epoch": 0, "loss": None, "correct": False, "late": 1},
    ]
    text = "\n\n".join(map(json.dumps, lines))
    run = import_log(write(tmp_path / "log.jsonl", text), tmp_path / "run")
    rows = run.samples().join(run.roster()["key"], on="sample_id").set_index("key")
    assert rows.loc[["a", "b"], "loss"].tolist() == [1, 0.5]
    assert rows["loss"].isna()["3"]
    assert rows["correct"].to_dict() == pytest.approx({"a": 1, "b": np.nan, "3": 0}, nan_ok=True)
    assert run.info["imported"]["sources"][0]["ignored"] == ["late"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 is not one JSON object"),
        ("[1]", "line 2 should hold one JSON object, but holds a list"),
        ("[" * 100_000, "line 2 is not one JSON object"),
        ('{"sample_id": 0, "epoch": 0, "loss": [1]}', "line 2: 'loss' should be a number or text"),
        ('{"sample_id": 0, "epoch": 0, "loss": "x"}', "row 2: `loss` should be a number"),
        ('{"sample_id": 1.5, "epoch": 0, "loss": 1}', "row 2: `sample_id` should be a whole"),
        ('{"sample_id": null, "epoch": 0, "loss": 1}', "row 2: `sample_id` is missing"),
        ('{"sample_id": "\\ud800", "epoch": 0, "loss": 1}', "does not convert"),
        ('{"sample_id": 1e400, "epoch": 0, "loss": 1}', "row 2: `sample_id` should be a whole"),
        ("\udcff", "line 2 is not one JSON object"),
    ],
)
def test_a_mistake_in_json_lines_is_named_by_line(tmp_path, line, told):
    text = '{"sample_id": 0, "epoch": 0, "loss": 1}\n' + line + "\n"
    source = write(tmp_path / "log.jsonl", text.encode(errors="surrogateescape"))
    assert told in refusal(source)


def test_a_line_of_json_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dynamics.traces.foreign.json_lines.MAX_LINE", 50)
    source = write(tmp_path / "log.jsonl", '{"sample_id": 0, "pad": "' + "x" * 100 + '"}\n')
    assert "line 1 is longer than 50 bytes" in refusal(source)


def test_parquet_of_any_types_of_numbers_is_read(tmp_path):
    table = pa.table(
        {
            "sample_id": pa.array([2**62, 1], pa.uint64()),
            "epoch": pa.array([0, 1], pa.uint8()),
            "step": pa.array([10**17, 10**17 + 1], pa.int64()),  # beyond what float64 tells apart
            "loss": pa.array([0.5, None], pa.float16()),
            "correct": pa.array([True, False]),
            "predicted": pa.array([1.0, float("nan")]),
            "grad_norm/head": pa.array([3, 4], pa.int32()),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    rows = import_log(tmp_path / "log.parquet", tmp_path / "run").samples()
    assert rows["sample_id"].tolist() == [2**62, 1]
    assert rows["step"].tolist() == [10**17, 10**17 + 1]
    assert rows["grad_norm/head"].tolist() == [3, 4]
    assert rows["correct"].tolist() == [1, 0]
    assert rows["predicted"].isna().tolist() == [False, True]
    assert rows["status"].tolist() == [0, 0]  # a class that is NaN is missing, not "not finite"


def test_names_in_a_dictionary_of_parquet_are_read(tmp_path):
    names = pa.array(["x", "y", "x"]).dictionary_encode()
    table = pa.table({"sample_id": names, "epoch": [0, 0, 1], "loss": [1.0, 2.0, 3.0]})
    pq.write_table(table, tmp_path / "log.parquet")
    run = import_log(tmp_path / "log.parquet", tmp_path / "run")
    assert set(run.roster()["key"]) == {"x", "y"}


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"sample_id": [[1]], "epoch": [0], "loss": [1.0]}, "sample"),
        ({"sample_id": [1], "epoch": [0], "loss": [[1.0]]}, "`loss` should be a number"),
        ({"sample_id": [1], "epoch": [0], "step": [10**18], "loss": [1.0]}, "`step` should be"),
        ({"sample_id": pa.array([2**63], pa.uint64()), "epoch": [0], "loss": [1.0]}, "sample"),
    ],
)
def test_what_cannot_be_a_column_is_refused(tmp_path, columns, told):
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    assert told in refusal(tmp_path / "log.parquet")


def test_damaged_parquet_is_refused(tmp_path):
    refusal(write(tmp_path / "log.parquet", b"PAR1 and no more"))
    table = pa.table({"sample_id": range(1000), "epoch": [0] * 1000, "loss": np.arange(1000.0)})
    pq.write_table(table, tmp_path / "log.parquet", write_page_checksum=True)
    data = bytearray((tmp_path / "log.parquet").read_bytes())
    data[len(data) // 3] ^= 1
    refusal(write(tmp_path / "log.parquet", bytes(data)))


def test_a_scalar_that_is_text_is_refused_with_a_way_out(tmp_path):
    source = write(tmp_path / "log.csv", "epoch,acc,model\n0,0.5,resnet\n")
    assert "column `model`" in refusal(source)
    run = import_log(source, tmp_path / "run", columns={"model": ""})
    assert run.scalars()["name"].tolist() == ["acc"]


def test_scalars_in_long_form_need_names_and_values_and_have_a_block(tmp_path):
    source = write(tmp_path / "log.csv", "epoch,name,value,n\n3,acc,0.5,7\n")
    row = import_log(source, tmp_path / "run").scalars().iloc[0]
    assert row[["step", "epoch", "name", "block", "value", "n"]].tolist() == [
        3, 3, "acc", "total", 0.5, 7,
    ]  # fmt: skip
