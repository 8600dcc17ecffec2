"""What label noise costs: held-out accuracy against noise ratio, and which law it follows.

A network that fits its noisy training labels fully predicts like the noise itself, say Chen et al.:
with noise ratio ε and C classes, its accuracy on held-out *noisy* labels is

    symmetric:  P(ε) = (1 − ε)² + ε²/(C − 1)        asymmetric:  P(ε) = (1 − ε)² + ε²

Four laws are compared on a table of runs: this one without a free parameter, the same times the
accuracy of the noise-free runs, a free quadratic, and a straight line.

Reference:
    Chen, Liao, Chen and Zhang, ICML 2019, arXiv:1905.05040, Sec. 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import optimize

from dynamics.statistics import Estimate
from dynamics.traces import Study

NoiseKind = Literal["symmetric", "asymmetric"]

_MEASURES = ["train_accuracy", "held_out_noisy", "held_out_true", "label_precision", "label_recall"]

LAWS = {
    "theory": 0,
    "theory × clean accuracy": 1,
    "free quadratic": 3,
    "straight line": 2,
}
"""Name of each law and its number of free parameters."""


def law_accuracy(ratio: np.ndarray | float, *, kind: NoiseKind, n_classes: int) -> np.ndarray:
    """Accuracy on held-out noisy labels of a network that has memorised its own.

    Args:
        ratio: Noise ratio ε, the share of labels that are wrong (true class excluded).
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        P(ε), of the shape of `ratio`.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    wrong_ways = n_classes - 1 if kind == "symmetric" else 1
    return (1 - ratio) ** 2 + ratio**2 / wrong_ways


def law_label_precision(
    ratio: np.ndarray | float, *, kind: NoiseKind, n_classes: int
) -> np.ndarray:
    """Share of clean labels among the held-out samples whose prediction is their noisy label.

    Args:
        ratio: Noise ratio ε.
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        (1 − ε)² / P(ε). Label recall is 1 − ε in both kinds.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    return (1 - ratio) ** 2 / law_accuracy(ratio, kind=kind, n_classes=n_classes)


def invert_law(accuracy: float, *, kind: NoiseKind, n_classes: int) -> float:
    """Noise ratio at which the law gives this accuracy.

    P falls from 1 to a minimum, at (C − 1)/C for symmetric noise and at 1/2 for asymmetric, and
    rises after it; the falling branch is inverted, and an accuracy below the minimum gives its
    place.

    Args:
        accuracy: Accuracy on held-out noisy labels.
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        ε̂, between 0 and the minimum's place.
    """
    lowest_at = (n_classes - 1) / n_classes if kind == "symmetric" else 0.5

    def excess(ratio: float) -> float:
        return float(law_accuracy(ratio, kind=kind, n_classes=n_classes)) - accuracy

    if excess(0.0) <= 0:
        return 0.0
    if excess(lowest_at) >= 0:
        return lowest_at
    return float(optimize.brentq(excess, 0.0, lowest_at))


@dataclass(frozen=True)
class LawComparison:
    """How well each law describes a table of runs.

    Attributes:
        table: One row per law: `law, n_free, rss, largest_deviation` (over the mean accuracies at
            each ratio), `aicc, delta_aicc` (against the best) and `probability_best` (share of
            bootstrap resamples in which it has the lowest AICc).
        curves: `ratio` and one column per law, for drawing.
        quadratic_over_line: AICc(line) − AICc(free quadratic) with its bootstrap interval; above 0
            the quadratic describes the runs better.
        n_runs: Number of runs.
        n_ratios: Number of distinct ratios.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    quadratic_over_line: Estimate
    n_runs: int
    n_ratios: int


def compare_laws(
    ratio: np.ndarray,
    accuracy: np.ndarray,
    *,
    kind: NoiseKind,
    n_classes: int,
    draws: int = 500,
    seed: int = 0,
) -> LawComparison:
    """Compare the four laws on runs at several noise ratios.

    AICc = n log(RSS/n) + 2k + 2k(k + 1)/(n − k − 1), with k the free parameters plus the residual
    variance; infinite where n ≤ k + 1. The bootstrap resamples runs within each ratio where there
    are at least two, and otherwise resamples the residuals of the free quadratic, the most flexible
    law.

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
    """
    ratios = np.unique(ratio)
    if len(ratios) < 4:
        raise ValueError(
            f"Telling a curve from a line needs runs at four noise ratios or more, but there are "
            f"{len(ratios)}. Add ratios to the study."
        )
    predict = _fit_laws(ratio, accuracy, kind, n_classes)
    aicc = _aicc_of_all(ratio, accuracy, kind, n_classes)
    means = np.array([accuracy[ratio == r].mean() for r in ratios])
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(draws):
        rows = _resample(ratio, accuracy, predict["free quadratic"], rng)
        resampled.append(_aicc_of_all(*rows, kind, n_classes))
    drawn = pd.DataFrame(resampled)
    best = drawn.idxmin(axis=1).value_counts(normalize=True)
    records = [
        {
            "law": law,
            "n_free": n_free,
            "rss": float(((accuracy - predict[law](ratio)) ** 2).sum()),
            "largest_deviation": float(np.abs(means - predict[law](ratios)).max()),
            "aicc": aicc[law],
            "delta_aicc": aicc[law] - min(aicc.values()),
            "probability_best": float(best.get(law, 0.0)),
        }
        for law, n_free in LAWS.items()
    ]
    grid = np.linspace(0, max(float(ratios.max()), 0.5), 101)
    curves = pd.DataFrame({"ratio": grid, **{law: f(grid) for law, f in predict.items()}})
    return LawComparison(
        table=pd.DataFrame(records),
        curves=curves,
        quadratic_over_line=_difference(aicc, drawn, len(ratio)),
        n_runs=len(ratio),
        n_ratios=len(ratios),
    )


def noise_table(study: Study) -> pd.DataFrame:
    """Where each run of a noise-ratio study ended.

    Args:
        study: A study whose runs record accuracies of blocks `train, noisy labels`,
            `held-out, noisy labels` and `held-out, true labels`, and label precision and recall.

    Returns:
        One row per run with values: `run, noise, ratio, seed, ended_cleanly, epochs,
        train_accuracy, held_out_noisy, held_out_noisy_stderr, held_out_true, label_precision,
        label_recall`, all of the last epoch.
    """
    results = ["train_accuracy", "held_out_noisy", "held_out_noisy_stderr", "held_out_true"]
    results += ["label_precision", "label_recall"]
    names = ["run", *study.factors, "ended_cleanly", "epochs", *results]
    records = []
    for run, levels in zip(study.runs, study.table().to_dict("records"), strict=True):
        scalars = run.scalars()
        if scalars.empty:
            continue
        last = scalars[scalars["epoch"] == scalars["epoch"].max()].set_index(["name", "block"])
        value = last["value"].get
        records.append(
            levels
            | {
                "epochs": int(scalars["epoch"].max()) + 1,
                "train_accuracy": value(("accuracy", "train, noisy labels")),
                "held_out_noisy": value(("accuracy", "held-out, noisy labels")),
                "held_out_noisy_stderr": last["stderr"].get(("accuracy", "held-out, noisy labels")),
                "held_out_true": value(("accuracy", "held-out, true labels")),
                "label_precision": value(("label_precision", "held-out")),
                "label_recall": value(("label_recall", "held-out")),
            }
        )
    return pd.DataFrame(records, columns=names)


def summarise_noise_table(table: pd.DataFrame, *, n_classes: int) -> pd.DataFrame:
    """Runs of a noise-ratio study, averaged over seeds and set against the law.

    Args:
        table: `noise_table(study)`.
        n_classes: Number of classes C.

    Returns:
        One row per kind and ratio: `noise, ratio, n_runs, epochs_low, epochs_high`; mean and
        standard deviation (`<name>_std`, missing for one run) of each accuracy, of label precision
        and recall, and of `ratio_by_law`, the inverted law; `law`, and `deviation` = mean − law.
    """
    kinds: dict[object, NoiseKind] = {"symmetric": "symmetric", "asymmetric": "asymmetric"}
    records = []
    for (noise, ratio), runs in table.groupby(["noise", "ratio"]):
        kind, ratio = kinds[noise], float(str(ratio))
        accuracies = runs["held_out_noisy"].to_numpy()
        inverted = [invert_law(a, kind=kind, n_classes=n_classes) for a in accuracies]
        law = float(law_accuracy(ratio, kind=kind, n_classes=n_classes))
        record = {"noise": kind, "ratio": ratio, "n_runs": len(runs)}
        record |= {"epochs_low": runs["epochs"].min(), "epochs_high": runs["epochs"].max()}
        for name, values in {**runs[_MEASURES], "ratio_by_law": pd.Series(inverted)}.items():
            record |= {str(name): values.mean(), f"{name}_std": values.std(ddof=1)}
        records.append(record | {"law": law, "deviation": accuracies.mean() - law})
    return pd.DataFrame(records)


def largest_deviation(
    table: pd.DataFrame, *, kind: NoiseKind, n_classes: int
) -> tuple[float, float]:
    """The run that is furthest from the law.

    Args:
        table: Rows of `noise_table(study)` of one kind, at least one.
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        Its accuracy on held-out noisy labels minus the law, and its noise ratio.
    """
    ratio = table["ratio"].to_numpy(dtype=np.float64)
    law = law_accuracy(ratio, kind=kind, n_classes=n_classes)
    off = table["held_out_noisy"].to_numpy(dtype=np.float64) - law
    worst = int(np.abs(off).argmax())
    return float(off[worst]), float(ratio[worst])


Curve = Callable[[np.ndarray], np.ndarray]


def _fit_laws(
    ratio: np.ndarray, accuracy: np.ndarray, kind: NoiseKind, n_classes: int
) -> dict[str, Curve]:
    def theory(r: np.ndarray) -> np.ndarray:
        return law_accuracy(r, kind=kind, n_classes=n_classes)

    shape = theory(ratio)
    factor = float(accuracy[ratio == 0].mean()) if (ratio == 0).any() else float("nan")
    if not np.isfinite(factor):
        factor = float(shape @ accuracy / (shape @ shape))
    quadratic, line = np.polyfit(ratio, accuracy, 2), np.polyfit(ratio, accuracy, 1)
    return {
        "theory": theory,
        "theory × clean accuracy": lambda r: factor * theory(r),
        "free quadratic": lambda r: np.polyval(quadratic, r),
        "straight line": lambda r: np.polyval(line, r),
    }


def _aicc_of_all(
    ratio: np.ndarray, accuracy: np.ndarray, kind: NoiseKind, n_classes: int
) -> dict[str, float]:
    predict = _fit_laws(ratio, accuracy, kind, n_classes)
    n = len(ratio)
    result = {}
    for law, n_free in LAWS.items():
        k = n_free + 1
        rss = max(float(((accuracy - predict[law](ratio)) ** 2).sum()), 1e-12)
        correction = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf
        result[law] = n * np.log(rss / n) + 2 * k + correction
    return result


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
    low, high = np.quantile(differences, [0.025, 0.975])
    return Estimate(
        line - quadratic, float(low), float(high), n, f"bootstrap over runs, {len(drawn)}"
    )
