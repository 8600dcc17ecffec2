"""Draws within a wave: in proportion to what was asked for, and weighted by just that."""

import numpy as np
import pytest

from probes.fisher_gain import Gains
from probes.fisher_waves import Wave, stacked

N, C, M = 12, 3, 200_000


def wave(by_class):
    traces = by_class.sum(1)
    order = np.lexsort((traces, by_class.argmax(1)))
    return Wave(np.arange(100, 100 + len(by_class)), by_class, traces, np.empty((N, 0)), order)


def table(seed=0):
    return np.random.default_rng(seed).exponential(size=(N, C)) ** 2


def alike():
    return Gains(np.ones(N), np.ones(C))


def guided(seed=1):
    rng = np.random.default_rng(seed)
    return Gains(rng.uniform(0.1, 3, N), rng.uniform(0.1, 3, C))


@pytest.mark.parametrize("gains", [alike(), guided()], ids=["alike", "guided"])
def test_pairs_are_drawn_as_often_as_their_part_times_their_gain(gains):
    choice = wave(table()).draw(M, gains, np.random.default_rng(2))
    counts = np.zeros((N, C))
    np.add.at(counts, (choice.places, choice.classes), 1)
    expected = table() * np.outer(gains.inputs, gains.classes)
    assert counts / M == pytest.approx(expected / expected.sum(), abs=4 / np.sqrt(M))


@pytest.mark.parametrize("gains", [alike(), guided()], ids=["alike", "guided"])
def test_weighted_draws_average_to_the_sum_over_all_pairs(gains):
    values = np.random.default_rng(3).normal(size=(N, C))
    choice = wave(table()).draw(M, gains, np.random.default_rng(4))
    found = choice.weights * values[choice.places, choice.classes]
    expected = (table() * values).sum() / table().sum()
    assert abs(found.mean() - expected) <= 4 * found.std() / np.sqrt(M)
    assert choice.weights.mean() == pytest.approx(
        1, abs=4 * choice.weights.std() / np.sqrt(M) + 1e-9
    )


def test_without_gains_every_draw_weighs_the_same():
    choice = wave(table()).draw(50, alike(), np.random.default_rng(0))
    assert choice.weights == pytest.approx(np.ones(50))
    assert choice.tilts == pytest.approx(np.ones(50))


def test_tilts_make_up_for_the_class_within_an_input():
    values = np.random.default_rng(5).normal(size=(N, C))
    choice = wave(table()).draw(M, guided(), np.random.default_rng(6))
    within = table() / table().sum(1, keepdims=True)
    for place in range(N):
        here = choice.places == place
        found = choice.tilts[here] * values[place, choice.classes[here]]
        error = found.std() / np.sqrt(here.sum())
        assert abs(found.mean() - within[place] @ values[place]) <= 4 * error


def test_two_draws_share_a_stratum():
    """Two inputs with half of the mass each: each pair of the first half is of one of them."""
    both = wave(np.array([[1.0], [1.0]]))
    choice = both.draw(8, Gains(np.ones(2), np.ones(1)), np.random.default_rng(7))
    assert sorted(choice.places.tolist()) == [0] * 4 + [1] * 4
    assert (choice.places[::2] == choice.places[1::2]).all()


def test_a_network_that_is_certain_of_everything_can_be_drawn_from():
    choice = wave(np.zeros((N, C))).draw(10, guided(), np.random.default_rng(8))
    assert np.isfinite(choice.weights).all()
    assert (choice.weights > 0).all()


def test_an_input_without_mass_is_never_drawn():
    parts = table()
    parts[4] = 0
    choice = wave(parts).draw(10_000, guided(), np.random.default_rng(9))
    assert 4 not in choice.places


def test_stacked_tables_keep_what_all_have():
    assert stacked([np.ones((2, 3)), np.zeros((1, 2))]).tolist() == [[1, 1], [1, 1], [0, 0]]
