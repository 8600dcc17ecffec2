"""The Fisher benchmark runs, and peers agree with the exact value; nothing is timed here."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))


def test_all_methods_agree_on_a_small_network():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fisher = pytest.importorskip("fisher", exc_type=ImportError)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
        names = [name for name in fisher.METHODS if "Hutch++" not in name]  # needs a larger one
        rows = fisher.compare(model, torch.randn(250, 6), names, rounds=3, patience=9.0)
    assert [row["method"] for row in rows] == names
    for row in rows:
        assert row["seconds"] > 0
        if row["z"] is None:
            assert row["relative_difference"] == pytest.approx(0, abs=1e-4)
        else:
            assert abs(row["z"]) < 5
