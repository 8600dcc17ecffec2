"""`dynamics import` and `dynamics export` at the terminal: what they print, their exit codes."""

import json

import pytest
from typer.testing import CliRunner

from dynamics import open_run
from dynamics.export import EXPORTS
from dynamics.traces.foreign.source import FORMATS
from studies.cli import app
from studies.commands.exchange import LogFormat, TableName
from tests import foreign_logs


@pytest.fixture
def call():
    def call(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)])

    return call


def test_import_report_and_export_work_in_turn(tmp_path, call):
    foreign_logs.write_cartography(tmp_path / "log")
    done = call("import", tmp_path / "log", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    for told in (
        "(cartography; 5 files",
        "loss, margin, p_true",
        "ignored     nothing",
        "10 in 5 epochs, 0 to 4; 5 samples' epochs have no row; 1 rows repeat a sample",
        "grad_norm (GradNorm())",
    ):
        assert told in done.output
    assert call("inspect", tmp_path / "run").exit_code == 0
    assert call("report", tmp_path / "run").exit_code == 0
    done = call("export", tmp_path / "run", "--out", tmp_path / "out.csv", "--table", "summary")
    assert done.exit_code == 0
    assert "10 rows of summary" in done.output
    assert (tmp_path / "out.csv").read_text().startswith('"sample_id","label"')


def test_columns_steps_and_json(tmp_path, call):
    (tmp_path / "log.csv").write_text("id,step,ce,other\n1,9,0.5,2\n")
    options = ["--column", "sample_id=id", "--column", "loss=ce", "--steps-per-epoch", 4, "--json"]
    done = call("import", tmp_path / "log.csv", "--out", tmp_path / "run", *options)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sources"][0]["ignored"] == ["other"]
    assert open_run(tmp_path / "run").samples()["epoch"].tolist() == [2]


@pytest.mark.parametrize(
    ("pairs", "told"),
    [(["loss"], "such as loss=ce"), (["=ce"], "such as"), (["a=b", "a=c"], "names 'a' twice")],
)
def test_a_mistaken_column_is_a_usage_error(tmp_path, call, pairs, told):
    (tmp_path / "log.csv").write_text("sample_id,epoch,loss\n1,0,0.5\n")
    options = [part for pair in pairs for part in ("--column", pair)]
    done = call("import", tmp_path / "log.csv", "--out", tmp_path / "run", *options)
    assert done.exit_code == 2
    assert told in done.output


def test_a_source_that_cannot_be_read_is_a_usage_error_and_a_damaged_one_is_not(tmp_path, call):
    done = call("import", tmp_path / "nothing.csv", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "does not exist" in done.output
    pytest.importorskip("tensorboard")
    (tmp_path / "events.tfevents").write_bytes(b"\0" * 40)
    options = ["--out", tmp_path / "run", "--steps-per-epoch", 1]
    assert call("import", tmp_path / "events.tfevents", *options).exit_code == 3


def test_the_commands_know_every_format_and_table():
    assert {f.value for f in LogFormat} == {*FORMATS}
    assert {t.value for t in TableName} == {*EXPORTS}
