"""Which labels are wrong, and how many: from the losses alone, and checked where truth is known.

Before a network memorises, samples with wrong labels have higher losses. A two-component beta
mixture on the per-sample losses separates them, and its posterior is the probability that a label
is wrong.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats

from dynamics.statistics import Estimate, area_under_roc, bootstrap
from dynamics.summary import iter_epochs, summarise_samples
from dynamics.traces import Run, TraceError

_FLOOR = 1e-12
_EDGE = 1e-4
_POSTERIOR_BINS = 200
_FIT_BINS = 2000

SEPARATES = 0.95
"""Mean confidence from which the mixture's noise rate may be believed.

Measured with MLPs on digits, MNIST and Fashion-MNIST: runs at or above it had fitted rates within
.03 of the truth (.20, .30, .40 symmetric noise); runs without noise reached .81, .91 and .88, with
"rates" of .32, .25 and .26, and runs with 5, 10, 60 and 80 % stayed below it too. A mixture always
finds two groups, so below it no rate is given.
"""


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
    """

    alpha: tuple[float, float]
    beta: tuple[float, float]
    weight: tuple[float, float]
    lowest: float
    highest: float
    log_likelihood: tuple[float, ...]
    converged: bool
    n: int

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
        scaled = (losses - self.lowest) / (self.highest - self.lowest)
        return np.clip(scaled, _EDGE, 1 - _EDGE)

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
        is never more suspect than a higher one.

        Args:
            losses: Shape (N,); missing where missing.

        Returns:
            Shape (N,).
        """
        grid = np.linspace(_EDGE, 1 - _EDGE, _POSTERIOR_BINS)
        clean, noisy = np.maximum(self.densities(grid), _FLOOR)
        ratio = noisy / (clean + noisy)
        centre = int(np.searchsorted(grid, self.means[0]))
        ratio[:centre] = np.minimum(ratio[:centre], ratio[centre])
        result = np.interp(self.scale(losses), grid, np.maximum.accumulate(ratio))
        return np.where(np.isfinite(losses), result, np.nan)

    def noise_rate(self, losses: np.ndarray) -> float:
        """Expected share of wrong labels: the mean posterior over the samples."""
        return float(np.nanmean(self.posterior(losses)))


def fit_beta_mixture(
    losses: np.ndarray, *, max_iterations: int = 200, tolerance: float = 1e-5
) -> BetaMixture:
    """Fit a two-component beta mixture to per-sample losses by EM with moment updates.

    Losses between the 5th and 95th percentile are scaled to (0, 1) and clipped to [1e-4, 1 − 1e-4];
    more than 2,000 of them are binned.
    E-step: responsibilities. M-step: each component's weighted mean m and variance s² give
    α = m (m(1 − m)/s² − 1) and β = α(1 − m)/m. The moment update is not the maximum-likelihood one,
    so the likelihood need not rise in every iteration; we stop when the weights no longer move,
    where the authors stop after 10 iterations.

    Args:
        losses: Per-sample losses, shape (N,); missing values are left out.
        max_iterations: Iterations at most.
        tolerance: Largest change of a weight that counts as none.

    Returns:
        The mixture, with its log-likelihood per iteration and whether it converged.

    Raises:
        ValueError: If fewer than 20 losses are given, or all are equal.

    Reference:
        Arazo et al., ICML 2019, Sec. 3.1 and the authors' released code, from which the percentiles
        and the initialisation α = (1, 2), β = (2, 1) are taken.
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
    x, count = _bin(np.clip((inside - lowest) / (highest - lowest), _EDGE, 1 - _EDGE))
    alpha, beta = np.array([1.0, 2.0]), np.array([2.0, 1.0])
    weight = np.array([0.5, 0.5])
    history: list[float] = []
    converged = False
    while not converged and len(history) < max_iterations:
        responsibility, log_likelihood = _expect(x, count, alpha, beta, weight)
        history.append(log_likelihood)
        alpha, beta, updated = _match_moments(x, count * responsibility)
        converged = bool(np.abs(updated - weight).max() < tolerance)
        weight = updated
    low, high = np.argsort(alpha / (alpha + beta))
    return BetaMixture(
        alpha=(float(alpha[low]), float(alpha[high])),
        beta=(float(beta[low]), float(beta[high])),
        weight=(float(weight[low]), float(weight[high])),
        lowest=float(lowest),
        highest=float(highest),
        log_likelihood=tuple(history),
        converged=converged,
        n=len(inside),
    )


def _bin(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and how often each counts; many samples are binned, so that a fit costs the same."""
    if len(x) <= _FIT_BINS:
        return x, np.ones(len(x))
    counts, edges = np.histogram(x, _FIT_BINS, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    return np.clip(centres[counts > 0], _EDGE, 1 - _EDGE), counts[counts > 0].astype(np.float64)


def _expect(
    x: np.ndarray, count: np.ndarray, alpha: np.ndarray, beta: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, float]:
    """Responsibilities, shape (2, N), and the mean log-likelihood."""
    log_p = (alpha - 1)[:, None] * np.log(x) + (beta - 1)[:, None] * np.log1p(-x)
    log_p += (np.log(weight) - special.betaln(alpha, beta))[:, None]
    total = special.logsumexp(log_p, axis=0)
    return np.exp(log_p - total) + _FLOOR, float(count @ total / count.sum())


def _match_moments(
    x: np.ndarray, responsibility: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape parameters and weights whose moments are the weighted ones."""
    sums = responsibility.sum(1)
    mean = responsibility @ x / sums
    variance = (responsibility * (x - mean[:, None]) ** 2).sum(1) / sums
    concentration = np.maximum(mean * (1 - mean) / np.maximum(variance, _FLOOR) - 1, 1e-3)
    return mean * concentration, (1 - mean) * concentration, sums / sums.sum()


def fit_each_epoch(run: Run) -> pd.DataFrame:
    """Fit the mixture, for every epoch, to each sample's mean loss up to and including it.

    The mean over epochs is used, rather than the losses of one epoch, because it still tells wrong
    labels when single losses have begun to be memorised.

    Args:
        run: A run with `loss` recorded.

    Returns:
        One row per epoch: `epoch, noise_rate, confidence, converged, n_iterations, n`, where
        `confidence` is the mean of max(posterior, 1 − posterior). Epochs whose losses allow no fit
        are left out.
    """
    records = []
    total = pd.Series(dtype=np.float64)
    count = pd.Series(dtype=np.float64)
    for epoch, rows in iter_epochs(run, ["loss"]):
        loss = rows["loss"].dropna().astype(np.float64)
        total = total.add(loss, fill_value=0)
        count = count.add(pd.Series(1.0, index=loss.index), fill_value=0)
        mean_loss = (total / count).to_numpy()
        try:
            mixture = fit_beta_mixture(mean_loss)
        except ValueError:
            continue  # too few or equal losses: nothing to separate in this epoch
        posterior = mixture.posterior(mean_loss)
        records.append(
            {
                "epoch": epoch,
                "noise_rate": posterior.mean(),
                "confidence": np.maximum(posterior, 1 - posterior).mean(),
                "converged": mixture.converged,
                "n_iterations": mixture.n_iterations,
                "n": mixture.n,
            }
        )
    columns = ["epoch", "noise_rate", "confidence", "converged", "n_iterations", "n"]
    return pd.DataFrame(records, columns=columns)


def choose_epoch(fits: pd.DataFrame) -> int:
    """The epoch at which the mixture separates best, chosen without knowing any true label.

    Separation grows while the network learns what is regular and shrinks as it memorises the rest;
    the mixture's mean confidence follows it. Converged fits go before others. The first epoch is
    left out where there are more: in it, a loss says more about when in the epoch the sample came.

    Args:
        fits: What `fit_each_epoch` returned.

    Returns:
        The epoch.

    Raises:
        TraceError: If there is no fit.
    """
    if fits.empty:
        raise TraceError(
            "No epoch of this run has losses that a mixture can be fitted to. Record SampleLoss "
            "on at least 20 samples."
        )
    later = fits[fits["epoch"] > fits["epoch"].min()] if len(fits) > 1 else fits
    usable = later[later["converged"]] if later["converged"].any() else later
    return int(usable["epoch"].to_numpy()[usable["confidence"].to_numpy().argmax()])


def estimate_noise_rate(losses: np.ndarray, *, draws: int = 100, seed: int = 0) -> Estimate:
    """Share of wrong labels, from each sample's mean loss up to a chosen epoch.

    Args:
        losses: Mean losses, shape (N,).
        draws: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        Mean posterior of the beta mixture. The interval covers the sampling of the samples with a
        refit each; it covers neither the choice of the epoch nor the mixture being the wrong model.
    """

    def refit(rows: np.ndarray) -> float:
        return fit_beta_mixture(losses[rows]).noise_rate(losses[rows])

    return bootstrap(refit, len(losses), draws=draws, seed=seed)


def tabulate_mixture(
    mixture: BetaMixture, losses: pd.Series, flipped: pd.Series | None = None, *, bins: int = 40
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


def known_flips(run: Run) -> pd.Series | None:
    """Which labels are wrong, index `sample_id`; None if the roster knows no true labels."""
    roster = run.roster().dropna(subset=["label", "true_label"])
    return None if roster.empty else roster["label"] != roster["true_label"]


def detection_auc(run: Run, flipped: pd.Series) -> pd.DataFrame:
    """How well each score tells wrong labels, over epochs.

    Args:
        run: The run.
        flipped: Which labels are wrong, index `sample_id`.

    Returns:
        Columns `epoch, score, auc, stderr, n`. Scores: `loss` and `grad_norm` of that epoch, and
        `aum`, the mean margin up to and including that epoch (small is suspect). A score that was
        not recorded has no rows. AUC and its standard error as in `area_under_roc`.
    """
    truth = flipped.to_numpy()
    margin_sum = np.zeros(len(flipped))
    margin_n = np.zeros(len(flipped))
    records = []
    for epoch, rows in iter_epochs(run, ["loss", "margin", "grad_norm"]):
        rows = rows.reindex(flipped.index)
        margin = rows["margin"].to_numpy(dtype=np.float64)
        margin_sum += np.nan_to_num(margin)
        margin_n += np.isfinite(margin)
        aum = np.divide(margin_sum, margin_n, out=np.full(len(truth), np.nan), where=margin_n > 0)
        scores = {"loss": rows["loss"], "aum": -aum, "grad_norm": rows["grad_norm"]}
        for name, values in scores.items():
            score = np.asarray(values, dtype=np.float64)
            if np.isfinite(score).any():
                auc, stderr = area_under_roc(score, truth)
                n = int(np.isfinite(score).sum())
                records.append((epoch, name, auc, stderr, n))
    return pd.DataFrame(records, columns=["epoch", "score", "auc", "stderr", "n"])


def rank_suspects(run: Run, *, epoch: int) -> pd.DataFrame:
    """Samples in order of how likely their label is wrong.

    Args:
        run: The run.
        epoch: Last epoch of the summary; see `choose_epoch`.

    Returns:
        The summary up to that epoch with columns `posterior` (of the mixture on `mean_loss`) and
        `predicted` (the network's class then), most suspect first: by posterior to two
        decimals, then by AUM, which still orders samples whose posterior has saturated.
    """
    summary = summarise_samples(run, until_epoch=epoch)
    mean_loss = summary["mean_loss"].to_numpy()
    summary["posterior"] = fit_beta_mixture(mean_loss).posterior(mean_loss)
    rows = run.samples(columns=["predicted"], epochs=[epoch])
    summary["predicted"] = rows.set_index("sample_id")["predicted"]
    order = summary.assign(rounded=summary["posterior"].round(2))
    order = order.sort_values(["rounded", "aum"], ascending=[False, True], kind="stable")
    return order.drop(columns="rounded")
