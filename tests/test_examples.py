"""The examples run, each on small real data, and record what they say."""

import importlib
import sys
from pathlib import Path

import pytest

from dynamics import open_run

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return importlib.import_module


def rows_of(run):
    rows = run.samples()
    assert run.ended_cleanly
    assert rows["loss"].notna().all()
    return rows


def test_plain_loop(tmp_path, example, capsys):
    run = open_run(example("plain_loop").main(tmp_path / "run", epochs=2))
    assert len(rows_of(run)) == 2 * 1500
    assert "Hardest samples:" in capsys.readouterr().out
    assert not run.cost().empty


def test_tiny_gpt_records_each_text(tmp_path, example, capsys):
    run = open_run(example("tiny_gpt").main(tmp_path / "run", epochs=2, n=32))
    rows = rows_of(run)
    assert len(rows) == 2 * 32
    assert rows["grad_norm"].notna().all()
    assert "nats a character" in capsys.readouterr().out


@pytest.mark.crash
@pytest.mark.slow
def test_resume_after_kill(tmp_path, example, capsys):
    run = open_run(example("resume_after_kill").main(tmp_path / "run"))
    keys = rows_of(run)[["epoch", "sample_id"]]
    assert len(keys.drop_duplicates()) == len(keys) == 4 * 1797
    assert len(run.attempts) == 2
    assert "The child was killed." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
def test_lightning_module(tmp_path, example):
    pytest.importorskip("lightning")
    run = open_run(example("lightning_module").main(tmp_path / "run", epochs=2))
    assert len(rows_of(run)) == 2 * 1797


@pytest.mark.slow
def test_sequence_classifier(tmp_path, example):
    pytest.importorskip("transformers")
    pytest.importorskip("datasets")
    run = open_run(example("sequence_classifier").main(tmp_path / "run", epochs=2, n=32))
    rows = rows_of(run)
    assert len(rows) == 2 * 32
    assert rows["grad_norm"].notna().all()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_is_short(path):
    assert len(path.read_text("utf-8").splitlines()) < 100
