"""Label noise as pure functions of (labels, seed). The true class is never among the wrong ones.

Exactly round(ratio · N) labels change, so the ratio is a property of the data and not a random one.
Conventions differ between papers: Chen et al., Ren et al. and Wang et al. exclude the true class as
here; Arazo et al. draw from all classes, so that their level 0.5 is 0.45 here for ten classes.
"""

from typing import Literal, get_args

import numpy as np

NoiseKind = Literal["symmetric", "asymmetric"]
"""`symmetric`: to any other class, equally likely. `asymmetric`: each class to the next one."""


def corrupt_labels(
    labels: np.ndarray, ratio: float, *, kind: NoiseKind, n_classes: int, seed: int
) -> np.ndarray:
    """Change a share of the labels to wrong ones.

    Args:
        labels: True labels, shape (N,), integers below `n_classes`; not modified.
        ratio: Share of labels to change, 0 to 1.
        kind: Where a changed label goes.
        n_classes: Number of classes C, at least 2.
        seed: Seed of the choice.

    Returns:
        Noisy labels, shape (N,); exactly round(ratio · N) of them differ from `labels`.

    Raises:
        ValueError: If the ratio, the kind or a label is out of range.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"A noise ratio lies between 0 and 1, but is {ratio}.")
    if kind not in get_args(NoiseKind):
        raise ValueError(f"Noise is one of {', '.join(get_args(NoiseKind))}, but is {kind!r}.")
    if n_classes < 2:
        raise ValueError(f"Wrong labels need at least 2 classes, but n_classes is {n_classes}.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < n_classes:
        raise ValueError(
            f"Labels go from {labels.min()} to {labels.max()}, but n_classes is {n_classes}."
        )
    rng = np.random.default_rng(seed)
    flipped = rng.permutation(len(labels))[: round(ratio * len(labels))]
    shift = rng.integers(1, n_classes, len(flipped)) if kind == "symmetric" else 1
    noisy = labels.astype(np.int64)
    noisy[flipped] = (noisy[flipped] + shift) % n_classes
    return noisy
