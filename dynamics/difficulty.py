"""How hard each sample is to learn, by the definitions of four papers, from a run's summary.

Definitions differ between papers and their code; docs/import.md sets them side by side. Here:
means and variances are over the presentations recorded, population variances, repeats left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from dynamics.statistics import rank_correlation

DEFINITIONS = {
    "forgetting": "1: times wrong right after right; infinite if never learned",
    "aum": "1: mean over presentations of z_y − max_{j≠y} z_j",
    "el2n": "1: mean over presentations of ‖softmax(z) − e_y‖₂",
    "grand": "1: mean over presentations of ‖∇ℓ‖₂ over all trainable parameters",
    "confidence": "1: mean over presentations of p_y",
    "variability": "1: population standard deviation over presentations of p_y",
    "correctness": "1: share of presentations classified as labelled",
}
"""Version and definition of each score; a change of one gets a new number."""

_EASY_WHEN_HIGH = ("aum", "confidence", "correctness")


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
        - `grand`: mean ‖∇ℓ‖₂ over the presentations; high is hard. Paul et al. take it in eval mode
          and average over runs; here it is as the trace recorded it.
        - `confidence`, `variability`: mean and population standard deviation of p_y (Swayamdipta
          et al., EMNLP 2020).
        - `correctness`: share of presentations classified as labelled; their code has the count.

        `attrs["definitions"]` holds the version and definition of each, `DEFINITIONS`.
    """
    known = _is_known(summary)
    never = known & summary["first_learned"].isna()
    forgetting = summary["n_forgotten"].astype(np.float64).mask(never, np.inf)
    share = summary["n_correct"] / summary["n_observed"]
    scores = pd.DataFrame(
        {
            "forgetting": forgetting.where(known),
            "aum": summary["aum"],
            "el2n": summary["mean_el2n"],
            "grand": summary["mean_grad_norm"],
            "confidence": summary["mean_p_true"],
            "variability": summary["std_p_true"],
            "correctness": share.where(known),
        },
        index=summary.index,
    )
    scores.attrs["definitions"] = dict(DEFINITIONS)
    return scores


def average_scores(scores: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean of the scores over runs that differ in their seed.

    Paul et al. average EL2N and GraNd over ten runs; Toneva et al. add up forgetting events over
    five. A sample never learned in one run is the hardest: its mean of `forgetting` is infinite.

    Args:
        scores: What `score_difficulty` returned of each run, of the same samples.

    Returns:
        The same columns, over the runs in which each is known.

    Raises:
        ValueError: If there is no run.
    """
    if not scores:
        raise ValueError("Scores are averaged over one run or more, but got none.")
    mean = pd.concat(scores).groupby(level=0).mean()
    mean.attrs = dict(scores[0].attrs)
    return mean


def rank_agreement(scores: pd.DataFrame) -> pd.DataFrame:
    """How far the scores agree on which samples are hard: Spearman's rank correlations.

    Scores of which high is easy are reversed, so that 1 is agreement throughout. `variability` is
    neither: it is high in between, and may well correlate negatively.

    Args:
        scores: What `score_difficulty` returned.

    Returns:
        One row per pair, `a, b, correlation, low, high, n`, scores in the order of the columns;
        those that were not recorded, or are all equal, are left out.
    """
    turned = {}
    for name in scores:
        values = scores[name].to_numpy(dtype=np.float64)
        finite = values[np.isfinite(values)]
        if len(finite):
            values = np.where(np.isposinf(values), finite.max() + 1, values)
        if len(np.unique(values[~np.isnan(values)])) > 1:
            turned[str(name)] = -values if name in _EASY_WHEN_HIGH else values
    records = []
    for a, b in combinations(turned, 2):
        found = rank_correlation(turned[a], turned[b])
        records.append((a, b, found.value, found.low, found.high, found.n))
    return pd.DataFrame(records, columns=["a", "b", "correlation", "low", "high", "n"])


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
