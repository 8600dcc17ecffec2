"""Drops, critical window and rate confound: by hand, and on simulated studies of known truth."""

import numpy as np
import pandas as pd
import pytest
from recorded import critical_run, write_critical_study

from dynamics.critical_period import (
    compare_deficits,
    control_accuracy,
    critical_table,
    drop_p_value,
    find_critical_window,
    judge_rate,
    monotone_fit,
    removal_drops,
    sensitivity_table,
    smallest_harmful_end,
)

ENDS = (5, 10, 20, 40)
ONSETS = (0, 5, 10, 20, 30)


def simulated(drops, *, seeds=5, spread=0.01, rng=None, rates=("decayed", "fixed", "reset")):
    """A `critical_table` whose true drops are given by (rate, onset, until); others are 0."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for rate in rates:
            for onset, until in [(0, end) for end in ENDS] + [(o, o + 7) for o in ONSETS]:
                drop = drops.get((rate, onset, until), 0.0) + spread * rng.standard_normal()
                rows.append(
                    {"network": "mlp", "deficit": "blur", "rate": rate, "onset": onset}
                    | {"until": until, "seed": seed, "test_accuracy": 0.9 - drop, "drop": drop}
                )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    runs = [critical_run("none", "decayed", 0, 0, seed, 0.90 + 0.01 * seed) for seed in range(3)]
    runs += [critical_run("blur", "decayed", 0, 20, seed, 0.80) for seed in range(3)]
    runs += [critical_run("blur", "reset", 0, 20, 0, 0.89)]
    runs += [
        critical_run("blur", "fixed", 0, 20, 0, 0.89),
        critical_run("flip", "decayed", 0, 20, 1, 0.9),
    ]
    runs += [critical_run("blur", "decayed", 0, 40, 0, 0.5, clean=False)]
    return write_critical_study(tmp_path_factory.mktemp("critical") / "study", runs)


def test_a_drop_is_against_the_same_seed_and_rate_and_reset_has_the_decayed_control(study):
    table = critical_table(study).set_index("run")
    assert table.loc["mlp-blur-decayed-0-20-seed2", "drop"] == pytest.approx(0.12)
    assert table.loc["mlp-blur-reset-0-20-seed0", "drop"] == pytest.approx(0.01)
    assert np.isnan(table.loc["mlp-blur-fixed-0-20-seed0", "drop"])  # no fixed run without deficit
    assert table.loc["mlp-none-decayed-0-0-seed1", "drop"] == 0
    assert not table.loc["mlp-blur-decayed-0-40-seed0", "ended_cleanly"]


def test_a_control_that_has_not_ended_is_none(tmp_path):
    runs = [critical_run("none", "fixed", 0, 0, 0, 0.9, clean=False)]
    runs += [critical_run("blur", "fixed", 0, 20, 0, 0.8)]
    table = critical_table(write_critical_study(tmp_path / "study", runs))
    assert table["drop"].isna().all()


def test_drops_by_hand(study):
    table = critical_table(study)
    table = table[table["ended_cleanly"]]
    row = removal_drops(table).set_index(["deficit", "rate"]).loc[("blur", "decayed")]
    assert (row["until"], row["n"]) == (20, 3)
    assert row["drop"] == pytest.approx(0.11)  # of .10, .11, .12: standard error .01/√3, t 4.303
    assert row["high"] - row["drop"] == pytest.approx(4.3027 * 0.01 / np.sqrt(3), rel=1e-4)
    assert row["accuracy"] == pytest.approx(0.80)
    control = control_accuracy(table).set_index("rate")
    assert control.loc["reset", "accuracy"] == control.loc["decayed", "accuracy"] == 0.91
    compared = compare_deficits(table).iloc[0]
    assert (compared["deficit"], compared["until"]) == ("flip", 20)
    assert compared["drop"] == pytest.approx(0.01)
    assert compared["spare"] == pytest.approx(0.11 / 2 - 0.01)
    assert compared["verdict"] == "not resolved"  # of one seed


def test_at_most_half_is_told_where_it_is_resolved():
    table = simulated({("decayed", 0, 40): 0.1}, rates=("decayed",))
    flip = table.assign(deficit="flip", drop=table["drop"] * 0.2)
    worse = table.assign(deficit="noise", drop=table["drop"] * 2)
    found = compare_deficits(pd.concat([table, flip, worse]))
    found = found[found["until"] == 40].set_index("deficit")["verdict"]
    assert found.to_dict() == {"flip": "at most half", "noise": "more than half"}


def test_the_monotone_fit_pools_a_dip_and_never_falls_below_zero():
    drops = np.array([[-0.02, 0.04, 0.02, 0.1]] * 3)
    fit = [estimate.value for estimate in monotone_fit(drops)]
    assert fit == pytest.approx([0, 0.03, 0.03, 0.1], abs=1e-6)
    assert monotone_fit(np.empty((0, 4))) == []
    assert np.isnan(monotone_fit(drops[:1])[0].low)


def test_ends_are_tested_from_the_largest_down_and_stop_at_the_first_without_a_drop():
    rows = pd.DataFrame({"until": [5, 10, 20, 40], "p_value": [0.01, 0.2, 0.03, 0.001]})
    assert smallest_harmful_end(rows) == 20
    assert smallest_harmful_end(rows.assign(p_value=[0.01, 0.01, 0.01, np.nan])) is None


def test_the_window_by_hand():
    rows = pd.DataFrame({"onset": ONSETS, "p_value": [0.2, 0.001, 0.002, 0.5, 0.001], "n": 5})
    window = find_critical_window(rows)
    assert (window.opens, window.closes, window.n) == (5, 20, 5)
    assert window.p_values[1] == pytest.approx(0.005)  # Holm: times five
    still = find_critical_window(rows.assign(p_value=[0.5, 0.5, 0.5, 0.001, 0.001]))
    assert (still.opens, still.closes) == (20, None)
    assert find_critical_window(rows.assign(p_value=0.3)).opens is None


def test_a_p_value_needs_two_seeds_and_no_spread_is_certain():
    assert np.isnan(drop_p_value([0.1]))
    assert drop_p_value([0.1, 0.1, np.nan]) == 0
    assert drop_p_value([0.0, 0.0]) == 1
    assert drop_p_value([0.1, 0.2, 0.3]) == pytest.approx(0.0371, abs=1e-4)  # t = 3.46, 2 df


@pytest.mark.parametrize(
    ("drops", "explanation"),
    [
        ({"decayed": 0.1}, "rate confound"),
        ({"decayed": 0.1, "fixed": 0.1, "reset": 0.1}, "critical period"),
        ({"decayed": 0.1, "fixed": 0.04}, "partly the rate"),
        ({}, "no drop"),
        ({"fixed": 0.1}, "not resolved"),
    ],
)
def test_what_explains_a_drop(drops, explanation):
    table = simulated({(rate, 0, 40): drop for rate, drop in drops.items()})
    verdict = judge_rate(table)
    assert verdict.explanation == explanation
    assert verdict.until == 40
    assert set(verdict.drops) == {"decayed", "fixed", "reset"}


def test_without_another_arm_there_is_no_verdict_on_the_rate():
    assert judge_rate(simulated({}, rates=("decayed",))) is None


def simulate_many(n, drops, spread=0.01):
    rng = np.random.default_rng(1)
    return (simulated(drops, rng=rng, spread=spread) for _ in range(n))


TRUE_WINDOW = {("decayed", onset, onset + 7): 0.05 for onset in (0, 5, 10)}
TRUE_ENDS = {("decayed", 0, end): 0.002 * end for end in ENDS}


def recovered(n):
    """Share of simulated studies in which window and smallest end are found as they are."""
    found = []
    for table in simulate_many(n, TRUE_WINDOW | TRUE_ENDS):
        decayed = table[table["rate"] == "decayed"]
        window = find_critical_window(sensitivity_table(decayed))
        found.append((window.opens, window.closes) == (0, 20))
    return np.mean(found)


def false_alarms(n):
    """Share of simulated null studies with any window, any harmful end, any claim on the rate."""
    alarms = []
    for table in simulate_many(n, {}):
        decayed = table[table["rate"] == "decayed"]
        window = find_critical_window(sensitivity_table(decayed))
        starts = decayed[decayed["until"].isin(ENDS) & (decayed["onset"] == 0)]
        end = smallest_harmful_end(removal_drops(starts))
        verdict = judge_rate(table)
        claims = {"rate confound", "critical period", "partly the rate"}
        alarms.append((window.opens is not None, end is not None, verdict.explanation in claims))
    return np.mean(alarms, axis=0)


def coverage(n):
    """Share of intervals that hold the truth: paired drops, and the monotone fit of a rise."""
    held = []
    for table in simulate_many(n, TRUE_ENDS):
        starts = table[table["until"].isin(ENDS) & (table["onset"] == 0)]
        rows = removal_drops(starts[starts["rate"] == "decayed"])
        truth = 0.002 * rows["until"]
        paired = rows["low"].le(truth) & truth.le(rows["high"])
        monotone = rows["monotone_low"].le(truth) & truth.le(rows["monotone_high"])
        held.append([paired.mean(), monotone.mean()])
    return np.mean(held, axis=0)


def test_a_few_simulated_studies_are_read_right():
    assert recovered(10) >= 0.7
    assert (false_alarms(20) <= 0.2).all()
    assert (coverage(10) >= 0.8).all()


@pytest.mark.slow
def test_window_recovered_intervals_cover_and_null_studies_raise_few_alarms():
    assert recovered(500) >= 0.9
    assert (false_alarms(500) <= 0.07).all()
    covered = coverage(500)
    assert 0.92 <= covered[0] <= 0.98
    assert 0.92 <= covered[1] <= 0.98
