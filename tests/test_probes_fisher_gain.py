"""Predicted gains: right where logarithms are linear, harmless where nothing can be told."""

import numpy as np
import pytest
import torch
from torch import nn

from probes.engines.units import find_units
from probes.fisher_gain import predict_gains, watched_inputs


def drawn(rng, n, n_classes, m):
    return rng.integers(n, size=m), rng.integers(n_classes, size=m)


def test_gains_that_are_products_are_found():
    """Gain exp(f₁ − f₂ / 2) times 1, 2, 4 of the class, and a tenth of the average for all."""
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, size=(500, 3))
    of_inputs, of_classes = np.exp(features[:, 0] - features[:, 1] / 2), np.array([1.0, 2.0, 4.0])
    places, classes = drawn(rng, 500, 3, 400)
    gains = predict_gains(features, places, classes, 3, of_inputs[places] * of_classes[classes])
    ratio = (gains.inputs - 0.1) / of_inputs
    assert ratio == pytest.approx(np.full(500, ratio.mean()), rel=0.05)
    assert gains.inputs[places].mean() == pytest.approx(1.1)
    by_class = (gains.classes - 0.1) / of_classes
    assert by_class == pytest.approx(np.full(3, by_class.mean()), rel=0.05)
    assert 4 < gains.fitted < 6  # two slopes that matter, one that does not, two free classes


def test_no_gain_is_below_a_tenth_of_the_average_nor_further_out_than_seen():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(1000, 1)) * 3
    places = np.flatnonzero(np.abs(features[:, 0]) < 1)
    found = np.exp(features[places, 0])
    gains = predict_gains(features, places, np.zeros(len(places), int), 1, found)
    average = gains.inputs[places].mean()
    assert gains.inputs.min() >= 0.1 / 1.1 * average - 1e-12
    assert gains.inputs.max() == gains.inputs[places].max()


@pytest.mark.parametrize(
    "found",
    [np.zeros(6), np.array([1.0, 0, 0, 0, 0, 0]), np.full(6, np.nan), np.full(6, np.inf)],
    ids=["zero", "one value", "nan", "inf"],
)
def test_where_nothing_can_be_told_all_gains_are_alike(found):
    places = np.arange(6)
    gains = predict_gains(np.eye(8), places, places % 2, 2, found)
    assert set(gains.inputs) == set(gains.classes) == {1.0}
    assert gains.fitted == 0


def test_features_that_are_constant_or_not_finite_are_passed_over():
    rng = np.random.default_rng(2)
    told = rng.normal(size=50)
    features = np.column_stack([np.full(50, 7.0), np.full(50, np.nan), told, np.full(50, np.inf)])
    places = np.arange(50)
    found = np.exp(told)
    gains = predict_gains(features, places, np.zeros(50, int), 1, found)
    alone = predict_gains(features[:, 2:3], places, np.zeros(50, int), 1, found)
    assert np.array_equal(gains.inputs, alone.inputs)


def test_more_classes_than_draws():
    rng = np.random.default_rng(3)
    places, classes = drawn(rng, 20, 1000, 12)
    gains = predict_gains(rng.normal(size=(20, 4)), places, classes, 1000, rng.uniform(1, 2, 12))
    assert gains.inputs.shape == (20,)
    assert gains.classes.shape == (1000,)
    assert np.isfinite(gains.classes).all()
    assert gains.fitted < 12


def test_what_is_seen_of_a_layers_input():
    """(3, −4): length 5, half positive. (0, 0): the shortest length there is, none positive."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with watched_inputs(find_units(model)) as inputs:
        model(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
        seen = inputs.take(2)
        assert seen.shape == (2, 4)
        assert seen[0, :2].tolist() == pytest.approx([np.log(5), 0.5])
        assert seen[1, :2].tolist() == pytest.approx([np.log(1e-30), 0.0])
        assert inputs.take(2).shape == (2, 0)  # taken once
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_hooks_go_even_if_the_pass_fails_and_deep_networks_are_sampled():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)])

    def failing_pass():
        with watched_inputs(find_units(model)) as inputs:
            model(torch.ones(5, 4))
            assert inputs.take(5).shape == (5, 16)  # eight layers
            model(torch.ones(5, 3))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        failing_pass()
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_inputs_that_are_not_one_row_for_each_sample_are_passed_over():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(0, 1), nn.Linear(4, 2))
    with watched_inputs(find_units(model)) as inputs:
        model(torch.zeros(3, 5, dtype=torch.long))  # tokens are no length; the layer sees 15 rows
        assert inputs.take(3).shape == (3, 0)
