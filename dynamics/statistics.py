"""Estimates with their uncertainty and tests, as functions on small arrays.

Runs with different seeds are the units here, and there are few of them: 3 to 10. Intervals over
seeds are therefore Student's, at whatever they are centred: percentiles of a bootstrap over three
seeds cover 75 % at best where they promise 95.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, slots=True)
class HypothesisTest:
    """The outcome of a test that a report may print.

    Attributes:
        statistic: What was measured.
        p_value: Chance of a statistic as extreme as that where there is no effect.
        n: Number of units that it rests on.
        method: Which test.
    """

    statistic: float
    p_value: float
    n: int
    method: str


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Whether two means are the same to within a margin.

    Attributes:
        difference: Mean difference; its interval has coverage 1 − 2α, so that equivalence at level
            α is the interval lying within ± margin.
        margin: Largest difference that does not matter, stated beforehand.
        p_value: The larger of the two one-sided tests' p-values.
        equivalent: Whether p_value is below α.
    """

    difference: Estimate
    margin: float
    p_value: float
    equivalent: bool


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


def mean_over_seeds(values: np.ndarray, *, level: float = 0.95) -> Estimate:
    """The mean of a quantity over seeds with Student's interval.

    Args:
        values: One value per seed, shape (n,); missing ones are left out.
        level: Coverage of the interval.

    Returns:
        The mean; the interval is NaN for fewer than two seeds.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "Student's t", level)
    error = float(values.std(ddof=1)) / np.sqrt(n) if n > 1 else float("nan")
    return _student(float(values.mean()), error, n, "Student's t", level)


def paired_difference(a: np.ndarray, b: np.ndarray, *, level: float = 0.95) -> Estimate:
    """The mean difference a − b of runs that share a seed, with Student's interval.

    Args:
        a: One value per seed, shape (n,).
        b: The other condition's value with the same seed, shape (n,); pairs of which one is
            missing are left out.
        level: Coverage of the interval.

    Returns:
        The mean difference; the interval is NaN for fewer than two pairs.

    Raises:
        ValueError: If the two are not of the same shape.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"Pairs need one value each, but the shapes are {a.shape} and {b.shape}.")
    found = mean_over_seeds(a - b, level=level)
    return Estimate(found.value, found.low, found.high, found.n, "paired Student's t", level)


def hierarchical_bootstrap(
    statistic: Callable[[list[np.ndarray]], float],
    groups: Sequence[np.ndarray],
    *,
    draws: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Bootstrap of a statistic of samples nested in seeds.

    Seeds are drawn with replacement and each is kept whole: the spread between seeds already holds
    that of their samples, and drawing both would count it twice. The interval is the statistic ±
    t · √(n/(n − 1)) · its bootstrap standard error, with n − 1 degrees of freedom, which for a mean
    is Student's interval exactly. With a single seed its samples are drawn instead, and the
    interval says nothing about other seeds; `method` says so.

    Args:
        statistic: From one array per seed, in any order and with repeats, to a number.
        groups: One array per seed, its samples along the first axis.
        draws: Number of resamples.
        seed: Seed of the resampling.
        level: Coverage of the interval.

    Returns:
        The statistic on everything, with its interval; n is the number of seeds, or of samples
        where there is one seed.

    Raises:
        ValueError: If there is no group.

    Reference:
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, Sec. 3.8, strategy 1.
    """
    groups = list(groups)
    if not groups:
        raise ValueError("A bootstrap over seeds needs at least one of them, but got none.")
    rng = np.random.default_rng(seed)
    value, n = float(statistic(groups)), len(groups)
    single = n == 1
    if single:
        n = len(groups[0])
        resamples = ([groups[0][rng.integers(0, n, n)]] for _ in range(draws))
    else:
        resamples = ([groups[i] for i in rng.integers(0, n, n)] for _ in range(draws))
    drawn = np.array([statistic(resample) for resample in resamples], dtype=np.float64)
    drawn = drawn[np.isfinite(drawn)]
    error = float(drawn.std(ddof=1)) if n > 1 and len(drawn) > 1 else float("nan")
    what = "samples of the only seed" if single else "seeds"
    error *= np.sqrt(n / max(n - 1, 1))
    return _student(value, error, n, f"bootstrap over {what}, {draws}, Student's t", level)


def permutation_test(
    statistic: Callable[..., float],
    *data: np.ndarray,
    kind: Literal["independent", "samples", "pairings"] = "independent",
    draws: int = 9999,
    seed: int = 0,
) -> HypothesisTest:
    """Two-sided permutation test; exact where all permutations are no more than `draws`.

    Args:
        statistic: From the arrays in `data` to a number that is 0, or anything symmetric, where
            there is no effect.
        *data: One array per condition.
        kind: What is exchangeable without an effect: `independent` units between conditions,
            `samples` within each pair (same seed, two conditions), or which value is paired with
            which (`pairings`: a correlation).
        draws: Number of permutations at most.
        seed: Seed of the permutations.

    Returns:
        The statistic and its p-value; n is the number of units of the first condition, or of all
        for independent ones.

    Reference:
        Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010.
    """
    found = stats.permutation_test(
        data,
        statistic,
        permutation_type=kind,
        vectorized=False,
        n_resamples=draws,
        rng=np.random.default_rng(seed),
    )
    n = sum(len(part) for part in data) if kind == "independent" else len(data[0])
    return HypothesisTest(
        float(found.statistic), float(found.pvalue), n, f"permutation of {kind}, {draws} at most"
    )


def rank_correlation(x: np.ndarray, y: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Spearman's rank correlation with Bonett and Wright's interval.

    Args:
        x: Shape (n,); pairs of which one is missing are left out.
        y: Shape (n,).
        level: Coverage of the interval.

    Returns:
        The correlation; NaN where one of the two is constant, no interval for fewer than 4 pairs.

    Reference:
        Bonett and Wright, Psychometrika 65, 2000: variance (1 + r²/2)/(n − 3) of Fisher's z.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    x, y, n = x[known], y[known], int(known.sum())
    method = "Spearman, Bonett and Wright"
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), n, method, level)
    r = float(stats.spearmanr(x, y).statistic)
    if n < 4:
        return Estimate(r, float("nan"), float("nan"), n, method, level)
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt((1 + r**2 / 2) / (n - 3))
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return Estimate(r, float(np.tanh(z - half)), float(np.tanh(z + half)), n, method, level)


def equivalence(a: np.ndarray, b: np.ndarray, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Whether the means of two conditions are the same to within a margin, paired by seed.

    Two one-sided t-tests: that the difference is not below −margin, and not above margin.

    Args:
        a: One value per seed, shape (n,).
        b: The other condition's value with the same seed, shape (n,).
        margin: Largest difference that does not matter, in the units of the values.
        alpha: Level of each of the two tests.

    Returns:
        The verdict; not equivalent where there are fewer than two pairs.

    Raises:
        ValueError: If the margin is not positive.

    Reference:
        Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    if not margin > 0:
        raise ValueError(f"An equivalence margin is above 0, but is {margin}.")
    difference = paired_difference(a, b, level=1 - 2 * alpha)
    if difference.n < 2:
        return Equivalence(difference, margin, float("nan"), False)
    error = (difference.high - difference.low) / 2 / _t_quantile(difference.n, 1 - 2 * alpha)
    if error == 0:
        p_value = 0.0 if abs(difference.value) < margin else 1.0
    else:
        excess = (abs(difference.value) - margin) / error
        p_value = float(stats.t.cdf(excess, difference.n - 1))
    return Equivalence(difference, margin, p_value, p_value < alpha)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values adjusted for having tested several things, so that any false alarm stays at α.

    Args:
        p_values: One p-value per test.

    Returns:
        Adjusted p-values in the same order, shape (m,).

    Reference:
        Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def _student(value: float, error: float, n: int, method: str, level: float) -> Estimate:
    half = _t_quantile(n, level) * error if n > 1 else float("nan")
    return Estimate(value, value - half, value + half, n, method, level)


def _t_quantile(n: int, level: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, n - 1))
