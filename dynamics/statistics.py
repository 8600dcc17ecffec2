"""Estimates with their uncertainty, as functions on small arrays."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number that a report may print.

    Attributes:
        value: The estimate.
        low: Lower end of its interval.
        high: Upper end of its interval.
        n: Number of units that it rests on.
        method: How value and interval were obtained.
        level: Coverage of the interval.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    level: float = 0.95


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Probability that a positive scores higher than a negative, ties counting half.

    The standard error is DeLong's: the variance of each unit's placement among the other class.

    Args:
        scores: Shape (N,); samples with a missing score are left out.
        positive: Truth of each sample, shape (N,), boolean.

    Returns:
        The area and its standard error; both NaN without a sample of each class.

    Reference:
        DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988.
    """
    known = np.isfinite(scores)
    scores, positive = scores[known], positive[known].astype(bool)
    above, below = np.sort(scores[positive]), np.sort(scores[~positive])
    n_pos, n_neg = len(above), len(below)
    if n_pos == 0 or n_neg == 0:
        return float("nan"), float("nan")
    placement_pos = _share_below(above, below)
    placement_neg = 1 - _share_below(below, above)
    area = float(placement_pos.mean())
    variance = 0.0
    if n_pos > 1:
        variance += placement_pos.var(ddof=1) / n_pos
    if n_neg > 1:
        variance += placement_neg.var(ddof=1) / n_neg
    return area, float(np.sqrt(variance))


def _share_below(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of the others that is below each x, ties counting half; both ascending."""
    low, high = np.searchsorted(others, x, "left"), np.searchsorted(others, x, "right")
    return (low + high) / (2 * len(others))


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Percentile bootstrap of a statistic over n exchangeable units.

    Args:
        statistic: From an array of unit indices, shape (n,), to a number.
        n: Number of units.
        draws: Number of resamples.
        seed: Seed of the resampling.
        level: Coverage of the interval.

    Returns:
        The statistic on all units, with its interval; resamples on which it is not finite are left
        out of the interval.

    Reference:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, Sec. 13.3.
    """
    rng = np.random.default_rng(seed)
    value = float(statistic(np.arange(n)))
    resampled = np.array([statistic(rng.integers(0, n, n)) for _ in range(draws)])
    resampled = resampled[np.isfinite(resampled)]
    if not len(resampled):
        return Estimate(value, float("nan"), float("nan"), n, "bootstrap failed", level)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n, f"percentile bootstrap, {draws}", level)


def proportion(count: int, n: int, *, level: float = 0.95) -> Estimate:
    """A share of n independent units with its Wilson score interval.

    Args:
        count: Units that have the property.
        n: Units in all.
        level: Coverage of the interval.

    Returns:
        The share and its interval; all NaN for n = 0.

    Reference:
        Wilson, JASA 22, 1927.
    """
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "Wilson score", level)
    interval = stats.binomtest(count, n).proportion_ci(level, method="wilson")
    return Estimate(count / n, float(interval.low), float(interval.high), n, "Wilson score", level)
