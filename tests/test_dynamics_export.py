"""What is exported can be imported again with the same rows, and no spreadsheet runs it."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics import export_table, import_log, open_run
from dynamics.summary import summarise_samples
from dynamics.traces import TraceWriter, begin_attempt, create_run
from tests import foreign_logs, recorded

ENDINGS = [".csv", ".parquet", ".jsonl"]
FORMULAS = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "'=1", "''-2", "'tis", "a=1", "", '"', ","]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Every table: blocks, repeats, missing and non-finite values, texts like formulas."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    create_run(folder, recorded.info())
    attempt = begin_attempt(folder, from_step=0, from_epoch=-1)
    writer = TraceWriter(folder, attempt=attempt, max_rows=7)
    rng = np.random.default_rng(0)
    for step in range(8):
        ids = rng.integers(0, 9, 5) * 2**57
        columns = {"step": np.full(5, step), "epoch": np.full(5, step // 3), "sample_id": ids}
        columns |= {"loss": rng.random(5) ** 20, "grad_norm/head": rng.random(5)}
        columns["margin"] = np.where(rng.random(5) < 0.3, np.nan, rng.normal(size=5))
        columns["correct"] = pd.array([*rng.integers(0, 2, 4).tolist(), None], dtype="Int8")
        writer.append("samples", columns)
        writer.flush()
    for i, text in enumerate(FORMULAS):
        event = {"step": [i], "epoch": [0], "name": [text], "subject": [text], "detail": [None]}
        writer.append("events", event)
        writer.append("scalars", recorded.scalar(i, text, i / 3, text, stderr=None))
    writer.append("roster", {"sample_id": np.arange(9) * 2**57, "label": np.arange(9)})
    writer.close()
    return open_run(folder)


def rows_of(run, table):
    """All rows of a table, in an order that does not depend on parts."""
    read = {
        "samples": lambda: run.samples(repeats=True),
        "scalars": run.scalars,
        "events": lambda: run.events().query("name != 'non_finite'"),  # told anew by each writer
        "roster": lambda: run.roster().reset_index(),
    }[table]()
    read = read.loc[:, sorted(read)]
    keys = [c for c in ("epoch", "sample_id", "occurrence", "step", "name") if c in read]
    return read.sort_values(keys).reset_index(drop=True)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("table", ["samples", "scalars", "events", "roster"])
def test_out_and_in_again_gives_the_same_rows(tmp_path, run, table, ending):
    out = tmp_path / f"{table}{ending}"
    n = export_table(run, out, table=table)
    again = import_log(out, tmp_path / "again")
    expected = rows_of(run, table)
    assert n >= len(expected) > 0
    pd.testing.assert_frame_equal(rows_of(again, table), expected)


def test_a_whole_run_goes_out_in_files_and_comes_back_as_one(tmp_path, run):
    tables = ["samples", "scalars", "events", "roster"]
    for table in tables:
        export_table(run, tmp_path / f"{table}.csv", table=table)
    again = import_log([tmp_path / f"{table}.csv" for table in tables], tmp_path / "again")
    for table in tables:
        pd.testing.assert_frame_equal(rows_of(again, table), rows_of(run, table))
    pd.testing.assert_frame_equal(summarise_samples(again), summarise_samples(run))


@pytest.mark.parametrize("ending", ENDINGS)
def test_samples_keep_their_names(tmp_path, ending):
    foreign_logs.write_cartography(tmp_path / "log", name_of=lambda name: f"={name}")
    run = import_log(tmp_path / "log", tmp_path / "run")
    export_table(run, tmp_path / f"out{ending}")
    again = import_log(tmp_path / f"out{ending}", tmp_path / "again")
    assert again.roster()["key"].to_dict() == run.roster()["key"].to_dict()
    pd.testing.assert_frame_equal(rows_of(again, "samples"), rows_of(run, "samples"))


def test_no_cell_of_a_csv_file_begins_a_formula(tmp_path, run):
    for table in ("events", "scalars"):
        export_table(run, tmp_path / "out.csv", table=table)
        with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
            cells = [row["name"] for row in csv.DictReader(file)]
        assert len(cells) >= len(FORMULAS)
        assert [cell for cell in cells if cell.startswith(tuple("=+-@\t\r"))] == []


@settings(max_examples=8, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=30), st.sampled_from(ENDINGS))
def test_any_text_comes_back(tmp_path_factory, texts, ending):
    place = tmp_path_factory.mktemp("texts")
    tables = {"events": [{"step": range(len(texts)), "epoch": [0] * len(texts), "name": texts}]}
    recorded.write_run(place / "run", tables)
    export_table(open_run(place / "run"), place / f"out{ending}", table="events")
    again = import_log(place / f"out{ending}", place / "again").events()
    assert again.sort_values("step")["name"].tolist() == texts


def test_the_summary_is_that_of_the_run(tmp_path, run):
    n = export_table(run, tmp_path / "out.parquet", table="summary")
    expected = summarise_samples(run)
    assert n == len(expected)
    got = pq.read_table(tmp_path / "out.parquet").to_pandas().set_index("sample_id")
    pd.testing.assert_frame_equal(got, expected, check_dtype=False)


@pytest.mark.parametrize("table", ["samples", "scalars", "events", "roster"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_without_rows_has_its_columns(tmp_path, table, ending):
    run = recorded.write_run(tmp_path / "run", {})
    assert export_table(run, tmp_path / f"out{ending}", table=table) == 0
    if ending == ".csv":
        assert '"epoch"' in (tmp_path / "out.csv").read_text() or table == "roster"


def test_json_lines_hold_null_and_never_nan(tmp_path, run):
    export_table(run, tmp_path / "out.jsonl")

    def refuse(constant):
        raise AssertionError(constant)

    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    assert any(row["margin"] is None for row in parsed)


def test_an_export_that_fails_leaves_the_old_file(tmp_path, run, monkeypatch):
    out = tmp_path / "out.csv"
    out.write_text("old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dynamics.traces.export._without_formulas", fail)
    with pytest.raises(OSError, match="No space"):
        export_table(run, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert out.read_text() == "old"


def test_an_unknown_table_or_ending_is_refused(tmp_path, run):
    with pytest.raises(ValueError, match="no table 'sample'"):
        export_table(run, tmp_path / "out.csv", table="sample")
    with pytest.raises(ValueError, match=r"should end in \.csv, \.parquet, \.jsonl"):
        export_table(run, tmp_path / "out.xlsx")
