"""How hard each sample is to learn, by the definitions of four papers, from a run's summary.

Definitions differ between papers and their code; docs/import.md sets them side by side. Here:
means and variances are over the presentations recorded, population variances, repeats left out.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class LearningCounts:
    """How many samples were learned, and kept.

    Attributes:
        n: Samples that were seen with `correct` or `predicted` known at least once.
        n_never_learned: Never classified as labelled.
        n_kept: Learned, and never wrong again at a later presentation (Toneva et al.'s
            "unforgettable").
        n_forgotten: Learned, and forgotten at least once.
    """

    n: int
    n_never_learned: int
    n_kept: int
    n_forgotten: int


def score_difficulty(summary: pd.DataFrame) -> pd.DataFrame:
    """The papers' scores of each sample, under their names.

    Args:
        summary: What `summarise_samples` returned.

    Returns:
        Index `sample_id`; missing where what a score needs was not recorded:

        - `forgetting`: forgetting events; infinite for a sample never learned, which therefore
          sorts as the hardest. Toneva et al. (ICLR 2019) put the number of presentations there and
          cartography's code 1000; with either, such a sample can tie with others.
        - `aum`: mean margin (Pleiss et al., NeurIPS 2020); low is hard.
        - `el2n`: mean ‖p − e_y‖₂ over the presentations; high is hard. Paul et al. (NeurIPS 2021)
          average over runs, early in training: summarise with `until_epoch` for one run's share.
        - `confidence`, `variability`: mean and population standard deviation of p_y (Swayamdipta
          et al., EMNLP 2020).
        - `correctness`: share of presentations classified as labelled; their code has the count.
    """
    known = _is_known(summary)
    never = known & summary["first_learned"].isna()
    forgetting = summary["n_forgotten"].astype(np.float64).mask(never, np.inf)
    share = summary["n_correct"] / summary["n_observed"]
    return pd.DataFrame(
        {
            "forgetting": forgetting.where(known),
            "aum": summary["aum"],
            "el2n": summary["mean_el2n"],
            "confidence": summary["mean_p_true"],
            "variability": summary["std_p_true"],
            "correctness": share.where(known),
        },
        index=summary.index,
    )


def count_learning(summary: pd.DataFrame) -> LearningCounts | None:
    """How many samples were learned, and kept.

    Args:
        summary: What `summarise_samples` returned.

    Returns:
        The counts, or None if no sample was ever classified as labelled: then it was not recorded,
        or nothing was learned, which the summary does not tell apart.
    """
    known = _is_known(summary)
    if not known.any():
        return None
    learned = summary["first_learned"].notna()
    forgotten = learned & (summary["n_forgotten"] > 0)
    return LearningCounts(
        n=int(known.sum()),
        n_never_learned=int((known & ~learned).sum()),
        n_kept=int((learned & ~forgotten).sum()),
        n_forgotten=int(forgotten.sum()),
    )


def rank_hardest(summary: pd.DataFrame) -> pd.Series | None:
    """Samples from the hardest on, by the first of the scores that was recorded.

    Args:
        summary: What `summarise_samples` returned.

    Returns:
        Score of each sample, index `sample_id`, hardest first: `aum`, else `confidence` (both from
        the lowest), else `forgetting` (from the highest), and among equals those seldom right
        first; the name says which. None if none was recorded.
    """
    scores = score_difficulty(summary)
    for name, from_lowest in (("aum", True), ("confidence", True), ("forgetting", False)):
        if scores[name].notna().any():
            order = scores.sort_values([name, "correctness"], ascending=[from_lowest, True])
            return order[name].dropna()
    return None


def _is_known(summary: pd.DataFrame) -> pd.Series:
    """Whether `correct` was recorded: told by whether any sample was ever right."""
    seen = summary["n_observed"].fillna(0) > 0
    return seen & bool(summary["first_learned"].notna().any())
