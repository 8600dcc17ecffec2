"""Which labels are wrong by AUM: threshold samples that are wrong on purpose say where to cut.

A few samples are relabelled to a class of their own, C, which no other sample has. None of them can
be right, so a sample whose AUM is no higher than nearly all of theirs is suspect.

Reference:
    Pleiss, Zhang, Elenberg and Weinberger, NeurIPS 2020, Sec. 4.
"""

import numpy as np
import pandas as pd

from dynamics.statistics import Estimate, bootstrap


def choose_threshold_samples(n: int, *, n_classes: int, n_sets: int = 2, seed: int) -> np.ndarray:
    """Draw disjoint sets of samples to be relabelled, one set for each run.

    A set has ⌊N/(C + 1)⌋ samples, so that the new class is as large as the others become. Their
    code takes N // C.

    Args:
        n: Number of samples N.
        n_classes: Number of classes C, without the new one.
        n_sets: Number of sets; a sample is judged by the runs in which it kept its label.
        seed: Seed of the choice.

    Returns:
        Indices, shape (n_sets, ⌊N/(C + 1)⌋).

    Raises:
        ValueError: If there are too few samples for sets of that size.
    """
    size = n // (n_classes + 1)
    if not size or size * n_sets > n:
        raise ValueError(
            f"{n_sets} disjoint sets of ⌊N/(C + 1)⌋ samples need 1 to N in all, but N is {n} and "
            f"C is {n_classes}."
        )
    return np.random.default_rng(seed).permutation(n)[: size * n_sets].reshape(n_sets, size)


def aum_threshold(
    aum: np.ndarray, *, percentile: float = 99.0, draws: int = 500, seed: int = 0
) -> Estimate:
    """AUM below which a label is taken for wrong: a high percentile of the threshold samples'.

    Args:
        aum: AUM of the threshold samples, shape (T,); missing ones are left out.
        percentile: Which percentile; the authors' 99.
        draws: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        α, with a bootstrap interval over the threshold samples. With few of them the percentile is
        near their largest value, and the interval too short above.

    Raises:
        ValueError: If there is no threshold sample.
    """
    known = np.asarray(aum, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        raise ValueError(
            "No threshold sample has an AUM. Relabel those of choose_threshold_samples to class C, "
            "train with C + 1 outputs, and give the AUM of these."
        )
    return bootstrap(
        lambda rows: float(np.percentile(known[rows], percentile)),
        len(known),
        draws=draws,
        seed=seed,
    )


def flag_by_threshold(
    summary: pd.DataFrame, *, threshold_class: int, percentile: float = 99.0
) -> pd.DataFrame:
    """Flag the samples of one run whose AUM is not above the threshold samples'.

    Args:
        summary: What `summarise_samples` returned, with `label` of the roster and `aum`; up to an
            epoch before the network memorises.
        threshold_class: The class C of the threshold samples.
        percentile: Percentile of theirs to cut at.

    Returns:
        Index `sample_id` of all other samples; `aum, threshold` and `flagged` (AUM ≤ threshold).
    """
    is_threshold = summary["label"] == threshold_class
    cut = aum_threshold(
        summary.loc[is_threshold, "aum"].to_numpy(), percentile=percentile, draws=1
    ).value
    rest = summary.loc[~is_threshold, ["aum"]]
    return rest.assign(threshold=cut, flagged=rest["aum"] <= cut)
