"""Selecting clean labels by held-out prediction (INCV): how many, how pure, what to discard.

A network trained on one half of the noisy data predicts the other. Samples whose prediction agrees
with their label are selected; of how many agree, the law P(ε) gives the noise ratio.

Reference:
    Chen, Liao, Chen and Zhang, ICML 2019, arXiv:1905.05040, Sec. 4, Algorithm 1.
"""

from dataclasses import dataclass

import numpy as np

from dynamics.noise_law import NoiseKind, invert_law
from dynamics.statistics import Estimate, proportion


@dataclass(frozen=True)
class Selection:
    """What one iteration of cross-validation does with a held-out half.

    Attributes:
        selected: Whether the prediction agrees with the label, shape (N,).
        discarded: Whether the sample's loss is among the largest, and it was not selected,
            shape (N,).
        noise_ratio: ε̂ used.
    """

    selected: np.ndarray
    discarded: np.ndarray
    noise_ratio: float

    @property
    def n_selected(self) -> int:
        """Number of samples selected."""
        return int(self.selected.sum())

    @property
    def n_discarded(self) -> int:
        """Number of samples discarded for good."""
        return int(self.discarded.sum())

    @property
    def n_left(self) -> int:
        """Number of samples that are candidates again in the next iteration."""
        return len(self.selected) - self.n_selected - self.n_discarded


def estimate_noise_ratio(
    predicted: np.ndarray, labels: np.ndarray, *, kind: NoiseKind, n_classes: int
) -> Estimate:
    """ε̂ from how many held-out predictions agree with their noisy labels.

    The law needs a network that has memorised its own noisy labels; one that has not agrees more
    often, and ε̂ is too low. Noise past the law's minimum cannot be told from less.

    Args:
        predicted: Predicted classes of held-out samples, shape (N,).
        labels: Their noisy labels, shape (N,).
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        ε̂ on the law's falling branch. The interval is Wilson's for the agreement, mapped through
        the law: it covers the sampling of the held-out half and not the law being wrong.
    """
    agreement = proportion(int((predicted == labels).sum()), len(labels))
    if not agreement.n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, "law of Chen et al., Wilson")
    value, high, low = (
        invert_law(accuracy, kind=kind, n_classes=n_classes)
        for accuracy in (agreement.value, agreement.low, agreement.high)
    )
    return Estimate(value, low, high, agreement.n, "law of Chen et al., Wilson")


def select_labels(
    predicted: np.ndarray,
    labels: np.ndarray,
    losses: np.ndarray,
    *,
    noise_ratio: float,
    kind: NoiseKind,
) -> Selection:
    """Select the held-out samples whose prediction agrees, and discard the worst of the others.

    n = ⌊min(2, ε̂/(1 − ε̂)) · number selected⌋ samples with the largest losses are discarded, for
    symmetric noise only. Their code may discard a selected sample, which stays selected, so it is
    not counted here; and where n is 0 its slice `[-0:]` takes every sample, here none.

    Args:
        predicted: Predicted classes of held-out samples, shape (N,).
        labels: Their noisy labels, shape (N,).
        losses: Their losses against these, shape (N,).
        noise_ratio: ε̂ of the first iteration.
        kind: Where wrong labels go.

    Returns:
        The selection.

    Raises:
        ValueError: If the noise ratio is not between 0 and 1, or a loss is missing.
    """
    if not 0 <= noise_ratio <= 1:
        raise ValueError(f"A noise ratio lies between 0 and 1, but is {noise_ratio}.")
    if np.isnan(losses).any():
        raise ValueError("Samples to discard are found by their losses, but one is missing.")
    selected = np.asarray(predicted) == np.asarray(labels)
    factor = 2.0 if noise_ratio == 1 else min(2.0, noise_ratio / (1 - noise_ratio))
    n_worst = min(int(factor * selected.sum()), len(selected)) if kind == "symmetric" else 0
    worst = np.argsort(losses, kind="stable")[len(selected) - n_worst :]
    discarded = np.zeros(len(selected), dtype=bool)
    discarded[worst] = True
    return Selection(selected, discarded & ~selected, noise_ratio)


def label_precision(selected: np.ndarray, clean: np.ndarray) -> Estimate:
    """Share of clean labels among those selected, with Wilson's interval.

    Args:
        selected: Whether each sample was selected, shape (N,), boolean.
        clean: Whether its label is true, shape (N,), boolean.

    Returns:
        |selected ∩ clean| / |selected|.
    """
    return proportion(int((selected & clean).sum()), int(selected.sum()))


def label_recall(selected: np.ndarray, clean: np.ndarray) -> Estimate:
    """Share of the clean labels that was selected, with Wilson's interval.

    Args:
        selected: Whether each sample was selected, shape (N,), boolean.
        clean: Whether its label is true, shape (N,), boolean.

    Returns:
        |selected ∩ clean| / |clean|.
    """
    return proportion(int((selected & clean).sum()), int(clean.sum()))


def selected_noise_ratio(ratio: float, *, kind: NoiseKind, n_classes: int) -> float:
    """Noise left among the selected, ε²/(ε² + k(1 − ε)²): the drop rate of their Co-teaching.

    Args:
        ratio: Noise ratio ε.
        kind: Where wrong labels go: k = C − 1 symmetric, 1 asymmetric.
        n_classes: Number of classes C.

    Returns:
        1 − label precision by the law.
    """
    wrong_ways = n_classes - 1 if kind == "symmetric" else 1
    return ratio**2 / (ratio**2 + wrong_ways * (1 - ratio) ** 2)
