"""The law of label noise: accuracy, label precision and label recall against noise ratio.

A network that fits its noisy training labels fully predicts like the noise itself, say Chen et al.:
the confusion of its predictions is the noise's transition matrix T. Its accuracy on held-out
*noisy* labels is then Σ_j T_cj², averaged over classes c, and for all kinds of noise here

    P(ε) = K(ε) + m q ε²,   K(ε) = 1 − 2ε + m ε²

with noise ratio ε (share of wrong labels: the true class is excluded), m the mean of the squared
rates of the classes in units of ε², and q = Σ of the squared shares of the classes that a wrong
label goes to. Symmetric noise has m = 1, q = 1/(C − 1), and asymmetric noise m = q = 1, which
gives the paper's (1 − ε)² + ε²/(C − 1) and (1 − ε)² + ε².

Reference:
    Chen, Liao, Chen and Zhang, ICML 2019, arXiv:1905.05040, Sec. 3.
"""

from typing import Literal

import numpy as np

NoiseKind = Literal["symmetric", "asymmetric", "class-dependent"]
"""`symmetric`: to any other class, equally likely. `asymmetric`: each class to the next one.
`class-dependent`: class c at a rate from ε/2 (the first) to 3ε/2 (the last), to the next class in
two thirds of the cases and to the one after it in one third."""

CLASS_DEPENDENT_SHARES = (2 / 3, 1 / 3)


def class_dependent_rates(ratio: float, n_classes: int) -> np.ndarray:
    """Share of wrong labels in each class under class-dependent noise.

    Args:
        ratio: Mean over classes ε.
        n_classes: Number of classes C.

    Returns:
        Shape (C,), rising evenly from ε/2 to 3ε/2.
    """
    return ratio * np.linspace(0.5, 1.5, n_classes)


def highest_ratio(kind: NoiseKind) -> float:
    """Highest noise ratio that a kind of noise can have."""
    return 2 / 3 if kind == "class-dependent" else 1.0


def transition_matrix(ratio: float, *, kind: NoiseKind, n_classes: int) -> np.ndarray:
    """Probability of each given label, for each true one.

    Args:
        ratio: Noise ratio ε.
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        T of shape (C, C): rows are true classes and add up to 1.
    """
    identity = np.eye(n_classes)
    if kind == "symmetric":
        return (1 - ratio) * identity + ratio * (1 - identity) / (n_classes - 1)
    following = np.roll(identity, 1, axis=1)
    if kind == "asymmetric":
        return (1 - ratio) * identity + ratio * following
    rates = class_dependent_rates(ratio, n_classes)[:, None]
    near, far = CLASS_DEPENDENT_SHARES
    wrong = near * following + far * np.roll(identity, 2, axis=1)
    return np.asarray((1 - rates) * identity + rates * wrong)


def law_accuracy(ratio: np.ndarray | float, *, kind: NoiseKind, n_classes: int) -> np.ndarray:
    """Accuracy on held-out noisy labels of a network that has memorised its own.

    Args:
        ratio: Noise ratio ε, the share of labels that are wrong (true class excluded).
        kind: Where wrong labels go.
        n_classes: Number of classes C; they are taken to be equally frequent.

    Returns:
        P(ε), of the shape of `ratio`.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    m, q = _moments(kind, n_classes)
    return _kept(ratio, m) + m * q * ratio**2


def law_label_precision(
    ratio: np.ndarray | float, *, kind: NoiseKind, n_classes: int
) -> np.ndarray:
    """Share of clean labels among the held-out samples whose prediction is their noisy label.

    Args:
        ratio: Noise ratio ε.
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        K(ε) / P(ε).
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    m, _ = _moments(kind, n_classes)
    return _kept(ratio, m) / law_accuracy(ratio, kind=kind, n_classes=n_classes)


def law_label_recall(ratio: np.ndarray | float, *, kind: NoiseKind, n_classes: int) -> np.ndarray:
    """Share of the held-out samples with a clean label whose prediction is that label.

    Args:
        ratio: Noise ratio ε, below 1.
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        K(ε)/(1 − ε), which is 1 − ε for symmetric and asymmetric noise.
    """
    ratio = np.asarray(ratio, dtype=np.float64)
    m, _ = _moments(kind, n_classes)
    return _kept(ratio, m) / (1 - ratio)


def invert_law(accuracy: float, *, kind: NoiseKind, n_classes: int) -> float:
    """Noise ratio at which the law gives this accuracy.

    P falls from 1 to a minimum at 1/a with a = m (1 + q), which is (C − 1)/C for symmetric noise
    and 1/2 for asymmetric, and rises after it. The falling branch is inverted,
    ε̂ = (1 − √(1 − a (1 − P)))/a, and an accuracy below the minimum gives its place.

    Args:
        accuracy: Accuracy on held-out noisy labels.
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        ε̂, between 0 and the minimum's place.
    """
    lowest_at = lowest_point(kind=kind, n_classes=n_classes)
    inside = 1 - (1 - min(accuracy, 1.0)) / lowest_at
    return float(lowest_at * (1 - np.sqrt(max(inside, 0.0))))


def lowest_point(*, kind: NoiseKind, n_classes: int) -> float:
    """Noise ratio at which the law is lowest; beyond it the law cannot be inverted."""
    m, q = _moments(kind, n_classes)
    return 1 / (m * (1 + q))


def _kept(ratio: np.ndarray, m: float) -> np.ndarray:
    """K(ε): probability that prediction and label are both the true class."""
    return np.asarray(1 - 2 * ratio + m * ratio**2)


def _moments(kind: NoiseKind, n_classes: int) -> tuple[float, float]:
    if kind == "symmetric":
        return 1.0, 1 / (n_classes - 1)
    if kind == "asymmetric":
        return 1.0, 1.0
    rates = class_dependent_rates(1.0, n_classes)
    return float((rates**2).mean()), sum(share**2 for share in CLASS_DEPENDENT_SHARES)
