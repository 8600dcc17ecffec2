"""What importance weights still do in a run: their gradient, their sample size, their reach.

Two groups are compared in each epoch, the samples with a weight above the mean and the others. The
share of the weighted gradient Σ w‖∇ℓ‖ that the first group holds is what the weights ask for at the
start. It is no sign that they have worn off: at any optimum of a bias the two groups pull equally,
so it falls to about one half within an epoch or two, whatever the weights do to predictions.
What tells is the reach. Weights with ratio r move the best log-odds by log r, and so can turn the
predictions with a margin below log r. As the training data are fitted, margins grow without bound;
once they are past log r, no prediction on the training set hangs on the weights any more.

Reference:
    Byrd and Lipton, ICML 2019, arXiv:1812.03372. Kish, Survey Sampling, 1965 (sample size).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dynamics.statistics import Estimate, proportion
from dynamics.summary import iter_epochs
from dynamics.traces import Run

REACH = 0.05
"""Share of samples in reach of the weights below which they count as without effect."""

_GRADIENTS = ("grad_norm", "output_grad_norm", "el2n")
"""Norms of a sample's gradient, best first; EL2N is the one at the logits, for cross-entropy."""


@dataclass(frozen=True, slots=True)
class WeightingVerdict:
    """What importance weights do in the last epoch recorded.

    Attributes:
        weight_share: Share of the weight that the up-weighted samples hold.
        gradient_share: Their share of the weighted gradient; NaN where no norm was recorded.
        effective_sample_size: Kish's, (Σw)² / Σw².
        n: Number of samples.
        in_reach: Share of samples whose margin is below the log of the weight ratio.
        stopped_from: First epoch from which the interval of `in_reach` lies below `REACH` until
            the end; None where it does not, or where no margin was recorded.
    """

    weight_share: float
    gradient_share: Estimate
    effective_sample_size: float
    n: int
    in_reach: Estimate
    stopped_from: int | None


def weighting_over_epochs(run: Run) -> pd.DataFrame:
    """Weights of a run against its gradients and margins, epoch by epoch in bounded memory.

    Args:
        run: A run that recorded weights.

    Returns:
        One row per epoch; none where no weight was recorded or all are equal. Columns: `epoch`,
        `n`; of the samples with a weight above the mean `sample_share`, `weight_share`,
        `gradient_share` and its linearised standard error `gradient_stderr`;
        `effective_sample_size`; `log_ratio`, natural logarithm of the groups' mean weights'
        ratio; `in_reach` and `n_in_reach`, samples with |margin| below it, of `n_margin` known;
        `gradient`, the column that the shares are of.
    """
    filled = {name for footer in run.footers() for name in footer.filled}
    gradient = next((name for name in _GRADIENTS if name in filled), None)
    columns = [c for c in ("weight", "margin", gradient) if c in filled and c is not None]
    if "weight" not in columns:
        return pd.DataFrame()
    found = [_weighting(rows, gradient) | {"epoch": e} for e, rows in iter_epochs(run, columns)]
    table = pd.DataFrame([row for row in found if "n" in row])
    return table if table.empty else table.assign(gradient=gradient)


def judge_weighting(table: pd.DataFrame) -> WeightingVerdict | None:
    """Whether importance weights still matter at the end of a run.

    Args:
        table: What `weighting_over_epochs` returned.

    Returns:
        The verdict, or None for an empty table: no weights, or all of them equal.
    """
    if table.empty:
        return None
    last = table.iloc[-1]
    half = 1.96 * last["gradient_stderr"]
    share = Estimate(
        float(last["gradient_share"]),
        float(last["gradient_share"] - half),
        float(last["gradient_share"] + half),
        int(last["n"]),
        f"linearised ratio, {last['gradient']}",
    )
    reach = [
        proportion(int(k), int(n))
        for k, n in zip(table["n_in_reach"], table["n_margin"], strict=True)
    ]
    over = [i for i, estimate in enumerate(reach) if not estimate.high < REACH]
    after = over[-1] + 1 if over else 0
    return WeightingVerdict(
        weight_share=float(last["weight_share"]),
        gradient_share=share,
        effective_sample_size=float(last["effective_sample_size"]),
        n=int(last["n"]),
        in_reach=reach[-1],
        stopped_from=int(table["epoch"].iloc[after]) if after < len(table) else None,
    )


def _weighting(rows: pd.DataFrame, gradient: str | None) -> dict[str, float]:
    """The row of one epoch, empty where the weights do not differ."""
    rows = rows[rows["weight"].notna()]
    weight = rows["weight"].to_numpy(dtype=np.float64)
    if not len(weight) or np.ptp(weight) <= 1e-6 * np.abs(weight).max():
        return {}
    up = weight > weight.mean()
    size = weight.sum() ** 2 / (weight**2).sum()
    row = {"n": len(weight), "sample_share": up.mean(), "effective_sample_size": size}
    row["weight_share"] = weight[up].sum() / weight.sum()
    row["gradient_share"], row["gradient_stderr"] = float("nan"), float("nan")
    if gradient is not None:
        norm = rows[gradient].to_numpy(dtype=np.float64)
        row["gradient_share"], row["gradient_stderr"] = _share(weight * norm, up)
    with np.errstate(divide="ignore"):  # weights of 0: everything is in their reach
        row["log_ratio"] = float(np.log(weight[up].mean()) - np.log(weight[~up].mean()))
    known = rows["margin"].dropna() if "margin" in rows else pd.Series(dtype=np.float64)
    row["n_margin"] = len(known)
    row["n_in_reach"] = int((known.abs() < row["log_ratio"]).sum())
    row["in_reach"] = row["n_in_reach"] / len(known) if len(known) else float("nan")
    return row


def _share(values: np.ndarray, of: np.ndarray) -> tuple[float, float]:
    """Share of a group in a sum, and its linearised standard error."""
    known = np.isfinite(values)
    values, of = values[known], of[known]
    total = values.sum()
    if not total > 0:
        return float("nan"), float("nan")
    share = values[of].sum() / total
    error = np.sqrt(((values * (of - share)) ** 2).sum()) / total
    return float(share), float(error)
