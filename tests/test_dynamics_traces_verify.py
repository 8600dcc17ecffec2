"""Whatever is wrong with a run, verify names it and its file; a sound run has no finding."""

import json
import shutil

import numpy as np
import pytest
from random_runs import ID_KINDS, random_run
from recorded import add_attempt, full_run, write_run

from dynamics import open_run
from dynamics.traces import TraceError
from dynamics.traces.compact import compact
from dynamics.traces.layout import PartName, content_hash
from dynamics.traces.rows import encode_part, replace_column
from dynamics.traces.schema import TABLES
from dynamics.traces.verify import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return full_run(tmp_path_factory.mktemp("sound") / "run").path


@pytest.fixture
def run(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def severities(path):
    return verify(path)["severity"].tolist()


def the_finding(path, severity):
    table = verify(path)
    (at,) = np.flatnonzero(table["severity"] == severity)
    return table.iloc[at]


def test_a_sound_run_has_no_finding(run):
    assert verify(run).empty
    compact(run)
    assert verify(run).empty


@pytest.mark.parametrize("ids", ID_KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_random_runs_are_sound_before_and_after_compaction(tmp_path, seed, ids):
    path = random_run(tmp_path / "run", seed, ids=ids).path
    assert not {"damage"} & {*severities(path)}
    compact(path)
    assert not {"damage"} & {*severities(path)}
