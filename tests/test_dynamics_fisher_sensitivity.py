"""Sensitivity against the Fisher trace: traces put together by hand, and the permutation test."""

import numpy as np
import pandas as pd
import pytest
from recorded import critical_run, write_critical_study

from dynamics.fisher_sensitivity import (
    clean_trace,
    deficit_traces,
    match_fisher,
    trace_over_seeds,
)
from dynamics.plasticity import plasticity_curves

ONSETS = np.array([0, 2, 4, 6, 8])


def trace(values):
    return pd.DataFrame({"epoch": np.arange(len(values)) - 1, "value": values, "stderr": 0.1})


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    runs = [
        critical_run("none", "decayed", 0, 0, 0, 0.9, trace=[1, 4, 2]),
        critical_run("none", "decayed", 0, 0, 1, 0.9, trace=[4, 4, 8]),
        critical_run("blur", "decayed", 0, 2, 0, 0.8, trace=[1, 9, 9, 9]),
        critical_run("blur", "decayed", 0, 1, 0, 0.8, trace=[1, 7, 7]),
        critical_run("blur", "decayed", 3, 5, 0, 0.8, trace=[1, 4, 2, 1, 50, 50]),
        critical_run("blur", "reset", 0, 2, 0, 0.8, trace=[1, 9, 9, 3]),
    ]
    return plasticity_curves(write_critical_study(tmp_path_factory.mktemp("c") / "study", runs))


def test_the_mean_over_seeds_is_geometric():
    rows = pd.DataFrame(
        {
            "curve": "fisher_trace",
            "epoch": [0, 0, 1],
            "value": [1.0, 4.0, 5.0],
            "stderr": [0.1, 0.1, 0.5],
        }
    )
    found = trace_over_seeds(rows)
    assert found["value"].tolist() == pytest.approx([2, 5])
    assert found["n"].tolist() == [2, 1]
    spread = np.log(4) / np.sqrt(2) / np.sqrt(2)  # standard deviation of 0 and log 4, over √2
    assert found["stderr"].tolist() == pytest.approx([2 * spread, 0.5])


def test_the_clean_trace_goes_on_until_the_latest_onset(curves):
    mine = curves[curves["rate"] == "decayed"]
    found = clean_trace(mine).set_index("epoch")
    assert found.index.tolist() == [-1, 0, 1, 2]
    assert found["n"].tolist() == [2, 2, 2, 1]  # one value a seed, however many runs share it
    assert found["value"].tolist() == pytest.approx([2, 4, 4, 1])


def test_the_longest_deficit_stands_beside_none_and_reset_beside_the_decayed_control(curves):
    found = deficit_traces(curves)
    settings = found.groupby("rate", sort=False)["setting"].unique().map(list).to_dict()
    assert settings == {
        "decayed": ["no deficit", "blur until 2"],
        "reset": ["no deficit", "blur until 2"],
    }
    reset = found[(found["rate"] == "reset") & (found["setting"] == "blur until 2")]
    assert reset["value"].tolist() == pytest.approx([1, 9, 9, 3])
    assert deficit_traces(curves[curves["deficit"] == "none"]).empty


def test_sensitivity_that_is_the_trace_at_onset_matches_without_a_lag():
    values = [1, 2, 9, 7, 6, 5, 4, 3, 2.5, 2, 1.5, 1.2, 1.1]
    drops = [values[onset] for onset in ONSETS]
    found = match_fisher(ONSETS, drops, trace(values))
    assert (found.best_lag, found.n) == (0, 5)
    assert found.at_onset.value == pytest.approx(1)
    assert found.best == pytest.approx(1)


def test_a_lag_is_found():
    values = [1, 3, 9, 2, 8, 4, 7, 2.5, 6, 1.5, 5, 1.2, 3.3, 0.5]
    drops = [values[onset + 1] for onset in ONSETS]
    found = match_fisher(ONSETS, drops, trace(values), longest_lag=3)
    assert (found.best_lag, found.best) == (1, pytest.approx(1))
    assert found.at_onset.value < 0.9


def test_too_few_onsets_or_a_short_trace_give_no_answer():
    values = np.arange(1.0, 14)
    assert match_fisher(ONSETS[:3], [1, 2, 3], trace(values)) is None
    assert match_fisher(ONSETS, np.arange(5.0), trace(values[:4])) is None
    assert match_fisher(ONSETS, [1, 2, 3, np.nan, np.nan], trace(values)) is None


def false_alarms(n):
    """Share of unrelated pairs that the permutation test calls related."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        values = np.exp(rng.standard_normal(21))
        match = match_fisher(ONSETS, rng.standard_normal(5), trace(values), longest_lag=4)
        found.append(match.p_value < 0.05)
    return np.mean(found)


def test_few_unrelated_curves_are_called_related():
    assert false_alarms(10) <= 0.3


@pytest.mark.slow
def test_at_most_seven_percent_of_unrelated_curves_are_called_related():
    assert false_alarms(200) <= 0.07
