"""Noisy labels, as a pure function of (labels, ratio, kind, convention, seed).

Exact numbers of labels are drawn, so the ratio is a property of the data and not a random one.
Conventions differ between papers: Chen et al., Ren et al. and Wang et al. exclude the true class
from where a drawn label may go, the default here; Arazo et al. draw from all classes, so that their
level 0.5 leaves 0.45 of the labels wrong for ten classes. A study states which in its
configuration.
"""

from typing import Literal, get_args

import numpy as np

from dynamics.noise_law import (
    CLASS_DEPENDENT_SHARES,
    NoiseKind,
    class_dependent_rates,
    highest_ratio,
)

TrueClass = Literal["excluded", "included"]
"""Whether a drawn label may be the true one again."""


def corrupt_labels(
    labels: np.ndarray,
    ratio: float,
    *,
    kind: NoiseKind,
    n_classes: int,
    seed: int,
    true_class: TrueClass = "excluded",
) -> np.ndarray:
    """Change a share of the labels to wrong ones.

    Args:
        labels: True labels, shape (N,), integers below `n_classes`; not modified.
        ratio: Share of labels that are drawn anew, 0 to `highest_ratio(kind)`.
        kind: Where a drawn label goes, see `NoiseKind`.
        n_classes: Number of classes C, at least 2, for class-dependent noise at least 3.
        seed: Seed of the choice.
        true_class: `included` lets symmetric noise draw the true class again: then about
            ratio · (C − 1)/C of the labels are wrong.

    Returns:
        Noisy labels, shape (N,). With the true class excluded exactly round(ratio · N) of them
        differ from `labels`; for class-dependent noise round(rate of c · N_c) of each class c.

    Raises:
        ValueError: If the ratio, the kind, the convention or a label is out of range.
    """
    _check(labels, ratio, kind, n_classes, true_class)
    rng = np.random.default_rng(seed)
    noisy = labels.astype(np.int64)
    if kind == "class-dependent":
        flipped = _choose_by_class(labels, class_dependent_rates(ratio, n_classes), rng)
        shift = rng.choice([1, 2], len(flipped), p=CLASS_DEPENDENT_SHARES)
    else:
        flipped = rng.permutation(len(labels))[: round(ratio * len(labels))]
        lowest = 0 if true_class == "included" else 1
        symmetric = kind == "symmetric"
        shift = rng.integers(lowest, n_classes, len(flipped)) if symmetric else np.array(1)
    noisy[flipped] = (noisy[flipped] + shift) % n_classes
    return noisy


def _choose_by_class(labels: np.ndarray, rates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of exactly each class's share."""
    chosen = []
    for label, rate in enumerate(rates):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(rows[: round(float(rate) * len(rows))])
    return np.concatenate(chosen)


def _check(
    labels: np.ndarray, ratio: float, kind: NoiseKind, n_classes: int, true_class: TrueClass
) -> None:
    if kind not in get_args(NoiseKind):
        raise ValueError(f"Noise is one of {', '.join(get_args(NoiseKind))}, but is {kind!r}.")
    if not 0 <= ratio <= highest_ratio(kind):
        raise ValueError(
            f"A ratio of {kind} noise lies between 0 and {highest_ratio(kind):.3g}, but is {ratio}."
        )
    if true_class not in get_args(TrueClass):
        raise ValueError(f"true_class is excluded or included, but is {true_class!r}.")
    if true_class == "included" and kind != "symmetric":
        raise ValueError(f"Only symmetric noise can include the true class, but this is {kind}.")
    least = 3 if kind == "class-dependent" else 2
    if n_classes < least:
        raise ValueError(
            f"{kind.capitalize()} noise needs at least {least} classes, but n_classes is "
            f"{n_classes}."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(
            f"Labels go from {labels.min()} to {labels.max()}, but n_classes is {n_classes}."
        )
