"""A beta mixture on per-sample losses, fitted by EM: with the authors' constants, or ours.

Before a network memorises, samples with wrong labels have higher losses. Two beta distributions on
the scaled losses separate them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

from dynamics.beta_likelihood import raise_likelihood
from dynamics.loss_mixture import EDGE, FLOOR, monotone_posterior, scale_losses, trim_losses

MixtureKind = Literal["reference", "moments", "likelihood"]
"""`reference`: Arazo et al.'s code to the constant. `moments`: their update until it no longer
moves. `likelihood`: maximum-likelihood M-step, so that each iteration raises the likelihood."""

_FIT_BINS = 2000
_REFERENCE_EDGE = 1e-3  # their code writes 10e-4
_REFERENCE_BINS = 100
_REFERENCE_ITERATIONS = 10


@dataclass(frozen=True)
class BetaMixture:
    """A fitted mixture of two beta distributions on losses scaled to (0, 1).

    Component 1 has the higher mean: the samples whose labels are likely wrong.

    Attributes:
        alpha: First shape parameter of components 0 and 1.
        beta: Second shape parameter.
        weight: Weight of each component among the samples used for the fit.
        lowest: Loss that is mapped to 0.
        highest: Loss that is mapped to 1.
        log_likelihood: Mean log-likelihood per sample after each iteration.
        converged: Whether the weights had stopped moving when the fit ended.
        n: Number of samples used for the fit.
        kind: How it was fitted.
    """

    alpha: tuple[float, float]
    beta: tuple[float, float]
    weight: tuple[float, float]
    lowest: float
    highest: float
    log_likelihood: tuple[float, ...]
    converged: bool
    n: int
    kind: MixtureKind = "moments"

    @property
    def n_iterations(self) -> int:
        """Number of EM iterations."""
        return len(self.log_likelihood)

    @property
    def means(self) -> tuple[float, float]:
        """Mean scaled loss of each component."""
        first, second = (a / (a + b) for a, b in zip(self.alpha, self.beta, strict=True))
        return first, second

    def scale(self, losses: np.ndarray) -> np.ndarray:
        """Losses mapped to (0, 1), clipped as in the fit."""
        scale = _scale_as_authors if self.kind == "reference" else scale_losses
        return scale(losses, self.lowest, self.highest)

    def densities(self, scaled: np.ndarray) -> np.ndarray:
        """Weighted density of each component at scaled losses.

        Args:
            scaled: Shape (M,), in (0, 1).

        Returns:
            Shape (2, M).
        """
        return np.stack(
            [
                weight * stats.beta.pdf(scaled, a, b)
                for weight, a, b in zip(self.weight, self.alpha, self.beta, strict=True)
            ]
        )

    def posterior(self, losses: np.ndarray) -> np.ndarray:
        """Probability that each sample is of the high-loss component.

        Made monotone in the loss: a beta density can rise again towards 0 or 1, and a lower loss
        is never more suspect than a higher one. The reference looks it up in a table of 100 bins
        as the authors do, which holds it at its maximum above that but lets it rise again at low
        losses.

        Args:
            losses: Shape (N,); missing where missing.

        Returns:
            Shape (N,).
        """
        if self.kind == "reference":
            return self._looked_up(losses)
        return monotone_posterior(self, losses, self.means[0])

    def _looked_up(self, losses: np.ndarray) -> np.ndarray:
        grid = np.linspace(FLOOR, 1 - FLOOR, _REFERENCE_BINS)
        clean, noisy = self.densities(grid)
        table = np.nan_to_num(noisy / (clean + noisy + FLOOR), nan=1.0)  # inf/inf at the edge
        table[table.argmax() :] = table.max()
        at = np.nan_to_num(_REFERENCE_BINS * self.scale(losses)).astype(np.int64)
        return np.where(np.isfinite(losses), table[at], np.nan)

    def noise_rate(self, losses: np.ndarray) -> float:
        """Expected share of wrong labels: the mean posterior over the samples."""
        return float(np.nanmean(self.posterior(losses)))


def fit_beta_mixture(
    losses: np.ndarray,
    *,
    kind: MixtureKind = "moments",
    max_iterations: int = 200,
    tolerance: float = 1e-5,
) -> BetaMixture:
    """Fit a two-component beta mixture to per-sample losses by EM.

    Losses between the 5th and 95th percentile are scaled to (0, 1) and clipped to [1e-4, 1 − 1e-4];
    more than 2,000 of them are binned. E-step: responsibilities. M-step by kind:

    - `moments`: each component's weighted mean m and variance s² give α = m (m(1 − m)/s² − 1) and
      β = α(1 − m)/m. That is not the maximum-likelihood update, so the likelihood need not rise in
      every iteration; we stop when the weights no longer move.
    - `likelihood`: α and β that raise the weighted log-likelihood, by Newton's method; the
      likelihood then never falls.
    - `reference`: moments with the authors' constants. (ℓ − P5 − 1e-5)/(P95 − P5 − 9e-6); what is
      not above 0 becomes 1e-3 (10e-4 in their code), what is not below 1, 1 − 1e-3; then clipped
      to [1e-4, 1 − 1e-4]. No bins, 10 iterations.

    Args:
        losses: Per-sample losses, shape (N,); missing values are left out.
        kind: The M-step, and whose constants.
        max_iterations: Iterations at most; 10 for the reference.
        tolerance: Largest change of a weight that counts as none.

    Returns:
        The mixture, with its log-likelihood per iteration and whether it converged.

    Raises:
        ValueError: If fewer than 20 losses are given, or all are equal.

    Reference:
        Arazo et al., ICML 2019, Sec. 3.1 and the authors' released code, from which the percentiles
        and the initialisation α = (1, 2), β = (2, 1) are taken.
    """
    inside, lowest, highest = trim_losses(losses)
    if kind == "reference":
        lowest, highest = lowest + 1e-5, highest + 1e-6
        max_iterations = min(max_iterations, _REFERENCE_ITERATIONS)
        x, count = _scale_as_authors(inside, lowest, highest), np.ones(len(inside))
    else:
        x, count = _bin(scale_losses(inside, lowest, highest))
    update = raise_likelihood if kind == "likelihood" else _match_moments
    alpha, beta = np.array([1.0, 2.0]), np.array([2.0, 1.0])
    weight = np.array([0.5, 0.5])
    history: list[float] = []
    converged = False
    while not converged and len(history) < max_iterations:
        responsibility, log_likelihood = _expect(x, count, alpha, beta, weight)
        history.append(log_likelihood)
        counted = count * responsibility
        alpha, beta = update(x, counted, alpha, beta)
        updated = counted.sum(1) / counted.sum()
        moved = float(np.abs(updated - weight).max())
        converged = kind != "reference" and moved < tolerance
        weight = updated
    low, high = np.argsort(alpha / (alpha + beta), kind="stable")
    return BetaMixture(
        alpha=(float(alpha[low]), float(alpha[high])),
        beta=(float(beta[low]), float(beta[high])),
        weight=(float(weight[low]), float(weight[high])),
        lowest=float(lowest),
        highest=float(highest),
        log_likelihood=tuple(history),
        converged=converged or moved < tolerance,
        n=len(inside),
        kind=kind,
    )


def _scale_as_authors(losses: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    scaled = (losses - lowest) / (highest - lowest)
    scaled = np.where(scaled >= 1, 1 - _REFERENCE_EDGE, scaled)
    return np.clip(np.where(scaled <= 0, _REFERENCE_EDGE, scaled), EDGE, 1 - EDGE)


def _bin(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and how often each counts; many samples are binned, so that a fit costs the same."""
    if len(x) <= _FIT_BINS:
        return x, np.ones(len(x))
    counts, edges = np.histogram(x, _FIT_BINS, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    return np.clip(centres[counts > 0], EDGE, 1 - EDGE), counts[counts > 0].astype(np.float64)


def _expect(
    x: np.ndarray, count: np.ndarray, alpha: np.ndarray, beta: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, float]:
    """Responsibilities, shape (2, N), and the mean log-likelihood."""
    log_p = (alpha - 1)[:, None] * np.log(x) + (beta - 1)[:, None] * np.log1p(-x)
    log_p += (np.log(weight) - special.betaln(alpha, beta))[:, None]
    total = np.logaddexp(log_p[0], log_p[1])
    return np.exp(log_p - total) + FLOOR, float(count @ total / count.sum())


def _match_moments(
    x: np.ndarray, responsibility: np.ndarray, alpha: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shape parameters whose moments are the weighted ones, whatever they were."""
    sums = responsibility.sum(1)
    mean = responsibility @ x / sums
    variance = (responsibility * (x - mean[:, None]) ** 2).sum(1) / sums
    concentration = np.maximum(mean * (1 - mean) / np.maximum(variance, FLOOR) - 1, 1e-3)
    return mean * concentration, (1 - mean) * concentration
