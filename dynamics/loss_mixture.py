"""What the mixtures on per-sample losses share: how losses are scaled, and what a mixture tells.

Losses are scaled to (0, 1) by their 5th and 95th percentile, as in Arazo et al., ICML 2019.
"""

from typing import Protocol

import numpy as np
import pandas as pd

FLOOR = 1e-12
EDGE = 1e-4
_POSTERIOR_BINS = 200


class LossMixture(Protocol):
    """What every mixture on losses tells."""

    @property
    def weight(self) -> tuple[float, float]:
        """Weight of each component among the samples used for the fit."""

    def scale(self, losses: np.ndarray) -> np.ndarray:
        """Losses mapped to (0, 1), clipped as in the fit."""

    def densities(self, scaled: np.ndarray) -> np.ndarray:
        """Weighted density of each component at scaled losses, shape (2, M)."""

    def posterior(self, losses: np.ndarray) -> np.ndarray:
        """Probability that each sample is of the high-loss component."""


def trim_losses(losses: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Losses between the 5th and 95th percentile, and those two.

    Args:
        losses: Per-sample losses, shape (N,); missing values are left out.

    Returns:
        The losses in between, and the percentiles; smallest and largest loss where those are equal.

    Raises:
        ValueError: If fewer than 20 losses are given, or all are equal.
    """
    known = losses[np.isfinite(losses)].astype(np.float64)
    if len(known) < 20 or np.ptp(known) == 0:
        raise ValueError(
            f"A loss mixture needs at least 20 samples with differing losses, but got {len(known)} "
            "finite ones."
        )
    lowest, highest = np.quantile(known, [0.05, 0.95])
    if lowest == highest:
        lowest, highest = known.min(), known.max()
    inside = known[(known >= lowest) & (known <= highest)]
    return inside, float(lowest), float(highest)


def scale_losses(losses: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Losses mapped to (0, 1), clipped to [1e-4, 1 − 1e-4].

    Args:
        losses: Shape (N,).
        lowest: Loss that is mapped to 0.
        highest: Loss that is mapped to 1.

    Returns:
        Shape (N,).
    """
    return np.clip((losses - lowest) / (highest - lowest), EDGE, 1 - EDGE)


def monotone_posterior(mixture: LossMixture, losses: np.ndarray, low_mean: float) -> np.ndarray:
    """Posterior of the high component, flat below the low one's mean and never falling.

    Args:
        mixture: The mixture.
        losses: Shape (N,); missing where missing.
        low_mean: Mean scaled loss of the low component.

    Returns:
        Shape (N,).
    """
    grid = np.linspace(EDGE, 1 - EDGE, _POSTERIOR_BINS)
    clean, noisy = np.maximum(mixture.densities(grid), FLOOR)
    ratio = noisy / (clean + noisy)
    centre = min(int(np.searchsorted(grid, low_mean)), len(grid) - 1)
    ratio[:centre] = np.minimum(ratio[:centre], ratio[centre])
    result = np.interp(mixture.scale(losses), grid, np.maximum.accumulate(ratio))
    return np.where(np.isfinite(losses), result, np.nan)


def tabulate_mixture(
    mixture: LossMixture, losses: pd.Series, flipped: pd.Series | None = None, *, bins: int = 40
) -> pd.DataFrame:
    """Histogram of the losses beside the fitted densities, for drawing.

    Args:
        mixture: The mixture.
        losses: Loss of each sample, index `sample_id`.
        flipped: Which labels are wrong, index `sample_id`, if known; samples that are not in it
            are left out.
        bins: Number of bins on the scaled loss.

    Returns:
        Columns `left, right` (scaled loss), `component_0, component_1` (weighted densities at the
        bin's centre), and the samples' density: `clean` and `wrong label` if truth is known, which
        add up to a density, otherwise `all`.
    """
    losses = losses.dropna()
    if flipped is not None:
        losses = losses[losses.index.isin(flipped.index)]
    edges = np.linspace(0, 1, bins + 1)
    scaled = mixture.scale(losses.to_numpy())
    table = pd.DataFrame({"left": edges[:-1], "right": edges[1:]})
    table[["component_0", "component_1"]] = mixture.densities((edges[:-1] + edges[1:]) / 2).T
    if flipped is None:
        groups = {"all": np.ones(len(losses), dtype=bool)}
    else:
        wrong = flipped.reindex(losses.index).to_numpy(dtype=bool)
        groups = {"clean": ~wrong, "wrong label": wrong}
    for name, members in groups.items():
        counts = np.histogram(scaled[members], edges)[0]
        table[name] = counts * bins / len(losses)
    return table
