"""Noise scale: unbiased parts by hand, by exhaustive expectation and by simulation."""

import numpy as np
import pytest

from dynamics.gradient_noise_scale import (
    GradientMoments,
    moments_of_batches,
    moments_of_samples,
    noise_scale,
)


def norm_sq(x):
    return (x**2).sum(-1)


def test_the_noise_of_samples_is_the_trace_of_their_covariance():
    gradients = np.random.default_rng(0).normal(size=(7, 4)) + 1
    found = moments_of_samples(norm_sq(gradients).mean(), norm_sq(gradients.mean(0)), 7)
    trace = np.trace(np.cov(gradients.T))
    assert found.noise == pytest.approx(trace)
    assert found.signal == pytest.approx(norm_sq(gradients.mean(0)) - trace / 7)


def test_both_parts_are_unbiased_from_samples_and_from_two_batch_sizes():
    rng = np.random.default_rng(0)
    truth, spread = np.array([0.3, -0.4, 0.0]), np.array([1.0, 2.0, 0.5])
    draws = truth + spread * rng.normal(size=(20_000, 16, 3))
    signal, noise = norm_sq(truth), (spread**2).sum()
    of_samples = moments_of_samples(norm_sq(draws).mean(1), norm_sq(draws.mean(1)), 16)
    small, large = norm_sq(draws[:, :4].mean(1)), norm_sq(draws.mean(1))
    of_batches = moments_of_batches(small, large, 4, 16)
    for found in (of_samples, of_batches):
        for values, expected in ((found.signal, signal), (found.noise, noise)):
            assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(len(values))
        scale = noise_scale(found)
        assert scale.low < noise / signal < scale.high
        assert scale.high - scale.low < 0.2 * noise / signal


def test_two_batch_sizes_by_hand():
    found = moments_of_batches(5.0, 3.0, 1, 2)  # |G|² + tr Σ = 5, |G|² + tr Σ / 2 = 3
    assert (found.signal, found.noise) == (1, 4)
    assert noise_scale(found).value == 4
    assert np.isnan(noise_scale(found).low)


def test_the_scale_is_a_ratio_of_means_and_missing_where_noise_hides_the_signal():
    found = noise_scale(GradientMoments(np.array([1.0, 3.0, np.nan]), np.array([8.0, 4.0, 9.0])))
    assert found.value == pytest.approx(3)  # not (8 + 4/3) / 2
    assert found.n == 2
    assert np.isnan(noise_scale(GradientMoments(np.array([-1.0]), np.array([5.0]))).value)


def test_the_interval_covers_as_it_says():
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(300):
        signal, noise = 1 + 0.5 * rng.normal(size=30), 6 + rng.normal(size=30)
        scale = noise_scale(GradientMoments(signal, noise))
        covered.append(scale.low < 6 < scale.high)
    assert 0.9 <= np.mean(covered) <= 0.98


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="2 samples or more, but n is 1"):
        moments_of_samples(1.0, 1.0, 1)
    with pytest.raises(ValueError, match="are 8 and 8"):
        moments_of_batches(1.0, 1.0, 8, 8)
