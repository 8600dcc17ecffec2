"""Panels of a run's report on scores of samples: calibration, agreement, importance sampling."""

import pandas as pd

from dynamics.calibration import brier_score, calibration_error, tabulate_reliability
from dynamics.difficulty import rank_agreement, score_difficulty
from dynamics.importance import importance_each_epoch
from dynamics.traces import Run
from reports.page import Panel
from reports.score_figures import (
    plot_importance_gain,
    plot_posterior_calibration,
    plot_score_agreement,
)

_PRESAMPLE, _BATCH = 3, 1  # only their ratio counts: three samples are scored for each one drawn


def score_panels(
    run: Run,
    summary: pd.DataFrame,
    suspects: pd.DataFrame | None,
    flipped: pd.Series | None,
) -> list[Panel]:
    """Panels on the scores of a run's samples.

    Args:
        run: The run.
        summary: What `summarise_samples` returned.
        suspects: What `rank_suspects` returned, if a mixture could be fitted.
        flipped: Which labels are wrong, if known.

    Returns:
        Posterior calibration where truth is known, agreement of difficulty scores, and τ.
    """
    panels = [_agreement_panel(summary), _importance_panel(run)]
    if suspects is not None and flipped is not None and flipped.any():
        panels.insert(0, _calibration_panel(suspects, flipped))
    return panels


def _calibration_panel(suspects: pd.DataFrame, flipped: pd.Series) -> Panel:
    known = suspects["posterior"].reindex(flipped.index).to_numpy()
    truth = flipped.to_numpy(dtype=bool)
    table = tabulate_reliability(known, truth)
    brier, error = brier_score(known, truth), calibration_error(known, truth)
    caption = (
        "Samples in ten bins of the posterior, with Wilson intervals; the mixture never saw the "
        f"truth. Brier score {brier.value:.3f} ({brier.low:.3f} to {brier.high:.3f}), calibration "
        f"error {error.value:.3f} ({error.low:.3f} to {error.high:.3f}): 0 would be perfect."
    )
    name = "posterior_calibration"
    title = "Calibration of the mixture's posterior"
    return Panel(
        name, title, caption, lambda ax: plot_posterior_calibration(table, ax=ax), {name: table}
    )


def _agreement_panel(summary: pd.DataFrame) -> Panel:
    name, title = "score_agreement", "Agreement of difficulty scores"
    table = rank_agreement(score_difficulty(summary)).dropna(subset=["correlation"])
    if table.empty:
        missing = "It needs two scores of the samples: add SampleLoss(), with logits and labels."
        return Panel(name, title, "", missing=missing)
    caption = (
        f"Spearman rank correlations over the whole run, half widths of 95 % intervals below "
        f"(n = {int(table['n'].max()):,}). All scores are turned so that high is hard; variability "
        "is high in between."
    )
    return Panel(name, title, caption, lambda ax: plot_score_agreement(table, ax=ax), {name: table})


def _importance_panel(run: Run) -> Panel:
    name, title = "importance_gain", "What importance sampling would gain"
    table = importance_each_epoch(run, presample=_PRESAMPLE, batch=_BATCH)
    if table.empty:
        missing = (
            "It needs losses or gradient norms: add SampleLoss(), GradNorm() or OutputGradNorm()."
        )
        return Panel(name, title, "", missing=missing)
    caption = (
        "τ of sampling in proportion to each score, bands ±1.96 standard errors. Scoring three "
        "samples for each one trained on pays above 2 (Katharopoulos and Fleuret). The gradient "
        "norm's τ is the most there is to gain; the bound Ĝ costs a forward pass."
    )
    return Panel(name, title, caption, lambda ax: plot_importance_gain(table, ax=ax), {name: table})
