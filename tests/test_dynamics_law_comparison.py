"""Telling the law from a line: on data whose law is known, and how often it errs."""

import numpy as np
import pytest

from dynamics.law_comparison import LAWS, compare_laws, estimate_curvature
from dynamics.noise_law import law_accuracy

RATIOS = np.repeat([0.0, 0.2, 0.4, 0.6, 0.8], 3)


def compare(accuracy, ratios=RATIOS, noise=0.01, kind="symmetric", **more):
    errors = np.resize([noise, -noise, 0], len(ratios))  # three runs a ratio: no curve gains by it
    measured = accuracy(ratios) + errors
    return compare_laws(ratios, measured, kind=kind, n_classes=10, draws=40, **more)


def of_law(ratio):
    return law_accuracy(ratio, kind="symmetric", n_classes=10)


def best(comparison):
    return comparison.table.set_index("law")["aicc"].idxmin()


def test_data_on_a_line_are_said_to_lie_on_a_line():
    comparison = compare(lambda r: 0.95 - 0.7 * r)
    assert best(comparison) == "straight line"
    assert comparison.quadratic_over_line.value < 0
    table = comparison.table.set_index("law")
    assert table["probability_best"].idxmax() == "straight line"


def test_data_of_the_law_are_said_to_follow_it():
    comparison = compare(of_law)
    assert best(comparison) == "theory"
    assert comparison.quadratic_over_line.low > 0
    table = comparison.table.set_index("law")
    assert table.loc["straight line", "probability_best"] == 0
    assert table.loc["straight line", "delta_aicc"] > 10
    assert table.loc["theory", "delta_aicc"] == 0


def test_a_law_that_starts_lower_is_told_from_the_law_itself():
    comparison = compare(lambda r: 0.8 * of_law(r))
    assert best(comparison) == "theory × clean accuracy"
    curve = comparison.curves.set_index("ratio")["theory × clean accuracy"]
    assert curve.loc[0.0] == pytest.approx(0.8)


def test_the_numbers_of_a_law_without_parameters_are_those_of_the_formulas():
    rng = np.random.default_rng(1)
    accuracy = of_law(RATIOS) + 0.02 * rng.standard_normal(len(RATIOS))
    comparison = compare_laws(RATIOS, accuracy, kind="symmetric", n_classes=10, draws=10)
    row = comparison.table.set_index("law").loc["theory"]
    residual = accuracy - of_law(RATIOS)
    n, rss = len(RATIOS), (residual**2).sum()
    assert row["rss"] == pytest.approx(rss)
    assert row["aicc"] == pytest.approx(n * np.log(rss / n) + 2 + 4 / (n - 2))
    means = residual.reshape(5, 3).mean(axis=1)
    assert row["largest_deviation"] == pytest.approx(np.abs(means).max())
    assert (comparison.n_runs, comparison.n_ratios) == (15, 5)
    assert comparison.table["law"].tolist() == list(LAWS)
    assert comparison.table["probability_best"].sum() == pytest.approx(1)


def test_the_order_of_runs_changes_no_fit():
    order = np.random.default_rng(0).permutation(len(RATIOS))
    accuracy = of_law(RATIOS) + 0.01 * np.sin(np.arange(len(RATIOS)))
    law = {"kind": "symmetric", "n_classes": 10, "draws": 5}
    first = compare_laws(RATIOS, accuracy, **law).table
    second = compare_laws(RATIOS[order], accuracy[order], **law).table
    columns = ["rss", "largest_deviation", "aicc", "delta_aicc"]
    np.testing.assert_allclose(first[columns], second[columns])


def test_fewer_than_four_ratios_are_refused():
    with pytest.raises(ValueError, match="there are 3"):
        compare(of_law, ratios=np.repeat([0.0, 0.2, 0.4], 5))


@pytest.mark.parametrize("n", [4, 5, 6])
def test_one_run_at_each_of_few_ratios_is_compared_without_a_claim_it_cannot_make(n):
    comparison = compare(of_law, ratios=np.linspace(0, 0.8, n))
    aicc = comparison.table.set_index("law")["aicc"]
    assert np.isfinite(aicc["theory"])
    assert np.isinf(aicc["free quadratic"]) == (n <= 5)
    assert np.isnan(comparison.quadratic_over_line.value) == (n <= 5)


def test_a_free_line_is_predicted_at_a_ratio_left_out_and_the_theory_is_not():
    table = compare(lambda r: 0.95 - 0.7 * r, noise=0.0).table.set_index("law")
    assert table.loc["straight line", "left_out_error"] == pytest.approx(0, abs=1e-9)
    off = 0.95 - 0.7 * RATIOS - of_law(RATIOS)
    exact = np.sqrt((off**2).mean())
    assert table.loc["theory", "left_out_error"] == pytest.approx(exact)


def simulate(curve, n, rng):
    return [curve(RATIOS) + 0.01 * rng.standard_normal(len(RATIOS)) for _ in range(n)]


def test_the_interval_of_the_curvature_covers_and_a_line_is_rarely_called_a_curve():
    """500 simulations each: 92-98 % cover, and at most 7 % of lines are called a curve."""
    rng = np.random.default_rng(0)
    bends = [estimate_curvature(RATIOS, y) for y in simulate(of_law, 500, rng)]
    truth = 1 + 1 / 9
    assert 0.92 <= np.mean([b.low <= truth <= b.high for b in bends]) <= 0.98
    assert np.mean([b.low > 0 for b in bends]) == 1
    lines = [estimate_curvature(RATIOS, y) for y in simulate(lambda r: 0.9 - 0.8 * r, 500, rng)]
    assert np.mean([not b.low <= 0 <= b.high for b in lines]) <= 0.07


@pytest.mark.parametrize(
    ("curve", "law"),
    [(lambda r: of_law(r), "theory"), (lambda r: 0.9 - 0.8 * r, "straight line")],
)
def test_the_right_law_wins_by_aicc_in_simulations(curve, law):
    rng = np.random.default_rng(1)
    wins = [
        best(compare_laws(RATIOS, y, kind="symmetric", n_classes=10, draws=1)) == law
        for y in simulate(curve, 40, rng)
    ]
    assert np.mean(wins) >= 0.7
