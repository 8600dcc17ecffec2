"""Importance sampling: which samples to draw, and whether it would pay.

With scores G_i ≥ 0, b of B samples are drawn with replacement with probability p_i = G_i / Σ G and
weight 1/(B p_i), which leaves the mean gradient unbiased. With G_i = ‖∇ℓ_i‖₂ its variance is the
least possible; Ĝ_i, the norm of the gradient at the network's output, is almost as good and costs a
forward pass.

Reference:
    Katharopoulos and Fleuret, ICML 2018, arXiv:1803.00942, Sec. 3.
"""

import numpy as np
import pandas as pd

from dynamics.statistics import Estimate, rank_correlation
from dynamics.summary import iter_epochs
from dynamics.traces import Run

SCORES = {
    "loss": "the sample's own loss",
    "bound": "Ĝ = ‖∂ℓ/∂z‖₂: `output_grad_norm`, or `el2n` where that was not recorded",
    "grad_norm": "‖∇ℓ‖₂ over all parameters: the optimum",
}
"""Proposals that a trace holds scores of."""

_COLUMNS = ["loss", "output_grad_norm", "el2n", "grad_norm"]


def output_bound(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Ĝ_i = ‖softmax(z_i) − e_y‖₂: the norm of the cross-entropy's gradient at the logits.

    It bounds the full norm up to a factor that the samples share. The same number is EL2N.

    Args:
        probabilities: Softmax of the logits, shape (N, C).
        labels: Class of each sample, shape (N,).

    Returns:
        Shape (N,).
    """
    residual = np.array(probabilities, dtype=np.float64)
    residual[np.arange(len(residual)), labels] -= 1
    return np.sqrt((residual**2).sum(1))


def sampling_distribution(scores: np.ndarray) -> np.ndarray:
    """Probability of each sample: its share of the scores.

    Args:
        scores: Shape (B,), not negative.

    Returns:
        Shape (B,), with sum 1; uniform if all scores are 0.

    Raises:
        ValueError: If there is no score, or one is negative or not finite.
    """
    scores = np.asarray(scores, dtype=np.float64) + 0.0  # a loss of −0 would have weight −∞
    if not len(scores) or not np.isfinite(scores).all() or scores.min() < 0:
        raise ValueError(
            "A sampling distribution needs finite scores of 0 or more, at least one; leave out "
            "samples whose score is missing."
        )
    largest = scores.max()
    if largest == 0:
        return np.full(len(scores), 1 / len(scores))
    scaled = scores / largest  # scores may be so small that their sum has no digits
    return scaled / scaled.sum()


def sampling_weights(distribution: np.ndarray) -> np.ndarray:
    """Weight 1/(B p_i) of a drawn sample, with which the mean stays unbiased.

    Args:
        distribution: Probability of each of B samples, shape (B,).

    Returns:
        Shape (B,); infinite where a sample is never drawn.
    """
    with np.errstate(divide="ignore", over="ignore"):
        return 1 / (len(distribution) * np.asarray(distribution, dtype=np.float64))


def variance_reduction(scores: np.ndarray) -> Estimate:
    """τ = √(1 + CV²): the batch that uniform sampling would need, over the one drawn, as √.

    τ is √(B Σ p_i²), in the authors' code 1/√(1 − ‖p − u‖²/Σ p²), which is the same number; CV is
    the population coefficient of variation of the scores. Were the scores the gradients' norms, τ²
    would be the ratio of second moments, uniform over importance sampling.

    Args:
        scores: Shape (B,); samples with a missing score are left out.

    Returns:
        τ, with a normal interval over samples (linearised; cut off at 1, below which τ cannot be);
        NaN without a sample. Their training averages τ over steps with a factor .9 from 0 on.
    """
    scores = np.asarray(scores, dtype=np.float64)
    p = scores[np.isfinite(scores)]
    n, method = len(p), "normal, linearised, over samples"
    if not n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, method)
    x = n * sampling_distribution(p)
    second = float((x**2).mean())
    tau = float(np.sqrt(second))
    influence = x**2 - second - 2 * second * (x - 1)
    error = float(influence.std()) / np.sqrt(n) / (2 * tau)
    low, high = max(tau - 1.96 * error, 1.0), tau + 1.96 * error
    if n == 1:
        low = high = float("nan")
    return Estimate(tau, low, high, n, method)


def switch_threshold(presample: int, batch: int) -> float:
    """τ above which importance sampling saves time: (B + 3b)/(3b).

    A forward pass over B samples and a step on b of them cost B + 3b, where a step on τ·b samples
    would cost 3 τ b: the backward pass is taken to cost two forward passes.

    Args:
        presample: Samples B that are scored.
        batch: Samples b that are drawn.

    Returns:
        The threshold; 2 for B = 3b.

    Raises:
        ValueError: If one of the two is not positive.
    """
    if presample < 1 or batch < 1:
        raise ValueError(
            f"Presample and batch are 1 or more, but are {presample} and {batch} samples."
        )
    return (presample + 3 * batch) / (3 * batch)


def second_moment_ratio(norms: np.ndarray, scores: np.ndarray) -> float:
    """Second moment of the sampled gradient, sampling by scores over sampling uniformly.

    (1/B²) Σ g_i²/p_i over (1/B) Σ g_i². The variance is the second moment minus ‖ḡ‖², in both, so
    below 1 the variance is smaller too, and the order of proposals is the same.

    Args:
        norms: ‖∇ℓ_i‖₂, shape (B,).
        scores: What the samples are drawn by, shape (B,).

    Returns:
        The ratio; infinite if a sample with a gradient is never drawn, missing if none has one.
    """
    norms = np.asarray(norms, dtype=np.float64)
    largest = norms.max(initial=0)
    if largest == 0:
        return float("nan")
    squares = (norms / largest) ** 2
    pull = squares > 0
    weights = sampling_weights(sampling_distribution(scores))[pull]
    return float((squares[pull] * weights).sum() / squares.sum())


def sampling_error(norms: np.ndarray, scores: np.ndarray) -> float:
    """Σ (p_i − p*_i)²: how far a proposal is from that by full gradient norms.

    Args:
        norms: ‖∇ℓ_i‖₂, shape (B,).
        scores: What the samples are drawn by, shape (B,).

    Returns:
        The sum of squares.
    """
    distance = sampling_distribution(scores) - sampling_distribution(norms)
    return float((distance**2).sum())


def importance_each_epoch(run: Run, *, presample: int, batch: int) -> pd.DataFrame:
    """Would importance sampling pay now? τ of each score in each epoch, beside the threshold.

    Scores are those recorded at each sample's presentation, so that an epoch mixes networks of its
    beginning and its end. τ is that of all samples of the epoch; in a random presample it is on
    average a little smaller.

    Args:
        run: A run with `loss`, and `output_grad_norm`, `el2n` or `grad_norm` recorded.
        presample: Samples B that would be scored.
        batch: Samples b that would be drawn.

    Returns:
        One row per epoch and recorded score: `epoch, score, tau, low, high, threshold, pays, n`,
        where `pays` is τ > threshold.
    """
    threshold = switch_threshold(presample, batch)
    records = []
    for epoch, rows in iter_epochs(run, _COLUMNS):
        for name, values in _scores(rows).items():
            tau = variance_reduction(values)
            record = {"epoch": epoch, "score": name, "tau": tau.value, "low": tau.low}
            record |= {"high": tau.high, "threshold": threshold, "pays": tau.value > threshold}
            records.append(record | {"n": tau.n})
    columns = ["epoch", "score", "tau", "low", "high", "threshold", "pays", "n"]
    return pd.DataFrame(records, columns=columns)


def proposals_each_epoch(run: Run) -> pd.DataFrame:
    """How good loss and Ĝ are in place of the full gradient norm, in each epoch.

    Args:
        run: A run with `grad_norm` recorded, and `loss`, `output_grad_norm` or `el2n`.

    Returns:
        One row per epoch and score, the full norm itself and `uniform` among them: `epoch, score,
        correlation` (Spearman, with the full norm), `low, high, pearson, sampling_error,
        second_moment` (over uniform) and `n`, over samples with both recorded.
    """
    records = []
    for epoch, rows in iter_epochs(run, _COLUMNS):
        scores = _scores(rows)
        if "grad_norm" not in scores:
            continue
        scores["uniform"] = np.ones(len(rows))
        for name, values in scores.items():
            known = np.isfinite(values) & np.isfinite(scores["grad_norm"])
            x, norms = values[known], scores["grad_norm"][known]
            records.append({"epoch": epoch, "score": name} | _compare(x, norms))
    columns = ["epoch", "score", "correlation", "low", "high", "pearson", "sampling_error"]
    return pd.DataFrame(records, columns=[*columns, "second_moment", "n"])


def _compare(scores: np.ndarray, norms: np.ndarray) -> dict[str, float]:
    spearman = rank_correlation(scores, norms)
    varies = len(scores) > 1 and np.ptp(scores) > 0 and np.ptp(norms) > 0
    return {
        "correlation": spearman.value,
        "low": spearman.low,
        "high": spearman.high,
        "pearson": float(np.corrcoef(scores, norms)[0, 1]) if varies else float("nan"),
        "sampling_error": sampling_error(norms, scores) if len(scores) else float("nan"),
        "second_moment": second_moment_ratio(norms, scores) if len(scores) else float("nan"),
        "n": len(scores),
    }


def _scores(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Scores that were recorded in an epoch; one that goes below 0 cannot be sampled by."""
    values = {name: rows[name].to_numpy(dtype=np.float64) for name in _COLUMNS}
    at_output = np.isfinite(values["output_grad_norm"]).any()
    values["bound"] = values["output_grad_norm" if at_output else "el2n"]
    known = {name: values[name] for name in SCORES if np.isfinite(values[name]).any()}
    return {name: score for name, score in known.items() if np.nanmin(score) >= 0}
