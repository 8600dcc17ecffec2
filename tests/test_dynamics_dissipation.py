"""The effect of weights on tables whose answer is known, and the coverage of its intervals."""

import numpy as np
import pandas as pd
import pytest

from dynamics.dissipation import (
    DecayFit,
    early_stopping_epochs,
    effect_sizes,
    first_equivalent,
    mean_curves,
    measure_dissipation,
    stop_early,
)

N_EPOCHS, HALF_LIFE, ASYMPTOTE, FALL = 60, 6.0, 0.2, 1.2


def fractions_of(rows):
    table = pd.DataFrame(rows, columns=["seed", "epoch", "log2_ratio", "frac"])
    return table.assign(arm="none", set="in-class test", n=1000)


def simulated_effects(rng, n_seeds, fall=FALL, asymptote=ASYMPTOTE):
    epochs = np.arange(N_EPOCHS)
    tables = []
    for seed in range(n_seeds):
        life = HALF_LIFE * np.exp(rng.normal(0, 0.15))
        curve = asymptote + rng.normal(0, 0.1) + (fall + rng.normal(0, 0.1)) * 2 ** (-epochs / life)
        curve += rng.normal(0, 0.1, N_EPOCHS)
        tables.append(pd.DataFrame({"seed": seed, "epoch": epochs, "slope": curve}))
    return pd.concat(tables).assign(arm="none", set="x", spread=lambda t: t["slope"])


def test_a_slope_of_the_best_log_odds_is_log_2():
    rows = [(0, 0, x, 1 / (1 + 2.0**-x)) for x in (-4, 0, 4)]
    found = effect_sizes(fractions_of(rows).assign(n=10**9)).iloc[0]
    assert found["slope"] == pytest.approx(np.log(2), abs=1e-6)
    assert found["spread"] == pytest.approx(16 / 17 - 1 / 17)
    assert found["stderr"] == pytest.approx(0, abs=1e-6)


def test_fractions_of_0_and_1_are_finite_and_symmetric():
    rows = [(0, 0, -4, 0.0), (0, 0, 0, 0.5), (0, 0, 4, 1.0)]
    found = effect_sizes(fractions_of(rows)).iloc[0]
    assert found["slope"] == pytest.approx(np.log(1000.5 / 0.5) / 4)


def test_extreme_ratios_and_single_ratios_are_left_out():
    rows = [(0, 0, -4, 0.4), (0, 0, 4, 0.6), (0, 0, 8, 1.0), (1, 0, 4, 0.6), (1, 0, 8, 1.0)]
    found = effect_sizes(fractions_of(rows))
    assert found[["seed", "n_ratios"]].to_numpy().tolist() == [[0, 2]]
    assert found["spread"].iloc[0] == pytest.approx(0.2)
    assert np.isnan(found["stderr"].iloc[0])


@pytest.mark.parametrize("half_life", [1.5, 6.0, 25.0])
def test_a_noiseless_half_life_and_asymptote_are_recovered(half_life):
    epochs = np.arange(100.0)
    life, asymptote = DecayFit(epochs)(0.3 + 1.1 * 2 ** (-epochs / half_life))
    assert life == pytest.approx(half_life, rel=0.01)
    assert asymptote == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("curve", [np.linspace(0, 1, 100), np.linspace(1, 0, 100)])
def test_a_curve_that_rises_or_does_not_level_off_has_no_half_life(curve):
    assert np.isnan(DecayFit(np.arange(100.0))(curve)).all()


def test_one_seed_has_no_interval():
    found = measure_dissipation(simulated_effects(np.random.default_rng(0), 1))
    for estimate in (found.left, found.half_life, found.asymptote, found.spread_left, found.late):
        assert np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()


def test_a_missing_epoch_is_refused():
    effects = simulated_effects(np.random.default_rng(0), 2)
    with pytest.raises(ValueError, match="1 missing"):
        measure_dissipation(effects.iloc[1:])


def coverage(n_simulations, n_seeds):
    epochs = np.arange(N_EPOCHS)
    curve = ASYMPTOTE + FALL * 2 ** (-epochs / HALF_LIFE)
    late = curve[-10:].mean()
    truth = {"half_life": HALF_LIFE, "late": late, "left": late / curve[:5].mean()}
    truth |= {"asymptote": ASYMPTOTE, "spread_left": truth["left"], "early": curve[:5].mean()}
    rng = np.random.default_rng(n_seeds)
    hits = pd.DataFrame(0.0, range(n_simulations), list(truth))
    for i in range(n_simulations):
        found = measure_dissipation(simulated_effects(rng, n_seeds), draws=100, seed=i)
        for name, value in truth.items():
            estimate = getattr(found, name)
            hits.loc[i, name] = float(estimate.low <= value <= estimate.high)
    return hits.mean()


def test_intervals_cover_the_truth_in_a_few_simulations():
    covered = coverage(60, 3)
    assert covered.between(0.85, 1).all(), covered


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_cover_the_truth_in_92_to_98_percent_of_500_simulations(n_seeds):
    covered = coverage(500, n_seeds)
    assert covered.between(0.92, 0.98).all(), covered


def test_no_effect_is_called_an_effect_in_7_percent_at_most():
    rng = np.random.default_rng(0)
    tables = []
    for simulation in range(500):
        found = rng.binomial(500, rng.normal(0.5, 0.03, (3, 3)).clip(0, 1)) / 500
        rows = [(s, 0, x, found[s, i]) for s in range(3) for i, x in enumerate((-4, 0, 4))]
        tables.append(fractions_of(rows).assign(arm=simulation, n=500))
    means = mean_curves(effect_sizes(pd.concat(tables)), ["arm", "set", "epoch"], "slope")
    alarms = ((means["low"] > 0) | (means["high"] < 0)).mean()
    assert alarms <= 0.07


def test_equivalence_counts_from_the_last_epoch_that_differs():
    differences = [0.3, 0.0, 0.2, 0.01, 0.0, 0.01]
    rows = []
    for seed in range(3):
        for epoch, difference in enumerate(differences):
            jitter = 0.001 * (seed - 1)
            rows += [(seed, epoch, 0, 0.5), (seed, epoch, 4, 0.5 + difference + jitter)]
    found = first_equivalent(fractions_of(rows), margin=0.05).iloc[0]
    assert found["first_epoch"] == 3
    assert found["difference"] == pytest.approx(0.01)
    assert found["n"] == 3


def test_runs_that_differ_by_the_margin_are_called_equivalent_in_7_percent_at_most():
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(100):
        noise = rng.normal(0, 0.02, (3, 6, 2))
        rows = [
            (seed, epoch, x, 0.5 + (0.05 if x else 0) + noise[seed, epoch, i])
            for seed in range(3)
            for epoch in range(6)
            for i, x in enumerate((0, 4))
        ]
        alarms += first_equivalent(fractions_of(rows)).iloc[0].notna()["first_epoch"]
    assert alarms / 100 <= 0.07


def test_early_stopping_keeps_the_lowest_loss_before_patience_runs_out():
    losses = pd.DataFrame({"run": "a", "epoch": range(7), "loss": [3, 2, 2.5, 2.4, 2.3, 1, 0]})
    assert early_stopping_epochs(losses, patience=3)["epoch"].tolist() == [1]
    assert early_stopping_epochs(losses, patience=4)["epoch"].tolist() == [6]


def test_stopping_early_takes_each_run_of_none_at_its_own_epoch():
    fractions = fractions_of([(0, e, 4, 0.9 - 0.1 * e) for e in range(3)]).assign(run="a")
    other = fractions.assign(arm="L2 0.01", run="b")
    losses = pd.DataFrame({"run": "a", "epoch": range(3), "loss": [2, 1, 3]})
    found = stop_early(pd.concat([fractions, other]), losses)
    assert found[["arm", "frac", "stopped_at"]].to_numpy().tolist() == [["early stopping", 0.8, 1]]
