"""Schedules, paired effects, power and signs of the regularisation-timing study."""

import numpy as np
import pandas as pd
import pytest
from recorded import timing_run, write_timing_study
from scipy import stats

from dynamics.regularisation_timing import (
    fisher_against_accuracy,
    seeds_needed,
    timing_effects,
    timing_table,
    within_seeds,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    runs = []
    for seed in range(4):
        base = 0.8 + 0.02 * seed
        runs += [
            timing_run("none", 0, 0, seed, base, trace=(1, 5, 2)),
            timing_run("shift", 0, 20, seed, base + 0.05, trace=(1, 9, 3)),
            timing_run("shift", 0, 5, seed, base + 0.05, trace=(1, 8, 2)),
            timing_run("shift", 5, 20, seed, base + 0.01 * (-1) ** seed, trace=(1, 6, 3)),
            timing_run("shift", 5, 15, seed, base, trace=(1, 7, 2)),
        ]
    return timing_table(write_timing_study(tmp_path_factory.mktemp("timing") / "study", runs))


def test_schedules_and_traces_of_the_runs(table):
    mine = table[table["seed"] == 0].set_index(["schedule", "t0"])
    assert set(mine.index) == {
        ("never", 0),
        ("always", 20),
        ("until", 5),
        ("from", 5),
        ("window", 5),
    }
    assert mine.loc[("always", 20), "peak_fisher"] == 9
    assert mine.loc[("always", 20), "final_fisher"] == 3
    assert mine.loc[("never", 0), "test_accuracy"] == pytest.approx(0.8)


def test_effects_by_hand(table):
    found = timing_effects(table).set_index(["schedule", "t0"])
    always = found.loc[("always", 20)]
    assert (always["effect"], always["low"]) == pytest.approx((0.05, 0.05))
    assert (always["verdict"], always["n"], always["seeds_needed"]) == ("helps", 4, 2)
    assert found.loc[("until", 5), "loss"] == pytest.approx(0)
    late = found.loc[("from", 5)]
    assert late["effect"] == pytest.approx(0)
    assert late["verdict"] == "not resolved"
    assert late["loss"] == pytest.approx(0.05)
    spread = 0.02 / np.sqrt(3)  # of +.01, −.01, +.01, −.01
    assert late["seeds_needed"] == seeds_needed(0.01, spread)


@pytest.mark.parametrize(("effect", "spread"), [(0.01, 0.01), (0.01, 0.03), (0.02, 0.005)])
def test_the_number_of_seeds_has_the_power_and_one_less_has_not(effect, spread):
    def power(n):
        bar = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(bar, n - 1, effect / spread * np.sqrt(n))

    n = int(seeds_needed(effect, spread))
    assert power(n) >= 0.8
    assert n == 2 or power(n - 1) < 0.8


def test_cohens_example_of_power():
    """Effect of half a standard deviation, two-sided 5 %, power .8: 34 pairs (Cohen, 1988)."""
    assert seeds_needed(0.5, 1.0) == 34


def test_seeds_needed_at_its_ends():
    assert np.isnan(seeds_needed(0.01, float("nan")))
    assert seeds_needed(0.01, 0.0) == 2
    assert seeds_needed(1e-6, 1.0) == float("inf")


def test_signs_are_within_seeds_and_for_each_regulariser(table):
    centred = within_seeds(table)
    assert centred.groupby("seed")["accuracy"].sum().abs().max() < 1e-12
    signs = fisher_against_accuracy(table).set_index(["runs", "which"])
    assert list(signs.index) == [("shift", "peak"), ("shift", "final")]
    assert signs.loc[("shift", "peak"), "sign"] == "positive"
    both = pd.concat([table, table.assign(regulariser="flip")[table["schedule"] != "never"]])
    assert "all" in set(fisher_against_accuracy(both)["runs"])


def test_the_sign_turns_with_the_data(table):
    turned = table.assign(test_accuracy=-table["test_accuracy"])
    signs = fisher_against_accuracy(turned).set_index("which")["sign"]
    assert signs["peak"] == "negative"


def test_null_studies_raise_few_alarms():
    rng = np.random.default_rng(0)
    alarms, held = [], []
    for _ in range(200):
        rows = [
            {"regulariser": "shift", "schedule": schedule, "t0": 0, "seed": seed}
            | {"test_accuracy": 0.8 + 0.01 * rng.standard_normal()}
            for schedule in ("never", "always")
            for seed in range(5)
        ]
        row = timing_effects(pd.DataFrame(rows)).iloc[0]
        alarms.append(row["verdict"] != "not resolved")
        held.append(row["low"] <= 0 <= row["high"])
    assert np.mean(alarms) <= 0.07
    assert 0.92 <= np.mean(held) <= 0.98
