"""Emphasis: how hard a loss or a weighting scheme pulls on a sample, by how well it is fitted.

With p = softmax(z)_y, the emphasis w(p) of a sample is ‖∂L/∂z‖₁, the L1 norm of its gradient at the
logits. All schemes here share cross-entropy's direction and differ in w; the emphasis density
h(p) = w(p) / ∫₀¹ w dp compares them whatever their learning rate.

Reference:
    Wang et al., Derivative Manipulation, arXiv:1905.11233, Sec. 3, and IMAE, arXiv:1903.12141.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import integrate

from dynamics.summary import iter_epochs
from dynamics.traces import Run

Emphasis = Callable[[np.ndarray], np.ndarray]

_BINS = 20


def cross_entropy_emphasis(p: np.ndarray) -> np.ndarray:
    """2(1 − p): that of −log p. Its mode is 0."""
    return 2 * (1 - p)


def mae_emphasis(p: np.ndarray) -> np.ndarray:
    """2p(1 − p): that of 1 − p. The authors' slides have 2(1 − p), and so twice this. Mode ½."""
    return 2 * p * (1 - p)


def mse_emphasis(p: np.ndarray) -> np.ndarray:
    """4p(1 − p)²: that of (1 − p)², the squared error of the label's probability. Mode 1/3."""
    return 4 * p * (1 - p) ** 2


def gce_emphasis(p: np.ndarray, q: float) -> np.ndarray:
    """2pᵠ(1 − p): that of (1 − pᵠ)/q. Mode q/(q + 1)."""
    return 2 * p**q * (1 - p)


def dm_emphasis(p: np.ndarray, mode: float, variance: float) -> np.ndarray:
    """Derivative manipulation: exp(β p^λ (1 − p)). Its mode is λ/(λ + 1).

    Args:
        p: Probability of the label.
        mode: λ ≥ 0; with 0 the worst fitted sample is emphasised most.
        variance: β ≥ 0; with 0 all samples are alike.

    Returns:
        Emphasis, of the shape of p.
    """
    return np.exp(variance * p**mode * (1 - p))


def imae_emphasis(p: np.ndarray, variance: float = 8.0) -> np.ndarray:
    """IMAE: exp(T p(1 − p)), derivative manipulation with λ = 1. T = 8 is the authors'."""
    return dm_emphasis(p, 1, variance)


def emphasis_mode(mode: float) -> float:
    """Where the emphasis of derivative manipulation is largest: ψ = λ/(λ + 1)."""
    return mode / (mode + 1)


def weight_on_cross_entropy(p: np.ndarray, emphasis: Emphasis) -> np.ndarray:
    """Factor on a sample's cross-entropy with which its gradient has the given emphasis.

    Args:
        p: Probability of the label, below 1.
        emphasis: The scheme.

    Returns:
        w(p) / (2(1 − p)).
    """
    return emphasis(p) / cross_entropy_emphasis(p)


def emphasis_density(p: np.ndarray, emphasis: Emphasis) -> np.ndarray:
    """h(p) = w(p) / ∫₀¹ w dp.

    Args:
        p: Probabilities, any shape.
        emphasis: The scheme.

    Returns:
        Densities, of the shape of p.
    """
    integral = integrate.quad(lambda x: float(emphasis(np.asarray(x))), 0, 1)[0]
    return emphasis(np.asarray(p, dtype=np.float64)) / float(integral)


def tabulate_emphasis(p_true: np.ndarray, weight: np.ndarray, *, bins: int = _BINS) -> pd.DataFrame:
    """Estimate the emphasis density of a scheme from samples that it has weighted.

    Emphasis of a sample is weight · 2(1 − p): cross-entropy, weighted. Where the weight is
    relative to the mean of its batch, so is the emphasis.

    Args:
        p_true: Probability of each sample's label, shape (N,); missing ones are left out.
        weight: Weight on its cross-entropy, shape (N,); missing ones are left out.
        bins: Bins of equal width on [0, 1].

    Returns:
        One row per bin, as of `emphasis_each_epoch`, without `epoch`.
    """
    return _finish(_sums(p_true, weight, bins))


def emphasis_each_epoch(run: Run, *, bins: int = _BINS) -> pd.DataFrame:
    """Estimate the emphasis density of a run's scheme in each epoch, in one pass.

    Args:
        run: A run with `p_true` and `weight` recorded, trained with weighted cross-entropy.
        bins: Bins of equal width on [0, 1].

    Returns:
        One row per epoch and bin: `epoch, left, right, n, p` (mean), `emphasis` (mean weight ·
        2(1 − p)), `stderr`, `density` (emphasis over its integral, bins without a sample left out),
        `density_stderr` (the integral taken as known), `share` (of the epoch's total emphasis:
        what the network is trained on in fact). Missing where a bin has no sample.
    """
    tables = []
    for epoch, rows in iter_epochs(run, ["p_true", "weight"]):
        p_true, weight = (rows[name].to_numpy(dtype=np.float64) for name in ("p_true", "weight"))
        table = _finish(_sums(p_true, weight, bins))
        table.insert(0, "epoch", epoch)
        tables.append(table)
    if not tables:
        return _finish(np.zeros((4, bins))).assign(epoch=0).head(0)
    return pd.concat(tables, ignore_index=True)


def beside_closed_form(table: pd.DataFrame, emphasis: Emphasis) -> np.ndarray:
    """What an estimated density should be under a scheme, at the mean p of each bin.

    Args:
        table: What `tabulate_emphasis` returned.
        emphasis: The scheme.

    Returns:
        One density per row of the table, normalised over the bins that have samples; missing in
        the others.
    """
    value = emphasis(table["p"].to_numpy())
    return value * len(table) / np.nansum(value)


def _sums(p_true: np.ndarray, weight: np.ndarray, bins: int) -> np.ndarray:
    """Number, Σp, Σw and Σw² of each bin, shape (4, bins)."""
    known = np.isfinite(p_true) & np.isfinite(weight)
    p = np.clip(np.asarray(p_true, np.float64)[known], 0, 1)
    w = np.asarray(weight, np.float64)[known] * cross_entropy_emphasis(p)
    at = np.minimum((p * bins).astype(np.int64), bins - 1)
    return np.stack([np.bincount(at, x, bins) for x in (np.ones(len(p)), p, w, w**2)])


def _finish(sums: np.ndarray) -> pd.DataFrame:
    n, p, total, squares = sums
    bins = len(n)
    count = np.where(n > 0, n, np.nan)
    mean = total / count
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0) * count / np.maximum(count - 1, 1))
    stderr = np.where(n > 1, spread / np.sqrt(count), np.nan)
    integral = np.nansum(mean) / bins
    scale = 1 / integral if integral > 0 else np.nan
    edges = np.arange(bins + 1) / bins
    table = {"left": edges[:-1], "right": edges[1:], "n": n.astype(np.int64), "p": p / count}
    table |= {"emphasis": mean, "stderr": stderr}
    table |= {"density": mean * scale, "density_stderr": stderr * scale}
    share = total / total.sum() if total.sum() > 0 else np.full(bins, np.nan)
    return pd.DataFrame(table | {"share": np.where(n > 0, share, np.nan)})
