"""Whether a deficit costs most when the Fisher trace is high: sensitivity against tr F at onset.

Achille et al. find that sensitivity to a deficit follows the Fisher trace of normal training. Both
are smooth curves over one axis, so a correlation alone says little; the permutation test here takes
the choice of the lag into account, but not that smoothness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dynamics.statistics import Estimate, permutation_test, rank_correlation

FEWEST = 4
"""Onsets that a rank correlation needs."""


@dataclass(frozen=True, slots=True)
class FisherMatch:
    """How sensitivity goes with the Fisher trace of training without a deficit.

    Attributes:
        at_onset: Rank correlation with the trace when the deficit begins.
        best_lag: Epochs after the onset at which the trace correlates best.
        best: Rank correlation at that lag.
        p_value: Chance of one as large at the best of the lags, either sign, if onsets were
            exchangeable.
        n: Number of onsets.
    """

    at_onset: Estimate
    best_lag: int
    best: float
    p_value: float
    n: int


def trace_over_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """Geometric mean over seeds of a Fisher trace.

    Args:
        curves: Rows of `plasticity_curves` of one setting: columns `curve, epoch, value, stderr`.

    Returns:
        One row per epoch: `epoch, value, stderr, n`; the standard error is that of the mean over
        seeds, or of the measurement for one seed.
    """
    rows = curves[(curves["curve"] == "fisher_trace") & (curves["value"] > 0)]
    rows = rows.astype({"value": float, "stderr": float})
    rows = rows.assign(level=np.log(rows["value"]), relative=rows["stderr"] / rows["value"])
    by_epoch = rows.groupby("epoch")
    found = by_epoch["level"].agg(["mean", "sem", "size"])
    value = np.exp(found["mean"])
    relative = found["sem"].where(found["size"] > 1, by_epoch["relative"].mean())
    table = {"value": value, "stderr": value * relative, "n": found["size"]}
    return pd.DataFrame(table).reset_index()


def deficit_traces(curves: pd.DataFrame, *, deficit: str = "blur") -> pd.DataFrame:
    """Fisher traces without a deficit, and with the one that lasts longest, by network and rate.

    The reset arm is shown beside the decayed one without a deficit, which is the same training.

    Args:
        curves: `plasticity_curves` of the ended runs of a critical-period study.
        deficit: The deficit.

    Returns:
        Rows of `trace_over_seeds` with `network, rate, setting` (no deficit, or `<deficit> until
        <t0>`) and `until`, the t0.
    """
    hit = curves[(curves["deficit"] == deficit) & (curves["onset"] == 0)]
    parts = []
    for (network, rate), rows in hit.groupby(["network", "rate"], sort=False):
        until = int(rows["until"].max())
        is_clean = (curves["deficit"] == "none") & (curves["network"] == network)
        is_clean &= curves["rate"] == ("decayed" if rate == "reset" else rate)
        settings = {
            "no deficit": curves[is_clean],
            f"{deficit} until {until}": rows[rows["until"] == until],
        }
        for setting, mine in settings.items():
            if len(mine):
                about: dict[str, Any] = {"network": network, "rate": rate}
                about |= {"setting": setting, "until": until}
                parts.append(trace_over_seeds(mine).assign(**about))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def clean_trace(curves: pd.DataFrame) -> pd.DataFrame:
    """The Fisher trace of training before any deficit, as far as it was run.

    Args:
        curves: Rows of `plasticity_curves` of a critical-period study, of one network and rate.

    Returns:
        `trace_over_seeds` of the epochs before each run's onset and of the runs without a deficit.
    """
    before = curves["epoch"] < curves["onset"].where(curves["deficit"] != "none", np.inf)
    known = curves[before].drop_duplicates(["curve", "seed", "epoch"])  # equal up to the onset
    return trace_over_seeds(known)


def match_fisher(
    onsets: Sequence[int] | np.ndarray,
    sensitivity: Sequence[float] | np.ndarray,
    trace: pd.DataFrame,
    *,
    longest_lag: int = 10,
    seed: int = 0,
) -> FisherMatch | None:
    """Compare sensitivity with the trace at the onset, and at lags after it.

    The trace at onset t is the one measured last before epoch t begins, after t epochs of training.

    Args:
        onsets: First epochs of the windows.
        sensitivity: Mean drop of each.
        trace: `clean_trace` of the same network and rate.
        longest_lag: Largest lag, in epochs.
        seed: Seed of the permutations.

    Returns:
        The comparison; None for fewer than four onsets within the trace.
    """
    onset = np.asarray(onsets, dtype=np.float64)
    drop = np.asarray(sensitivity, dtype=np.float64)
    known = np.isfinite(drop) & (onset - 1 <= trace["epoch"].max() + 1 if len(trace) else False)
    onset, drop = onset[known], drop[known]
    if len(onset) < FEWEST:
        return None
    at = {lag: _at(trace, onset + lag) for lag in range(longest_lag + 1)}
    known_at = {lag: np.isfinite(values) for lag, values in at.items()}
    ranks = {
        lag: _unit_ranks(at[lag][mask]) for lag, mask in known_at.items() if mask.sum() >= FEWEST
    }

    def correlations(drops: np.ndarray) -> dict[int, float]:
        return {lag: float(x @ _unit_ranks(drops[known_at[lag]])) for lag, x in ranks.items()}

    found = correlations(drop)
    best_lag = max(found, key=lambda lag: abs(found[lag]))
    test = permutation_test(
        lambda drops: max(correlations(drops).values(), key=abs),
        drop,
        kind="pairings",
        draws=999,
        seed=seed,
    )
    at_onset = rank_correlation(at[0], drop)
    return FisherMatch(at_onset, best_lag, found[best_lag], test.p_value, len(onset))


def _at(trace: pd.DataFrame, epochs_done: np.ndarray) -> np.ndarray:
    """The trace after so many epochs, between measurements on a line; NaN past the last one."""
    done = trace["epoch"].to_numpy(dtype=np.float64) + 1
    value = trace["value"].to_numpy(dtype=np.float64)
    return np.asarray(np.interp(epochs_done, done, value, left=np.nan, right=np.nan))


def _unit_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, centred and of length 1: the product of two of them is Spearman's correlation."""
    ranks = stats.rankdata(values) - (len(values) + 1) / 2
    size = float(np.sqrt(ranks @ ranks))
    return np.asarray(ranks / size if size > 0 else ranks)
