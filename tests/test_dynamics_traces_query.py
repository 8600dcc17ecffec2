"""SQL over a run or a study: only rows that count, only verified bytes, and nothing but reading."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import IDS, IN_MEMORY, make_run
from recorded import add_attempt, info, roster, scalar, study_runs, write_run, write_study

from dynamics import open_run, open_study
from dynamics.traces import CorruptTraceError

SAMPLES = {
    "step": [0, 0, 1, 1],
    "epoch": [0, 0, 1, 1],
    "sample_id": [5, 2, 2, 5],
    "loss": [4.0, np.nan, 1.0, 0.5],
    "grad_norm/fc.0": [1.0, 2.0, 3.0, 4.0],
}


@pytest.fixture
def run(tmp_path):
    tables = {
        "samples": [{name: np.array(values) for name, values in SAMPLES.items()}],
        "scalars": [scalar(0, "accuracy", 0.5, "test")],
        "events": [{"step": [1], "epoch": [0], "name": ["epoch_end"]}],
        "roster": roster([1, 0, 1, 1, 0, 1]),
    }
    return write_run(tmp_path / "it's [a] run*", tables)


def test_the_four_tables_are_there_and_join(run):
    answer = run.sql(
        "SELECT label, count(*) AS n, avg(loss) AS loss FROM samples JOIN roster USING (sample_id) "
        "GROUP BY label ORDER BY label"
    )
    assert answer.to_dict("list") == {"label": [1], "n": [4], "loss": [pytest.approx(5.5 / 3)]}
    assert run.sql("SELECT value FROM scalars")["value"].tolist() == [0.5]
    events = run.sql("SELECT name, subject FROM events ORDER BY name")
    assert events["name"].tolist() == ["epoch_end", "non_finite"]


def test_values_that_are_not_finite_are_missing_and_not_lost(run):
    answer = run.sql("SELECT count(*) AS n, count(loss) AS known, sum(status) AS bits FROM samples")
    assert answer.loc[0].tolist() == [4, 3, 1]


def test_block_columns_and_columns_that_were_not_recorded_can_be_asked_for(run):
    answer = run.sql('SELECT sum("grad_norm/fc.0") AS total, count(el2n) AS n FROM samples')
    assert answer.loc[0].tolist() == [10, 0]
    empty = write_run(run.path.parent / "empty", {})
    assert empty.sql("SELECT count(*) AS n, max(loss) AS m FROM samples")["n"].tolist() == [0]


def test_parameters_stand_for_values(run):
    by_place = run.sql("SELECT loss FROM samples WHERE sample_id = ? AND epoch = ?", [5, 1])
    by_name = run.sql("SELECT loss FROM samples WHERE sample_id = $id", {"id": 5})
    assert by_place["loss"].tolist() == [0.5]
    assert sorted(by_name["loss"]) == [0.5, 4]


def test_rows_that_a_resumed_run_has_replaced_are_left_out(run):
    again = {"step": [1], "epoch": [1], "sample_id": [9], "loss": [7.0]}
    late = {"samples": [{name: np.array(v) for name, v in again.items()}]}
    add_attempt(run.path, late, from_step=1, from_epoch=1)
    answer = open_run(run.path).sql("SELECT sample_id, attempt FROM samples ORDER BY step, 1")
    assert answer.to_numpy().tolist() == [[2, 0], [5, 0], [9, 1]]


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ids=st.sampled_from(list(IDS)),
    world_sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_the_view_holds_the_rows_that_the_reader_reads(seed, ids, world_sizes):
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        made = make_run(Path(folder) / "run", seed, ids=ids, world_sizes=world_sizes)
        keys = ["epoch", "sample_id", "occurrence"]
        answer = made.run.sql(f"SELECT * EXCLUDE attempt FROM samples ORDER BY {', '.join(keys)}")
        table = made.run.samples(repeats=True)
        pd.testing.assert_frame_equal(answer[list(table)], table, check_dtype=False)
        assert answer["rank"].tolist() == made.rows.sort_values(keys)["rank"].tolist()


FORBIDDEN = {
    "another file": "SELECT * FROM read_csv('/etc/passwd')",
    "another file as a table": "SELECT * FROM '/etc/passwd'",
    "a list of files": "SELECT * FROM glob('/*')",
    "a variable of the caller": "SELECT * FROM frame",
    "the network": "SELECT * FROM 'https://example.com/x.parquet'",
    "an extension": "INSTALL httpfs",
    "a setting": "SET memory_limit = '8GB'",
    "writing": "COPY (SELECT 1) TO '{part}' (USE_TMP_FILE false)",
    "writing, explained": "EXPLAIN ANALYZE COPY (SELECT 1) TO '{part}' (USE_TMP_FILE false)",
    "a second statement": "SELECT 1; COPY (SELECT 1) TO '{part}' (USE_TMP_FILE false)",
    "a table of its own": "CREATE TABLE t AS SELECT 1",
    "no statement": "",
    "another database": "ATTACH '/tmp/x.db'",
}


@pytest.mark.parametrize("query", FORBIDDEN.values(), ids=FORBIDDEN)
def test_nothing_but_a_select_over_the_run_is_answered(run, query):
    frame = pd.DataFrame({"x": [1]})
    part = run.parts("samples")[0].path
    before = part.read_bytes()
    with pytest.raises(ValueError, match=r"SELECT|Error"):
        run.sql(query.format(part=str(part).replace("'", "''")))
    assert part.read_bytes() == before
    assert len(frame) == 1


def test_an_unknown_column_or_table_is_answered_with_those_there_are(run):
    with pytest.raises(
        ValueError, match=r'"lozz" not found[\s\S]*samples \(step, epoch, sample_id'
    ):
        run.sql("SELECT lozz FROM samples")
    with pytest.raises(ValueError, match=r"sampels[\s\S]*The tables are events \(step"):
        run.sql("SELECT * FROM sampels")


def test_a_damaged_part_never_reaches_duckdb(run):
    part = run.parts("samples")[0].path
    data = bytearray(part.read_bytes())
    for at in range(4, len(data), 97):
        damaged = data.copy()
        damaged[at] ^= 1
        part.write_bytes(damaged)
        with pytest.raises(CorruptTraceError, match="is damaged"):
            open_run(run.path).sql("SELECT avg(loss) FROM samples")


def test_damage_after_a_first_query_is_found_by_the_second(run):
    assert len(run.sql("SELECT * FROM samples")) == 4
    part = run.parts("samples")[0].path
    data = bytearray(part.read_bytes())
    data[100] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptTraceError, match="is damaged"):
        run.sql("SELECT * FROM samples")


def test_no_temporary_folder_is_left(run, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    run.sql("SELECT 1")
    with pytest.raises(ValueError, match="nowhere"):
        run.sql("SELECT nowhere FROM samples")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_study_is_compared_in_one_query(tmp_path):
    study = write_study(tmp_path / "study", study_runs(ratios=(0.0, 0.4), seeds=2, noise=0))
    answer = study.sql(
        "SELECT noise, ratio, count(DISTINCT run) AS runs, avg(value) AS accuracy FROM scalars "
        "WHERE block = 'held-out, noisy labels' GROUP BY noise, ratio ORDER BY noise, ratio"
    )
    assert answer["noise"].tolist() == ["asymmetric"] * 2 + ["symmetric"] * 2
    assert answer["ratio"].tolist() == [0, 0.4] * 2
    assert answer["runs"].tolist() == [2] * 4
    runs = study.sql("SELECT * FROM runs ORDER BY run")
    assert list(runs) == ["run", "noise", "ratio", "seed"]
    assert len(runs) == 8
    assert study.sql("SELECT count(*) AS n FROM roster WHERE seed = 1")["n"].tolist() == [40]


def test_samples_of_a_study_carry_their_run_and_its_factors(tmp_path):
    runs = [{"step": level, "size": [level], "seed": 1.5, "scalars": []} for level in (1, 2)]
    study = write_study(tmp_path / "study", [], factors=("step", "size", "seed"))
    for number, levels in enumerate(runs):
        rows = {"step": [0], "epoch": [0], "sample_id": [number], "loss": [float(number)]}
        rows = {name: np.array(values) for name, values in rows.items()}
        path = study.path / f"it's {number}"
        write_run(path, {"samples": [rows]}, about=info(config=levels))
    answer = open_study(study.path).sql(
        "SELECT run, factor_step, size, seed, step, loss FROM samples ORDER BY run"
    )
    assert answer.to_numpy().tolist() == [
        ["it's 0", 1, "[1]", 1.5, 0, 0.0],
        ["it's 1", 2, "[2]", 1.5, 0, 1.0],
    ]
