"""The report of one run: which labels look wrong, when it memorised, how its Fisher trace moved."""

from collections.abc import Callable
from math import isfinite

import pandas as pd

from dynamics.beta_mixture import fit_beta_mixture
from dynamics.curves import CurveShape, describe_curve
from dynamics.datasets import Dataset
from dynamics.difficulty import count_learning, rank_hardest
from dynamics.fisher_phases import trace_depth
from dynamics.label_noise import (
    SEPARATES,
    choose_epoch,
    detection_auc,
    estimate_noise_rate,
    fit_each_epoch,
    known_flips,
    rank_suspects,
)
from dynamics.loss_mixture import tabulate_mixture
from dynamics.summary import count_missing, summarise_epochs, summarise_samples
from dynamics.traces import Run
from dynamics.weight_effect import judge_weighting, weighting_over_epochs
from reports.figures import (
    plot_data_map,
    plot_detection_auc,
    plot_grad_norm,
    plot_loss,
    plot_loss_mixture,
)
from reports.imported import describe_import, name_columns
from reports.network_panels import network_panels
from reports.page import Page, Panel, Section
from reports.provenance import describe_provenance
from reports.sample_tables import hardest_table, suspect_table
from reports.score_panels import score_panels
from reports.weight_figures import plot_weighting


def build_run_report(run: Run, dataset: Dataset | None = None) -> Page:
    """Analyse a run and lay out its report.

    Args:
        run: The run.
        dataset: The training images, for pictures of the suspects; ids alone without it.

    Returns:
        The page.
    """
    flipped = known_flips(run)
    groups = None if flipped is None else flipped.map({False: "clean", True: "wrong label"})
    scalars = run.scalars()
    fits = fit_each_epoch(run)
    epoch = None if fits.empty else choose_epoch(fits)
    suspects = None if epoch is None else rank_suspects(run, epoch=epoch)
    auc = None if flipped is None else detection_auc(run, flipped)
    summary = summarise_samples(run)
    verdict = _judge_labels(fits, epoch, suspects, flipped, auc) or _judge_learning(summary)
    verdict += _judge_curves(scalars)
    weighting = weighting_over_epochs(run)
    verdict += _judge_weighting(weighting)
    hardest = rank_hardest(summary)
    tables = [] if hardest is None else [hardest_table(summary, hardest, dataset)]
    if suspects is not None and epoch is not None:
        tables = [suspect_table(suspects, epoch, dataset)]
    panels = [
        _distribution_panel(run, "loss", groups),
        _mixture_panel(suspects, flipped, epoch),
        _auc_panel(auc, flipped),
        _data_map_panel(summary, groups),
        _distribution_panel(run, "grad_norm", groups),
    ]
    panels += score_panels(run, summary, suspects, flipped)
    return Page(
        title=f"Training dynamics of {run.name}",
        subtitle=_subtitle(run),
        verdict=verdict or ["This run has recorded nothing that a verdict could rest on."],
        caveats=_caveats(run, scalars),
        sections=[
            Section("Samples", name_columns(run, panels)),
            Section("Network", name_columns(run, network_panels(scalars))),
            *([] if weighting.empty else [Section("Weights", [_weighting_panel(weighting)])]),
        ],
        tables=tables,
        provenance=describe_provenance(run),
    )


def _judge_labels(
    fits: pd.DataFrame,
    epoch: int | None,
    suspects: pd.DataFrame | None,
    flipped: pd.Series | None,
    auc: pd.DataFrame | None,
) -> list[str]:
    if epoch is None or suspects is None:
        return []
    confidence = float(fits.loc[fits["epoch"] == epoch, "confidence"].iloc[0])
    sentences = []
    if confidence >= SEPARATES:
        rate = estimate_noise_rate(suspects["mean_loss"].dropna().to_numpy())
        sentences.append(
            f"About {rate.value:.0%} of the labels look wrong (95 % interval {rate.low:.0%} to "
            f"{rate.high:.0%}; beta mixture on the losses of {rate.n:,} samples up to epoch "
            f"{epoch}, chosen without knowing any true label; mixture confidence "
            f"{confidence:.2f})."
        )
    else:
        sentences.append(
            f"The losses do not fall into two separate groups (mixture confidence at best "
            f"{confidence:.2f}, where {SEPARATES} is needed), so no rate of wrong labels is given: "
            "there are none, few, or too many to tell."
        )
    if flipped is not None and auc is not None and not auc.empty:
        told = []
        for score, name in (("loss", "loss"), ("aum", "AUM"), ("grad_norm", "gradient norm")):
            at = auc[(auc["epoch"] == epoch) & (auc["score"] == score)].dropna()
            told += [
                f"{name} {a:.3f} ± {e:.3f}" for a, e in zip(at["auc"], at["stderr"], strict=True)
            ]
        truth = f"In truth {flipped.mean():.1%} are wrong."
        if told:
            truth += (
                f" Area under the ROC curve at that epoch: {', '.join(told)} (standard errors)."
            )
        sentences.append(truth)
    return sentences


def _judge_learning(summary: pd.DataFrame) -> list[str]:
    counts = count_learning(summary)
    if counts is None:
        return []
    return [
        f"Of {counts.n:,} samples, {counts.n_never_learned:,} were never classified as labelled, "
        f"{counts.n_kept:,} were learned and kept, and {counts.n_forgotten:,} were learned and "
        "forgotten at least once."
    ]


def _judge_curves(scalars: pd.DataFrame) -> list[str]:
    measured = scalars.dropna(subset=["value"])
    sentences = []
    accuracy = measured[measured["name"] == "accuracy"]
    for block in [b for b in accuracy["block"].unique() if not str(b).startswith("train")]:
        curve = describe_curve(accuracy[accuracy["block"] == block])
        spread = f" ± {curve.last_stderr:.1%}" if isfinite(curve.last_stderr) else ""
        sentences.append(
            f"Accuracy on {block} was best at epoch {curve.peak_epoch} with {curve.peak:.1%} and "
            f"ended at {curve.last:.1%}{spread}."
        )
    fisher = measured[(measured["name"] == "fisher_trace") & (measured["block"] == "total")]
    if len(fisher) > 2:
        sentences.append(f"The Fisher trace {_tell_fisher(describe_curve(fisher))}")
        sentences += _tell_depth(trace_depth(measured))
    return sentences


def _judge_weighting(weighting: pd.DataFrame) -> list[str]:
    found = judge_weighting(weighting)
    if found is None:
        return []
    text = (
        f"The samples with a weight above the mean hold {found.weight_share:.0%} of the weight; "
        f"the effective sample size is {found.effective_sample_size:,.0f} of {found.n:,}."
    )
    if isfinite(found.gradient_share.value):
        share = found.gradient_share
        text += (
            f" They hold {share.value:.0%} of the weighted gradient in the last epoch (95 % "
            f"interval {share.low:.0%} to {share.high:.0%})."
        )
    if not isfinite(found.in_reach.value):
        return [text]
    reach = found.in_reach
    text += (
        f" {reach.value:.1%} of the samples ({reach.low:.1%} to {reach.high:.1%}) have a margin "
        "that the weights could overturn: "
    )
    if found.stopped_from is None:
        return [text + "the weights still matter."]
    return [
        text + f"from epoch {found.stopped_from} on, the weights have stopped mattering on the "
        "training set."
    ]


def _weighting_panel(weighting: pd.DataFrame) -> Panel:
    caption = (
        "In reach are samples whose margin is below the log of the weight ratio, which the weights "
        "could turn; at 0, they no longer matter on the training set. A share of the gradient "
        "near one half is no sign of that: groups come to pull equally at any optimum."
    )
    return Panel(
        "weighting",
        "What the weights still do",
        caption,
        lambda ax: plot_weighting(weighting, ax=ax),
        {"weighting": weighting},
    )


def _tell_depth(depth: pd.DataFrame) -> list[str]:
    if len(depth) < 2:
        return []
    first, last = depth.iloc[0], depth.iloc[-1]
    return [
        f"Its centre of mass moved from depth {first['depth']:.2f} to {last['depth']:.2f} ± "
        f"{last['stderr']:.2f} (0: all in the first layer, 1: all in the last)."
    ]


def _tell_fisher(curve: CurveShape) -> str:
    end = f"{curve.last:.3g} ± {curve.last_stderr:.2g}"
    if curve.has_interior_peak:
        return (
            f"rose from {curve.first:.3g} to a peak of {curve.peak:.3g} ± {curve.peak_stderr:.2g} "
            f"at epoch {curve.peak_epoch} and ended at {end} (standard errors)."
        )
    return (
        f"began at {curve.first:.3g} and ended at {end} (standard error). It has no peak in "
        f"between "
        f"that stands out of its error; its largest value is {curve.peak:.3g}, at epoch "
        f"{curve.peak_epoch}."
    )


def _caveats(run: Run, scalars: pd.DataFrame) -> list[str]:
    caveats = describe_import(run)
    missing = count_missing(run)
    for row in missing.itertuples():
        caveats.append(
            f"{row.n:,} values of {row.column} are not finite, first at epoch {row.first_epoch}, "
            f"sample {row.first_sample}; they are left out."
        )
    if not run.ended_cleanly:
        caveats.append("The run did not end cleanly: it is still going on, or was interrupted.")
    if len(run.attempts) > 1:
        caveats.append(f"The run was resumed {len(run.attempts) - 1} times.")
    caveats.append("One run, one seed: how much would differ with another seed is not known.")
    return caveats


def _subtitle(run: Run) -> str:
    model = run.info.get("model") or {}
    n = run.info.get("n_samples")
    size = f"{model['n_trainable']:,} trainable parameters" if "n_trainable" in model else ""
    samples = f"{n:,} training samples" if isinstance(n, int) else ""
    return " · ".join(part for part in (str(model.get("class", "")), size, samples) if part)


def _distribution_panel(run: Run, column: str, groups: pd.Series | None) -> Panel:
    plot: Callable[..., object] = plot_loss if column == "loss" else plot_grad_norm
    title = "Loss over epochs" if column == "loss" else "Per-sample gradient norm over epochs"
    table = summarise_epochs(run, column, groups=groups)
    if table.empty:
        probe = "SampleLoss()" if column == "loss" else "GradNorm()"
        return Panel(column, title, "", missing=f"Add {probe} to the recorder's probes.")
    caption = {
        "loss": "Median loss at each presentation; the band holds the middle half of the samples. "
        "While a gap is open, wrong labels can be told; where the curves meet, they are memorised.",
        "grad_norm": "Median norm of each sample's own gradient, middle half as a band, 95th "
        "percentile dotted. The group on top is what drives the updates.",
    }[column]
    return Panel(column, title, caption, lambda ax: plot(table, ax=ax), {column: table})


def _mixture_panel(
    suspects: pd.DataFrame | None, flipped: pd.Series | None, epoch: int | None
) -> Panel:
    name, title = "loss_mixture", "Losses and the fitted beta mixture"
    if suspects is None:
        missing = "It needs SampleLoss() and, in some epoch, 20 samples with differing losses."
        return Panel(name, title, "", missing=missing)
    losses = suspects["mean_loss"].dropna()
    table = tabulate_mixture(fit_beta_mixture(losses.to_numpy()), losses, flipped)
    caption = (
        f"Each sample's mean loss up to epoch {epoch}. Two humps with the curves on the bars: the "
        "rate of wrong labels can be believed. One hump: there is nothing to separate. The "
        "outermost bars gather all losses beyond the 5th and 95th percentile."
    )
    return Panel(name, title, caption, lambda ax: plot_loss_mixture(table, ax=ax), {name: table})


def _auc_panel(auc: pd.DataFrame | None, flipped: pd.Series | None) -> Panel:
    name, title = "detection_auc", "How well each score tells wrong labels"
    if auc is None or auc.empty or flipped is None or not flipped.any():
        return Panel(
            name, title, "", missing="This needs true labels in the roster, and some wrong ones."
        )
    caption = (
        "Chance that a wrong label scores higher than a right one, with 95 % bands. The loss "
        "forgets what it knew as the network memorises; AUM, a mean over epochs, keeps it longer."
    )
    return Panel(name, title, caption, lambda ax: plot_detection_auc(auc, ax=ax), {name: auc})


def _data_map_panel(summary: pd.DataFrame, groups: pd.Series | None) -> Panel:
    name, title = "data_map", "Data map"
    if summary.empty or summary["mean_p_true"].isna().all():
        missing = "Add SampleLoss(), and give logits and labels to observe."
        return Panel(name, title, "", missing=missing)
    grouped = "all" if groups is None else groups.reindex(summary.index)
    summary = summary.assign(group=grouped)
    caption = (
        "Every sample by how sure and how steady the network was of its label over the whole run. "
        "High: easy. Low and left: hard or mislabelled. Right: ambiguous, learned along the way."
    )
    return Panel(name, title, caption, lambda ax: plot_data_map(summary, ax=ax), {name: summary})
