"""Which curve held-out accuracy follows over noise ratio: Chen et al.'s law, a line, or another.

Five laws are compared on a table of runs: the theory without a free parameter, the theory times the
accuracy of the noise-free runs, a free quadratic, a straight line, and a monotone spline (the
falling isotonic regression of the runs, joined by Fritsch and Carlson's monotone cubics).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from scipy.interpolate import PchipInterpolator
from sklearn.isotonic import isotonic_regression

from dynamics.noise_law import NoiseKind, law_accuracy
from dynamics.statistics import Estimate

LAWS = (
    "theory",
    "theory × clean accuracy",
    "free quadratic",
    "straight line",
    "monotone spline",
)

Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class LawComparison:
    """How well each law describes a table of runs.

    Attributes:
        table: One row per law: `law, n_free, rss, largest_deviation` (over the mean accuracies at
            each ratio), `aicc, delta_aicc` (against the best), `probability_best` (share of
            bootstrap resamples in which it has the lowest AICc), and `left_out_error,
            left_out_low, left_out_high`: root mean square over ratios of (mean accuracy there −
            prediction of the law fitted without that ratio), with its bootstrap interval.
        curves: `ratio` and one column per law, for drawing.
        curvature: Second-order coefficient of the free quadratic with its interval by Student's t
            on the residuals; above 0 the curve bends upwards, around 0 it is no curve.
        quadratic_over_line: AICc(line) − AICc(free quadratic) with its bootstrap interval; above 0
            the quadratic describes the runs better.
        n_runs: Number of runs.
        n_ratios: Number of distinct ratios.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    curvature: Estimate
    quadratic_over_line: Estimate
    n_runs: int
    n_ratios: int


def compare_laws(
    ratio: np.ndarray,
    accuracy: np.ndarray,
    *,
    kind: NoiseKind,
    n_classes: int,
    draws: int = 100,
    seed: int = 0,
) -> LawComparison:
    """Compare the laws on runs at several noise ratios.

    AICc = n log(RSS/n) + 2k + 2k(k + 1)/(n − k − 1), with k the free parameters plus the residual
    variance; infinite where n ≤ k + 1. The spline has as many free parameters as its isotonic
    regression has levels. The bootstrap resamples runs within each ratio where there are at least
    two, and otherwise resamples the residuals of the free quadratic.

    Args:
        ratio: Noise ratio of each run, shape (n,).
        accuracy: Accuracy of each run on held-out noisy labels, shape (n,).
        kind: Where wrong labels go.
        n_classes: Number of classes C.
        draws: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The comparison.

    Raises:
        ValueError: If there are fewer than four distinct ratios, too few to tell a curve from a
            line.

    Reference:
        Meyer and Woodroofe, Annals of Statistics 28, 2000, for the spline's free parameters.
    """
    ratios = np.unique(ratio)
    if len(ratios) < 4:
        raise ValueError(
            f"Telling a curve from a line needs runs at four noise ratios or more, but there are "
            f"{len(ratios)}. Add ratios to the study."
        )
    fits = _fit_laws(ratio, accuracy, kind, n_classes)
    aicc = _aicc_of_all(ratio, accuracy, kind, n_classes)
    left_out = _left_out_errors(ratio, accuracy, kind, n_classes)
    rng = np.random.default_rng(seed)
    quadratic = fits["free quadratic"][0]
    resamples = [_resample(ratio, accuracy, quadratic, rng) for _ in range(draws)]
    drawn = pd.DataFrame([_aicc_of_all(*rows, kind, n_classes) for rows in resamples], columns=LAWS)
    errors = pd.DataFrame(
        [_left_out_errors(*rows, kind, n_classes) for rows in resamples], columns=LAWS
    )
    best = drawn.idxmin(axis=1).value_counts(normalize=True)
    means = np.array([accuracy[ratio == r].mean() for r in ratios])
    records = [
        {
            "law": law,
            "n_free": n_free,
            "rss": float(((accuracy - predict(ratio)) ** 2).sum()),
            "largest_deviation": float(np.abs(means - predict(ratios)).max()),
            "aicc": aicc[law],
            "delta_aicc": aicc[law] - min(aicc.values()),
            "probability_best": float(best.get(law, 0.0)),
            "left_out_error": left_out[law],
            "left_out_low": float(errors[law].quantile(0.025)),
            "left_out_high": float(errors[law].quantile(0.975)),
        }
        for law, (predict, n_free) in fits.items()
    ]
    grid = np.linspace(0, max(float(ratios.max()), 0.5), 101)
    curves = {law: predict(grid) for law, (predict, _) in fits.items()}
    return LawComparison(
        table=pd.DataFrame(records),
        curves=pd.DataFrame({"ratio": grid, **curves}),
        curvature=estimate_curvature(ratio, accuracy),
        quadratic_over_line=_difference(aicc, drawn, len(ratio)),
        n_runs=len(ratio),
        n_ratios=len(ratios),
    )


def estimate_curvature(ratio: np.ndarray, accuracy: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Second-order coefficient of the least-squares quadratic: whether the runs lie on a curve.

    The theory's is 1 + 1/(C − 1) for symmetric noise and 2 for asymmetric.

    Args:
        ratio: Noise ratio of each run, shape (n,), at least three distinct ones.
        accuracy: Accuracy of each run, shape (n,).
        level: Coverage of the interval.

    Returns:
        The coefficient and its interval by Student's t with n − 3 degrees of freedom; the interval
        is missing for n ≤ 3. It takes errors to be independent with one variance.
    """
    design = np.vander(ratio, 3)
    n = len(ratio)
    coefficients, *_ = np.linalg.lstsq(design, accuracy, rcond=None)
    value = float(coefficients[0])
    method = "least squares, Student's t"
    if n <= 3:
        return Estimate(value, float("nan"), float("nan"), n, method, level)
    variance = float(((accuracy - design @ coefficients) ** 2).sum()) / (n - 3)
    stderr = float(np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0]))
    half = float(stats.t.ppf((1 + level) / 2, n - 3)) * stderr
    return Estimate(value, value - half, value + half, n, method, level)


def _fit_laws(
    ratio: np.ndarray, accuracy: np.ndarray, kind: NoiseKind, n_classes: int
) -> dict[str, tuple[Curve, int]]:
    """Each law's curve and its number of free parameters."""

    def theory(r: np.ndarray) -> np.ndarray:
        return law_accuracy(r, kind=kind, n_classes=n_classes)

    shape = theory(ratio)
    if (ratio == 0).any():
        factor = float(accuracy[ratio == 0].mean())
    else:
        factor = float(shape @ accuracy / (shape @ shape))
    quadratic, line = np.polyfit(ratio, accuracy, 2), np.polyfit(ratio, accuracy, 1)
    return {
        "theory": (theory, 0),
        "theory × clean accuracy": (lambda r: factor * theory(r), 1),
        "free quadratic": (lambda r: np.polyval(quadratic, r), 3),
        "straight line": (lambda r: np.polyval(line, r), 2),
        "monotone spline": _fit_spline(ratio, accuracy),
    }


def _fit_spline(ratio: np.ndarray, accuracy: np.ndarray) -> tuple[Curve, int]:
    """Falling isotonic levels joined by monotone cubics; straight beyond the outermost ratios."""
    ratios, place, counts = np.unique(ratio, return_inverse=True, return_counts=True)
    means = np.bincount(place, accuracy) / counts
    levels = isotonic_regression(means, sample_weight=counts.astype(float), increasing=False)
    curve = PchipInterpolator(ratios, levels)
    slope = curve.derivative()

    def spline(r: np.ndarray) -> np.ndarray:
        inside = np.clip(r, ratios[0], ratios[-1])
        return np.asarray(curve(inside) + slope(inside) * (r - inside))

    return spline, len(np.unique(levels))


def _aicc_of_all(
    ratio: np.ndarray, accuracy: np.ndarray, kind: NoiseKind, n_classes: int
) -> dict[str, float]:
    n = len(ratio)
    result = {}
    for law, (predict, n_free) in _fit_laws(ratio, accuracy, kind, n_classes).items():
        k = n_free + 1
        rss = max(float(((accuracy - predict(ratio)) ** 2).sum()), 1e-12)
        correction = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf
        result[law] = n * np.log(rss / n) + 2 * k + correction
    return result


def _left_out_errors(
    ratio: np.ndarray, accuracy: np.ndarray, kind: NoiseKind, n_classes: int
) -> dict[str, float]:
    """Root mean square error at each ratio of the laws fitted without it."""
    squares: dict[str, list[float]] = {law: [] for law in LAWS}
    for r in np.unique(ratio):
        out = ratio == r
        fits = _fit_laws(ratio[~out], accuracy[~out], kind, n_classes)
        for law, (predict, _) in fits.items():
            missed = accuracy[out].mean() - float(predict(np.array([r]))[0])
            squares[law].append(float(missed**2))
    return {law: float(np.sqrt(np.mean(values))) for law, values in squares.items()}


def _resample(
    ratio: np.ndarray, accuracy: np.ndarray, fitted: Curve, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    groups = [np.flatnonzero(ratio == r) for r in np.unique(ratio)]
    if min(len(group) for group in groups) >= 2:
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        return ratio[rows], accuracy[rows]
    residuals = accuracy - fitted(ratio)
    spread = np.sqrt(len(ratio) / max(len(ratio) - 3, 1))  # fitted residuals are too small
    return ratio, fitted(ratio) + spread * rng.choice(residuals, len(ratio))


def _difference(aicc: dict[str, float], drawn: pd.DataFrame, n: int) -> Estimate:
    line, quadratic = aicc["straight line"], aicc["free quadratic"]
    if not np.isfinite([line, quadratic]).all():
        return Estimate(float("nan"), float("nan"), float("nan"), n, "too few runs for AICc")
    differences = drawn["straight line"] - drawn["free quadratic"]
    low, high = differences.quantile(0.025), differences.quantile(0.975)
    return Estimate(
        line - quadratic, float(low), float(high), n, f"bootstrap over runs, {len(drawn)}"
    )
