"""The commands verify, repair and compact: what they print, and their exit codes."""

import json

import pytest
from recorded import full_run, write_study
from typer.testing import CliRunner

from dynamics import open_run
from studies.cli import app


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def run(tmp_path):
    return full_run(tmp_path / "run")


def spoil(run, table="samples"):
    (part,) = run.parts(table)
    part.path.write_bytes(part.path.read_bytes()[:-9])
    return part.path.name


@pytest.mark.parametrize("how", [[], ["--untrusted"]], ids=["trusted", "untrusted"])
def test_verify_ends_with_0_for_a_sound_run_1_for_a_finding_and_3_for_damage(run, how):
    done = call("verify", run.path, *how)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "Nothing is wrong.\n")
    (run.path / "samples" / "stranger").write_text("x")
    done = call("verify", run.path, *how)
    assert done.exit_code == 1
    assert "finding  run/samples/stranger: not a file of a trace" in done.stdout
    name = spoil(run)
    done = call("verify", run.path, *how)
    assert done.exit_code == 3
    assert f"{name}: is damaged" in done.stdout


def test_verify_prints_json_for_a_run_and_a_study(run, tmp_path):
    assert json.loads(call("verify", run.path, "--json").stdout) == []
    name = spoil(run, "events")
    done = call("verify", run.path, "--json")
    (found,) = json.loads(done.stdout)
    assert found["file"] == f"events/rank-00000/{name}"
    assert found["severity"] == "damage"
    study = write_study(tmp_path / "s", [{"noise": "n", "ratio": 0.0, "seed": 0, "scalars": []}])
    assert call("verify", study.path).exit_code == 0


@pytest.mark.parametrize("command", ["verify", "repair", "compact"])
def test_what_is_not_there_is_a_mistake_in_the_call(tmp_path, command):
    done = call(command, tmp_path / "nothing")
    assert done.exit_code == 2
    assert "does not exist" in done.stderr


def test_repair_says_what_is_gone_and_verify_is_content_afterwards(run):
    assert "needs no repair" in call("repair", run.path).stderr
    spoil(run, "events")
    done = call("repair", run.path)
    assert done.exit_code == 0
    assert "gone: rows of `events` of steps 0 to 0" in done.stdout
    assert call("verify", run.path).exit_code == 0
    answer = json.loads(call("repair", run.path, "--json").stdout)
    assert len(answer["set_aside"]) == 1
    assert answer["gone"] == []


def test_a_repaired_run_is_reported(run, tmp_path):
    (run.path / "run.json").write_text("{")
    assert call("report", run.path).exit_code == 2
    call("repair", run.path)
    assert call("report", run.path, "--out", tmp_path / "r.html").exit_code == 0
    assert call("inspect", run.path).exit_code == 0


def test_compact_needs_a_clean_end_or_force(run, tmp_path):
    done = call("compact", run.path)
    assert done.exit_code == 0
    assert "960 rows of samples in 4 files" in done.stderr
    assert len(open_run(run.path).samples()) == 960
    open_ended = full_run(tmp_path / "open", clean=False).path
    done = call("compact", open_ended)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert call("compact", open_ended, "--force").exit_code == 0


def test_a_damaged_part_ends_compact_with_3(run):
    spoil(run)
    assert call("compact", run.path).exit_code == 3
