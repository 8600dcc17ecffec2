"""The command `dynamics`: what it prints, its exit codes, and no traceback for a user's mistake."""

import json

import numpy as np
import pytest
from recorded import EPOCHS, N, full_run, info, study_runs, write_run, write_study
from typer.testing import CliRunner

import studies.demo
from studies.cli import app


def call(*arguments):
    """Exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def fails(*arguments, code=2):
    """The message of a call that must fail: one paragraph, and nothing on standard output."""
    found, out, error = call(*arguments)
    assert (found, out) == (code, "")
    assert error.startswith("dynamics: ")
    assert error.count("\n") == 1
    return error


def refuses(*arguments):
    """The message of a call that typer itself refuses, with the usage above it."""
    code, out, error = call(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith("Usage: ")
    return error


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    about = info(data={"source": "digits", "sha256": "0" * 64})
    return full_run(tmp_path_factory.mktemp("cli") / "run", about=about).path


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    runs = study_runs(kinds=("symmetric",))
    runs[0]["clean"] = False
    return write_study(tmp_path_factory.mktemp("cli") / "study", runs).path


def damage(path, table):
    """Change one byte of a part."""
    part = next(path.glob(f"{table}/rank-*/part-*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    return part


def test_report_of_a_run_goes_beside_it_and_its_path_is_printed(run):
    code, out, error = call("report", run)
    assert (code, error) == (0, "")
    assert out == f"{(run / 'report.html').resolve()}\n"
    assert "<svg" in (run / "report.html").read_text(encoding="utf-8")


def test_report_of_a_study_with_figures_goes_where_it_is_told(study, tmp_path):
    out, figures = tmp_path / "a/b.html", tmp_path / "figures"
    code, printed, _ = call("report", study, "--out", out, "--figures", figures)
    assert (code, printed) == (0, f"{out.resolve()}\n")
    assert "What label noise costs" in out.read_text(encoding="utf-8")
    assert (figures / "noise_law.pdf").is_file()
    assert (figures / "noise_law_symmetric.csv").is_file()
    assert not (study / "report.html").exists()


def test_inspect_prints_what_a_run_holds_and_the_same_as_json(run):
    code, out, error = call("inspect", run)
    assert (code, error) == (0, "")
    code, as_json, _ = call("inspect", run, "--json")
    described = json.loads(as_json)
    assert code == 0
    assert (described["samples"], described["epochs"], described["rows"]) == (N, EPOCHS, N * EPOCHS)
    assert described["ended"] == "cleanly"
    assert "grad_norm" in described["columns"]
    assert "fisher_trace" in described["scalars"]
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["samples"] == str(N)
    assert set(lines) == set(described)


def test_inspect_of_a_study_names_its_unfinished_runs(study):
    described = json.loads(call("inspect", study, "--json")[1])
    assert described["factors"]["ratio"] == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert (described["runs"], described["ended"]) == (10, 9)
    assert described["unfinished"] == ["symmetric-0-seed0"]
    assert call("inspect", study)[0] == 0


def test_json_holds_for_hostile_configurations_and_empty_runs(tmp_path):
    config = {"\u202e": "\x1b[31m", "a\nb": [None, {}]}
    path = write_run(tmp_path / "run", {}, about=info(config=config)).path
    code, out, _ = call("inspect", path, "--json")
    assert code == 0
    assert json.loads(out)["config"] == config
    assert "\x1b" not in call("inspect", path)[1]


@pytest.mark.parametrize("command", ["report", "inspect"])
def test_a_path_without_a_run_is_explained(command, tmp_path):
    assert "does not exist" in fails(command, tmp_path / "missing")
    file = tmp_path / "file"
    file.write_text("")
    assert "run.json" in fails(command, file)
    assert "run.json" in fails(command, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_above_a_run_names_it(run):
    assert "Below it there are run." in fails("inspect", run.parent)


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": "9.0"}', "{}", "\ud800"])
def test_a_run_json_that_is_not_one_is_explained(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert "run.json" in fails("inspect", tmp_path)
    assert "run.json" in fails("report", tmp_path)


@pytest.mark.parametrize("command", ["report", "inspect"])
@pytest.mark.parametrize("table", ["samples", "scalars"])
def test_a_damaged_part_is_exit_code_3_and_named(command, table, tmp_path):
    path = full_run(tmp_path / "run").path
    part = damage(path, table)
    error = fails(command, path, code=3)
    assert str(part) in error
    assert "damaged" in error


def test_a_damaged_run_of_a_study_is_exit_code_3(tmp_path):
    path = write_study(tmp_path / "study", study_runs(kinds=("symmetric",), seeds=1)).path
    damage(path / "symmetric-0.4-seed0", "scalars")
    assert "damaged" in fails("report", path, code=3)
    assert not (path / "report.html").exists()


def test_the_wrong_data_set_is_refused(run, tmp_path):
    assert "is not the data set that" in fails("report", run, "--data", "digits")
    assert "no data set at" in fails("report", run, "--data", tmp_path / "missing")
    assert "lacks" in fails("report", run, "--data", tmp_path)


@pytest.mark.parametrize("kind", ["text", "cut", "npy", "objects"])
def test_a_file_that_is_no_data_set_is_refused(run, tmp_path, kind):
    path = tmp_path / "set.npz"
    arrays = dict.fromkeys(("x_train", "x_test"), np.zeros((2, 4, 4), np.uint8))
    arrays |= dict.fromkeys(("y_train", "y_test"), np.zeros(2, np.int64))
    if kind == "objects":
        arrays["x_train"] = np.array([{}, {}])
    np.savez(path, **arrays)
    if kind == "text":
        path.write_text("not an archive")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, arrays["x_train"])
    assert str(path) in fails("report", run, "--data", path)


def test_an_out_that_cannot_be_written_is_explained(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in fails("report", run, "--out", tmp_path / "file" / "r.html")
    assert str(tmp_path) in fails("report", run, "--out", tmp_path)


STUDY = ("study", "noise-ratio")


@pytest.mark.parametrize(
    "ratios", ["a,b", "", "0,,1", "0,1.5", "1", "-0.2", "nan", "inf", "0;0.2", "0.2 0.4"]
)
def test_bad_ratios_are_explained_in_a_sentence(tmp_path, ratios):
    error = fails(*STUDY, "--out", tmp_path / "study", f"--ratios={ratios}")
    assert "ratio" in error
    assert "pydantic" not in error
    assert not (tmp_path / "study").exists()


def test_a_missing_data_folder_is_explained_and_leaves_nothing_behind(tmp_path):
    missing = tmp_path / "mnist"
    error = fails(*STUDY, "--out", tmp_path / "study", "--data", missing)
    assert str(missing) in error
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (*STUDY, "--out", "x", "--noise", "pairwise"),
        (*STUDY, "--out", "x", "--seeds", "0"),
        (*STUDY, "--out", "x", "--n-images", "39"),
        (*STUDY, "--out", "x", "--seeds", "two"),
        STUDY,
        ("study", "unknown"),
        ("demo", "--seed", "-1"),
        ("report",),
        ("report", "x", "--unknown"),
        ("unknown",),
    ],
)
def test_unknown_options_and_values_are_exit_code_2(arguments):
    refuses(*arguments)


def test_no_arguments_show_the_help():
    code, out, error = call()
    assert code == 2
    assert "inspect" in out + error


def test_a_small_study_runs_and_prints_its_table_and_the_path_of_its_report(tmp_path):
    out = tmp_path / "study"
    options = ("--ratios", "0,0.4", "--n-images", 100, "--seeds", 1, "--noise", "symmetric")
    options += ("--width", 64, "--arm", "plain")
    code, printed, error = call(*STUDY, "--out", out, *options)
    assert code == 0
    assert "error" not in error.lower()
    *table, path = printed.splitlines()
    assert path == str((out / "report.html").resolve())
    assert "held_out_noisy" in table[0]
    assert "symmetric" in "".join(table)
    assert "0.4" in "".join(table)
    assert (out / "figures/label_precision.png").is_file()
    assert (out / "symmetric-0.4-width64-seed0/run.json").is_file()


def test_the_demo_refuses_a_folder_with_another_run_and_keeps_it(tmp_path):
    write_run(tmp_path / "run", {}, about=info(config={"study": "mine"}))
    assert "not a demo" in fails("demo", "--out", tmp_path)
    assert (tmp_path / "run/run.json").is_file()


def test_the_demo_replaces_its_own_earlier_run(tmp_path, monkeypatch):
    about = info(config={"study": "demo"}, data={"source": "digits"})
    full_run(tmp_path / "run", about=about)
    (tmp_path / "run" / "old").write_text("")
    monkeypatch.setattr(studies.demo, "run_demo", lambda out, seed: full_run(out, about=about))
    code, printed, error = call("demo", "--out", tmp_path)
    assert code == 0
    assert printed == f"{(tmp_path / 'report.html').resolve()}\n"
    assert "Training" in error
    assert not (tmp_path / "run/old").exists()
    assert (tmp_path / "figures/loss.png").is_file()


def test_an_interruption_is_a_sentence_and_exit_code_130(tmp_path, monkeypatch):
    def interrupt(out, seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies.demo, "run_demo", interrupt)
    code, _, error = call("demo", "--out", tmp_path)
    assert code == 130
    assert error.endswith("dynamics: interrupted; what was recorded is kept.\n")
