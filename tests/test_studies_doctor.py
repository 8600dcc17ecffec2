"""`dynamics doctor`: says what is there, finds what is wrong, leaves nothing behind."""

import itertools
import json

import pytest
from typer.testing import CliRunner

from studies.cli import app
from studies.doctor import examine, list_findings, measure_writes


def test_it_prints_and_leaves_nothing_behind(tmp_path, monkeypatch):
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    answer = json.loads(result.stdout)
    assert result.exit_code == (1 if answer["findings"] else 0)
    assert answer["packages"]["torch"]
    assert answer["disk"]["free_gb"] > 0
    assert list(tmp_path.iterdir()) == []
    text = CliRunner().invoke(app, ["doctor", str(tmp_path)]).stdout
    assert "torch is built for" in text
    assert "a durable write takes" in text


def test_writes_are_timed_one_by_one(tmp_path):
    ticks = itertools.count()
    assert measure_writes(tmp_path, n=3, clock=lambda: next(ticks) ** 2) == [1, 5, 9]


def test_a_folder_that_is_not_there_is_a_mistake_in_the_call(tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


@pytest.mark.parametrize(
    ("part", "change", "finding"),
    [
        ("disk", {"write_median_s": 0.3}, "takes 0.30 s"),
        ("disk", {"free_gb": 0.2}, "0.2 GB free"),
        ("torch", {"built_for": "CUDA 12.8"}, "sees no device"),
        ("torch", {"built_for": "CUDA 12.8", "devices": ["H200"]}, None),
    ],
)
def test_findings(part, change, finding):
    answer = {
        "disk": {"folder": "/runs", "write_median_s": 0.001, "free_gb": 50.0},
        "torch": {"built_for": "cpu", "devices": []},
    }
    assert list_findings(answer) == []
    found = list_findings(answer | {part: answer[part] | change})
    assert len(found) == (finding is not None)
    assert finding is None or finding in found[0]


def test_a_slow_disk_is_found(tmp_path):
    ticks = itertools.count(step=0.5)
    assert any(
        "durable write" in f for f in examine(tmp_path, clock=lambda: next(ticks))["findings"]
    )
