"""Whether a posterior means what it says: reliability, Brier score, calibration error."""

from typing import Literal

import numpy as np
import pandas as pd

from dynamics.beta_mixture import BetaMixture, MixtureKind, fit_beta_mixture
from dynamics.gaussian_mixture import GaussianMixture, fit_gaussian_mixture
from dynamics.statistics import Estimate, area_under_roc, bootstrap, proportion
from dynamics.summary import iter_epochs
from dynamics.traces import Run

Mixture = MixtureKind | Literal["gaussian"]

_BINS = 10


def tabulate_reliability(
    posterior: np.ndarray, truth: np.ndarray, *, bins: int = _BINS
) -> pd.DataFrame:
    """Share of positives among samples with about the same posterior.

    Args:
        posterior: Probability of being positive, shape (N,); samples without one are left out.
        truth: Whether each sample is positive, shape (N,).
        bins: Number of bins of equal width on [0, 1].

    Returns:
        One row per bin that holds a sample: `left, right, n, posterior` (mean), `share` (of
        positives) and its Wilson interval `low, high`. A calibrated posterior has share ≈
        posterior in each.
    """
    posterior, truth, at = _assign(posterior, truth, bins)
    records = []
    for i in np.unique(at):
        inside = at == i
        share = proportion(int(truth[inside].sum()), int(inside.sum()))
        record = {"left": i / bins, "right": (i + 1) / bins, "n": share.n}
        record |= {"posterior": float(posterior[inside].mean()), "share": share.value}
        records.append(record | {"low": share.low, "high": share.high})
    columns = ["left", "right", "n", "posterior", "share", "low", "high"]
    return pd.DataFrame(records, columns=columns)


def brier_score(posterior: np.ndarray, truth: np.ndarray) -> Estimate:
    """Mean squared distance of a posterior from the truth: 0 is perfect, .25 a coin.

    Args:
        posterior: Probability of being positive, shape (N,); samples without one are left out.
        truth: Whether each sample is positive, shape (N,).

    Returns:
        The score with a normal interval over samples.

    Reference:
        Brier, Monthly Weather Review 78, 1950; for two classes, half of his sum.
    """
    posterior, truth, _ = _assign(posterior, truth, _BINS)
    squares, n = (posterior - truth) ** 2, len(posterior)
    value = float(squares.mean()) if n else float("nan")
    half = 1.96 * float(squares.std(ddof=1)) / np.sqrt(n) if n > 1 else float("nan")
    return Estimate(value, max(value - half, 0.0), value + half, n, "normal, over samples")


def calibration_error(
    posterior: np.ndarray, truth: np.ndarray, *, bins: int = _BINS, draws: int = 200, seed: int = 0
) -> Estimate:
    """Expected calibration error: Σ n_bin/N · |share of positives − mean posterior|.

    It is above 0 also for a calibrated posterior, by chance: with n samples in a bin by some
    √(p(1 − p)/n).

    Args:
        posterior: Probability of being positive, shape (N,); samples without one are left out.
        truth: Whether each sample is positive, shape (N,).
        bins: Number of bins of equal width on [0, 1].
        draws: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The error, with a bootstrap interval over samples.

    Reference:
        Guo et al., ICML 2017, eq. 5, here for the posterior itself and not for max(p, 1 − p).
    """
    posterior, truth, at = _assign(posterior, truth, bins)
    excess = truth - posterior

    def error(rows: np.ndarray) -> float:
        if not len(rows):
            return float("nan")
        return float(np.abs(np.bincount(at[rows], excess[rows], bins)).sum() / len(rows))

    return bootstrap(error, len(posterior), draws=draws, seed=seed)


def calibration_each_epoch(
    run: Run, flipped: pd.Series, *, mixtures: tuple[Mixture, ...] = ("moments",)
) -> pd.DataFrame:
    """How well mixtures tell wrong labels, and how far their posterior can be believed, by epoch.

    As in `fit_each_epoch`, a mixture is fitted to each sample's mean loss up to the epoch. Truth
    is used to judge it, never to fit it.

    Args:
        run: A run with `loss` recorded.
        flipped: Which labels are wrong, index `sample_id`.
        mixtures: Mixtures to fit: those of `fit_beta_mixture`, and `gaussian`.

    Returns:
        One row per epoch and mixture: `epoch, mixture, auc, auc_stderr, accuracy` (of posterior >
        ½), `brier, brier_low, brier_high, calibration_error, noise_rate, confidence, converged, n`.
        Epochs whose losses allow no fit are left out.
    """
    truth = flipped.to_numpy(dtype=bool)
    total, count = np.zeros(len(truth)), np.zeros(len(truth))
    records = []
    for epoch, rows in iter_epochs(run, ["loss"]):
        loss = rows["loss"].reindex(flipped.index).to_numpy(dtype=np.float64)
        total += np.nan_to_num(loss)
        count += np.isfinite(loss)
        mean_loss = np.divide(total, count, out=np.full(len(truth), np.nan), where=count > 0)
        for mixture in mixtures:
            try:
                fitted = fit_mixture(mean_loss, mixture)
            except ValueError:
                continue  # too few or equal losses: nothing to separate in this epoch
            record = _judge(fitted.posterior(mean_loss), truth)
            records.append(
                {"epoch": epoch, "mixture": mixture, "converged": fitted.converged} | record
            )
    columns = ["epoch", "mixture", "auc", "auc_stderr", "accuracy", "brier", "brier_low"]
    columns += ["brier_high", "calibration_error", "noise_rate", "confidence", "converged", "n"]
    return pd.DataFrame(records, columns=columns)


def fit_mixture(losses: np.ndarray, mixture: Mixture) -> BetaMixture | GaussianMixture:
    """Fit the mixture of that name.

    Args:
        losses: Per-sample losses, shape (N,); missing values are left out.
        mixture: A kind of `fit_beta_mixture`, or `gaussian`.

    Returns:
        The mixture.
    """
    if mixture == "gaussian":
        return fit_gaussian_mixture(losses)
    return fit_beta_mixture(losses, kind=mixture)


def _judge(posterior: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    auc, stderr = area_under_roc(posterior, truth)
    brier = brier_score(posterior, truth)
    known = np.isfinite(posterior)
    sure = posterior[known]
    return {
        "auc": auc,
        "auc_stderr": stderr,
        "accuracy": float(((sure > 0.5) == truth[known]).mean()),
        "brier": brier.value,
        "brier_low": brier.low,
        "brier_high": brier.high,
        "calibration_error": calibration_error(posterior, truth, draws=1).value,
        "noise_rate": float(sure.mean()),
        "confidence": float(np.maximum(sure, 1 - sure).mean()),
        "n": len(sure),
    }


def _assign(
    posterior: np.ndarray, truth: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Known posteriors, their truth, and the bin of each."""
    posterior, truth = np.asarray(posterior, np.float64), np.asarray(truth, np.float64)
    known = np.isfinite(posterior)
    posterior, truth = posterior[known], truth[known]
    if len(posterior) and not 0 <= posterior.min() <= posterior.max() <= 1:
        raise ValueError(
            f"A posterior lies between 0 and 1, but goes from {posterior.min():g} to "
            f"{posterior.max():g}."
        )
    return posterior, truth, np.minimum((posterior * bins).astype(np.int64), bins - 1)
