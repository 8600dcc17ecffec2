"""Gradient noise scale: tr Σ / |G|², the batch size from which averaging no longer helps much.

Σ is the covariance of per-sample gradients and G their mean over the distribution. Both parts are
estimated without bias and averaged on their own before they are divided: a mean of ratios is not
the ratio of means.

Reference:
    McCandlish et al., arXiv:1812.06162, App. A.
"""

from dataclasses import dataclass

import numpy as np

from dynamics.statistics import Estimate


@dataclass(frozen=True, slots=True)
class GradientMoments:
    """Unbiased parts of the noise scale, one or many of them.

    Attributes:
        signal: |G|²; may be negative by chance.
        noise: tr Σ.
    """

    signal: np.ndarray
    noise: np.ndarray


def moments_of_samples(
    mean_norm_sq: np.ndarray | float, norm_sq_of_mean: np.ndarray | float, n: int
) -> GradientMoments:
    """Signal and noise from per-sample gradients of n samples.

    tr Σ = n/(n − 1) (mean ‖g_i‖² − ‖ḡ‖²) and |G|² = ‖ḡ‖² − tr Σ / n. mean ‖g_i‖² at the data's
    labels is the empirical Fisher trace.

    Args:
        mean_norm_sq: Mean of ‖g_i‖² over the samples.
        norm_sq_of_mean: ‖ḡ‖² of their mean gradient.
        n: Number of samples, at least 2.

    Returns:
        The two.

    Raises:
        ValueError: If there are fewer than two samples.
    """
    if n < 2:
        raise ValueError(f"A covariance of gradients needs 2 samples or more, but n is {n}.")
    mean_sq = np.asarray(mean_norm_sq, dtype=np.float64)
    of_mean = np.asarray(norm_sq_of_mean, dtype=np.float64)
    noise = n / (n - 1) * (mean_sq - of_mean)
    return GradientMoments(of_mean - noise / n, noise)


def moments_of_batches(
    small_norm_sq: np.ndarray | float, large_norm_sq: np.ndarray | float, small: int, large: int
) -> GradientMoments:
    """Signal and noise from the squared norms of batch gradients of two batch sizes.

    |G|² = (B_L|G_L|² − B_S|G_S|²)/(B_L − B_S) and tr Σ = (|G_S|² − |G_L|²)/(1/B_S − 1/B_L).

    Args:
        small_norm_sq: |G_S|² of the smaller batches.
        large_norm_sq: |G_L|² of the larger ones.
        small: Samples B_S of a smaller batch.
        large: Samples B_L of a larger one.

    Returns:
        The two.

    Raises:
        ValueError: If the sizes are not 1 ≤ small < large.
    """
    if not 1 <= small < large:
        raise ValueError(f"Two batch sizes differ, small first, but are {small} and {large}.")
    of_small = np.asarray(small_norm_sq, dtype=np.float64)
    of_large = np.asarray(large_norm_sq, dtype=np.float64)
    signal = (large * of_large - small * of_small) / (large - small)
    return GradientMoments(signal, (of_small - of_large) / (1 / small - 1 / large))


def noise_scale(moments: GradientMoments) -> Estimate:
    """Tr Σ / |G|² of one or several measurements: ratio of their means.

    Args:
        moments: Of measurements that may be averaged, such as those of neighbouring steps.

    Returns:
        The ratio in samples, with a jackknife interval over the measurements; no interval for
        fewer than three, and NaN where the mean signal is not above 0: the noise hides it.
    """
    signal, noise = np.atleast_1d(moments.signal), np.atleast_1d(moments.noise)
    known = np.isfinite(signal) & np.isfinite(noise)
    signal, noise = signal[known], noise[known]
    n, method = len(signal), "ratio of means, jackknife"
    if not n or not signal.mean() > 0:
        return Estimate(float("nan"), float("nan"), float("nan"), n, method)
    value = float(noise.mean() / signal.mean())
    if n < 3:
        return Estimate(value, float("nan"), float("nan"), n, method)
    without = (noise.sum() - noise) / (signal.sum() - signal)
    error = float(np.sqrt((n - 1) * ((without - without.mean()) ** 2).mean()))
    return Estimate(value, value - 1.96 * error, value + 1.96 * error, n, method)
