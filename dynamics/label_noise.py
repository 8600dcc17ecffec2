"""Which labels are wrong, and how many: from the losses of a run, checked where truth is known.

Before a network memorises, samples with wrong labels have higher losses. A two-component mixture
on the per-sample losses separates them, and its posterior is the probability that a label is wrong.
"""

import numpy as np
import pandas as pd

from dynamics.beta_mixture import fit_beta_mixture
from dynamics.statistics import Estimate, area_under_roc, bootstrap
from dynamics.summary import iter_epochs, summarise_samples
from dynamics.traces import Run, TraceError

SEPARATES = 0.95
"""Mean confidence from which the mixture's noise rate may be believed.

Measured with MLPs on digits, MNIST and Fashion-MNIST: runs at or above it had fitted rates within
.03 of the truth (.20, .30, .40 symmetric noise); runs without noise reached .81, .91 and .88, with
"rates" of .32, .25 and .26, and runs with 5, 10, 60 and 80 % stayed below it too. A mixture always
finds two groups, so below it no rate is given. It is no guarantee above it: of ten further runs on
digits, one with 10 % noise had a confidence of .96 and a rate of .15.
"""


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
