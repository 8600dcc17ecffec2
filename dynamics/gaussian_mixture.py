"""A Gaussian mixture on per-sample losses, to compare the beta mixture with."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from dynamics.loss_mixture import monotone_posterior, scale_losses, trim_losses


@dataclass(frozen=True)
class GaussianMixture:
    """A fitted mixture of two normal distributions on losses scaled to (0, 1).

    Attributes:
        means: Mean scaled loss of components 0 and 1, ascending.
        std: Standard deviation of each.
        weight: Weight of each.
        lowest: Loss that is mapped to 0.
        highest: Loss that is mapped to 1.
        converged: Whether EM had converged.
        n: Number of samples used for the fit.
    """

    means: tuple[float, float]
    std: tuple[float, float]
    weight: tuple[float, float]
    lowest: float
    highest: float
    converged: bool
    n: int

    def scale(self, losses: np.ndarray) -> np.ndarray:
        """Losses mapped to (0, 1), clipped as in the fit."""
        return scale_losses(losses, self.lowest, self.highest)

    def densities(self, scaled: np.ndarray) -> np.ndarray:
        """Weighted density of each component at scaled losses, shape (2, M)."""
        components = zip(self.weight, self.means, self.std, strict=True)
        return np.stack([w * stats.norm.pdf(scaled, mean, std) for w, mean, std in components])

    def posterior(self, losses: np.ndarray) -> np.ndarray:
        """Probability that each sample is of the high-loss component, monotone in the loss."""
        return monotone_posterior(self, losses, self.means[0])

    def noise_rate(self, losses: np.ndarray) -> float:
        """Expected share of wrong labels: the mean posterior over the samples."""
        return float(np.nanmean(self.posterior(losses)))


def fit_gaussian_mixture(losses: np.ndarray) -> GaussianMixture:
    """Fit a two-component Gaussian mixture to per-sample losses, scaled as for the beta mixture.

    Args:
        losses: Per-sample losses, shape (N,); missing values are left out.

    Returns:
        The mixture; scikit-learn's EM from a k-means start, variances at least 1e-6.

    Raises:
        ValueError: If fewer than 20 losses are given, or all are equal.
    """
    from sklearn import mixture  # a second, which those who fit none need not wait

    inside, lowest, highest = trim_losses(losses)
    scaled = scale_losses(inside, lowest, highest)[:, None]
    fitted = mixture.GaussianMixture(2, random_state=0, max_iter=200).fit(scaled)
    means = fitted.means_[:, 0]
    low, high = np.argsort(means, kind="stable")
    std = np.sqrt(fitted.covariances_[:, 0, 0])
    return GaussianMixture(
        means=(float(means[low]), float(means[high])),
        std=(float(std[low]), float(std[high])),
        weight=(float(fitted.weights_[low]), float(fitted.weights_[high])),
        lowest=lowest,
        highest=highest,
        converged=bool(fitted.converged_),
        n=len(inside),
    )
