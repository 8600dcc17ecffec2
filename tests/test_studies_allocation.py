"""Where the next run goes: by hand, against the best allocation there is, and on simulations."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from studies.lab.allocation import MIN_RUNS, allocate, next_seeds, tabulate_cells

CELLS = pd.DataFrame({"kind": ["a", "a", "b"], "ratio": [0.0, 0.5, 0.5]})


def cells(n, variance):
    return pd.DataFrame({"n": n, "bound": np.asarray(variance, float)})


def test_cells_are_counted_and_their_spread_is_drawn_to_the_pooled_one():
    runs = pd.DataFrame(
        [("a", 0.0, 1.0), ("a", 0.0, 3.0), ("a", 0.5, 5.0), ("a", 0.5, 5.0), ("a", 0.5, 5.0)],
        columns=["kind", "ratio", "value"],
    )
    table = tabulate_cells(runs, CELLS)
    assert table["n"].tolist() == [2, 3, 0]
    np.testing.assert_allclose(table["mean"], [2, 5, np.nan])
    pooled = (1 * 2 + 2 * 0) / 3
    expected = [(1 * 2 + pooled) / 2, (2 * 0 + pooled) / 3, pooled]
    np.testing.assert_allclose(table["variance"], expected)
    # 10 % of χ² with 2, 3 and 1 degrees of freedom lie below these, by a printed table
    bound = np.array(expected) * [2, 3, 1] / [0.2107, 0.5844, 0.01579]
    np.testing.assert_allclose(table["bound"], bound, rtol=2e-3)
    np.testing.assert_allclose(table["se"], [*np.sqrt(bound[:2] / [2, 3]), np.nan], rtol=2e-3)


def test_single_runs_tell_no_spread():
    runs = pd.DataFrame({"kind": ["a"], "ratio": [0.0], "value": [1.0]})
    table = tabulate_cells(runs, CELLS)
    assert table[["variance", "bound", "se"]].isna().all(axis=None)
    assert allocate(table, 4, until=0.1) == [1, 2, 0, 1]
    assert allocate(table, 50, until=0.1) == [1, 2, 0, 1, 2, 0, 1, 2]  # to MIN_RUNS, no further


def test_the_cell_with_the_largest_error_is_served_until_all_are_small():
    # errors 1, 2, 1.5: the second needs 16 runs for 1, the third 9
    table = cells([4, 4, 4], [4, 16, 9])
    assert allocate(table, 3, until=1.0) == [1, 1, 1]
    chosen = allocate(table, 1000, until=1.0)
    assert [chosen.count(cell) for cell in range(3)] == [0, 12, 5]
    assert allocate(table, 1000, until=2.0) == []


def test_a_contrast_spends_where_its_weight_and_spread_are():
    # Σ w m with w = (1, −1, 0), s = (3, 1, 9): n in the proportion 3 : 1, none to the third
    table = cells([3, 3, 0], [9, 1, 81])
    chosen = allocate(table, 34, until=0.0, weights=np.array([1, -1, 0]))
    assert [chosen.count(cell) for cell in range(3)] == [27, 7, 0]


def test_greedy_is_the_best_allocation_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        variance, w = rng.exponential(size=3), rng.normal(size=3)
        chosen = allocate(cells([3, 3, 3], variance), 6, until=0.0, weights=w)
        n = 3 + np.bincount(chosen, minlength=3)
        every = [3 + np.array(e) for e in product(range(7), repeat=3) if sum(e) == 6]
        best = min((w**2 * variance / e).sum() for e in every)
        assert (w**2 * variance / n).sum() == pytest.approx(best)


def test_the_worst_of_several_estimates_is_served():
    weights = np.array([[1, 0, 0], [0, 1, -1]])
    table = cells([4, 4, 4], [4, 4, 1])
    # errors² 1 and 1.25: the second estimate first, in its noisier cell
    assert allocate(table, 1, until=0.5, weights=weights) == [1]
    assert allocate(table, 10, until=1.2, weights=weights) == []


def simulate(seed, spread, until, budget, at_once=4):
    """A sweep of simulated runs, some at a time: the table at its end."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"cell": range(len(spread))})
    chosen = [0, 1, 2] * MIN_RUNS
    cell, value = np.empty(0, int), np.empty(0)
    while chosen:
        cell = np.append(cell, chosen)
        value = np.append(value, rng.normal(0, np.take(spread, chosen)))
        table = tabulate_cells(pd.DataFrame({"cell": cell, "value": value}), frame)
        chosen = allocate(table, min(at_once, budget - len(cell)), until=until)
    return table


@pytest.fixture(scope="module")
def ends():
    """Runs of each cell, s = 1, 2 and 4, when every standard error is thought to be below .5."""
    return np.array([simulate(seed, [1, 2, 4], 0.5, 1000)["n"] for seed in range(30)])


def test_simulated_sweeps_end_near_the_runs_that_are_needed(ends):
    """4, 16 and 64 are needed by one who knows the spread; not to know it costs about 20 runs."""
    np.testing.assert_allclose(ends.mean(axis=0), [13, 25, 77], rtol=0.25)
    assert ends.sum(axis=1).mean() < 0.7 * 192  # with as many runs in each cell, 3 · 64


def test_the_error_at_the_end_of_simulated_sweeps_is_about_the_one_wanted(ends):
    true = np.array([1, 2, 4]) / np.sqrt(ends)
    assert np.sqrt(np.mean(np.square(true), axis=0)).max() < 0.5 * 1.1


def test_the_budget_holds():
    table = simulate(0, [1, 2, 4], 0.01, 31)
    assert table["n"].sum() == 31
    assert table["se"].max() > 0.01


@pytest.mark.parametrize(
    ("made", "n", "seeds"),
    [([], 2, [0, 1]), ([0, 1], 2, [2, 3]), ([1, 3], 3, [0, 2, 4]), ([5], 1, [0])],
)
def test_seeds_are_the_lowest_that_are_free(made, n, seeds):
    assert next_seeds(made, n) == seeds
