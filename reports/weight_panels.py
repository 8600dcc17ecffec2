"""Figures and tables of the weight-ratio report."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import numpy as np
import pandas as pd

from dynamics.dissipation import EARLY, LATE, LIMIT, MARGIN, Dissipation, mean_curves
from dynamics.statistics import Estimate, mean_over_seeds
from reports.page import Cell, PageTable, Panel
from reports.weight_figures import (
    name_ratio,
    plot_effect_size,
    plot_gradient_share,
    plot_margin_angle,
    plot_predicted_first,
    plot_weight_reach,
)

IN_CLASS = "in-class test"


@dataclass(frozen=True)
class WeightEvidence:
    """The tables that the page is laid out from; arms are in the order of the page.

    Attributes:
        fractions: `predicted_fractions`.
        effects: `effect_sizes` of them.
        courses: `measure_dissipation` by arm and set, of arms with two ratios or more.
        stops: `stop_early`.
        equivalent: `first_equivalent`.
        losses: `held_out_losses`.
        weighting: `weighting_by_run`.
        angles: `plane_angles`.
    """

    fractions: pd.DataFrame
    effects: pd.DataFrame
    courses: dict[tuple[str, str], Dissipation]
    stops: pd.DataFrame
    equivalent: pd.DataFrame
    losses: pd.DataFrame
    weighting: pd.DataFrame
    angles: pd.DataFrame

    @property
    def arms(self) -> list[str]:
        """The arms."""
        return list(dict.fromkeys(self.fractions["arm"]))


def effect_panel(found: WeightEvidence) -> Panel:
    """The effect over epochs, by arm."""
    table = mean_curves(found.effects, ["arm", "set", "epoch"], "slope")
    return _panel(
        "effect_size",
        "How strongly the weights bend predictions, over epochs",
        "By how much doubling the weight ratio moves the log-odds of the classes predicted, mean "
        "over seeds with 95 % intervals. Solid line: no effect. Dashed: what weights do to the "
        "best log-odds. Where a curve reaches 0 and stays, the weights no longer matter.",
        table,
        plot_effect_size,
    )


def fraction_panel(found: WeightEvidence) -> Panel:
    """Fractions of the in-class test images, by arm and ratio."""
    rows = found.fractions[found.fractions["set"] == IN_CLASS]
    table = mean_curves(rows, ["arm", "log2_ratio", "epoch"], "frac")
    return _panel(
        "predicted_first",
        "In-class test images assigned to the first class, over epochs",
        "One line per weight ratio, first class to second, mean over seeds with 95 % intervals; "
        "half of the images are of each class. Lines that come together have forgotten their "
        "weights; lines that stay apart have not.",
        table,
        plot_predicted_first,
    )


def gradient_panel(found: WeightEvidence) -> Panel:
    """The up-weighted class's share of the weighted gradient."""
    title = "The up-weighted class's share of the weighted gradient, over epochs"
    if found.weighting.empty:
        return Panel("gradient_share", title, "", missing="Run the study at ratios other than 1:1.")
    table = mean_curves(found.weighting, ["arm", "log2_ratio", "epoch"], "gradient_share")
    return _panel(
        "gradient_share",
        title,
        "The other class holds the rest; gradients are at the logits. The share starts near that "
        "of the weight (.94 at 16:1) and is one half (dashed) after an epoch or two in every arm: "
        "at any optimum of the bias the classes pull equally. A balanced gradient is therefore no "
        "sign that the weights have worn off; the reach below is.",
        table,
        plot_gradient_share,
    )


def reach_panel(found: WeightEvidence) -> Panel:
    """Share of training samples in reach of the weights."""
    title = "Training samples in reach of the weights, over epochs"
    if found.weighting.empty:
        return Panel("weight_reach", title, "", missing="Run the study at ratios other than 1:1.")
    table = mean_curves(found.weighting, ["arm", "log2_ratio", "epoch"], "in_reach")
    return _panel(
        "weight_reach",
        title,
        "Weights in ratio r move the best log-odds by log r, so they can turn the predictions "
        "whose margin is below that. As the network fits its data, margins outgrow it; an L2 "
        "penalty keeps them small.",
        table,
        plot_weight_reach,
    )


def plane_panel(found: WeightEvidence) -> Panel:
    """Angles to the largest margin on the plane."""
    table = mean_curves(found.angles, ["arm", "log2_ratio", "step"], "angle")
    table = table.sort_values("arm", ascending=False, kind="stable")  # linear first
    return _panel(
        "margin_angle",
        "Separable plane: angle to the direction of the largest margin",
        "Gradient descent turns towards the direction of the largest margin (scikit-learn's "
        "linear SVM) whatever the weights, as slowly as 1/log(steps). Of the MLP, the mean slope "
        "of its log-odds over the points; its own limit need not be the linear one.",
        table,
        plot_margin_angle,
    )


def arm_table(found: WeightEvidence) -> PageTable:
    """The effect of each arm and set in numbers."""
    rows = []
    for (arm, name), course in found.courses.items():
        mine = found.losses[found.losses["arm"] == arm].sort_values("epoch")
        mine = mine[mine["log2_ratio"].abs() <= LIMIT]
        last = mine.groupby("run")[["train_accuracy", "held_out_accuracy"]].last()
        texts = [arm, name, str(course.late.n), show(course.early), show(course.late)]
        texts += [show(course.half_life, ".1f"), show(course.asymptote), show(course.spread_left)]
        texts += [f"{last[column].mean():.3f}" for column in last]
        rows.append([Cell(text) for text in texts])
    note = (
        f"Effect: log-odds per doubling of the ratio; early is the mean of the first {EARLY} "
        f"epochs, late of the last {LATE}. Half-life in epochs, a dash where the effect does not "
        "fall. Spread: largest minus smallest fraction over the ratios, late over early. "
        "Intervals are 95 %, over seeds. Accuracies: last epoch, mean over runs. All of it is over "
        "ratios 1:16 to 16:1."
    )
    header = ["arm", "inputs", "seeds", "early effect", "late effect", "half-life", "asymptote"]
    return PageTable(
        "Effect of the weights", note, [*header, "spread left", "train", "held-out"], rows
    )


def equivalence_table(found: WeightEvidence) -> PageTable:
    """From when on each weighted run predicts like the unweighted one."""
    rows = []
    for row in found.equivalent.to_dict("records"):
        first = row["first_epoch"]
        texts = [row["arm"], row["set"], name_ratio(row["log2_ratio"]), str(row["n"])]
        texts += [f"{first + 1:.0f}" if isfinite(first) else "never"]
        interval = f" ({row['low']:+.3f} to {row['high']:+.3f})" if isfinite(row["low"]) else ""
        texts += [f"{row['difference']:+.3f}{interval}"]
        rows.append([Cell(text) for text in texts])
    note = (
        f"Two one-sided t-tests at 5 % in every epoch that fractions differ by less than {MARGIN} "
        "from the unweighted run with the same seed, until the end; with its last difference and "
        "90 % interval. “never” also where seeds are too few to tell."
    )
    header = ["arm", "inputs", "ratio", "seeds", "equivalent from epoch", "difference at the end"]
    return PageTable("Equivalence with unweighted runs", note, header, rows)


def angle_table(found: WeightEvidence) -> PageTable:
    """Angles and fractions at the end of the plane's runs."""
    rows = []
    last = found.angles[found.angles["step"] == found.angles["step"].max()]
    for (arm, ratio), runs in last.groupby(["arm", "log2_ratio"]):
        first = found.angles[(found.angles["arm"] == arm) & (found.angles["log2_ratio"] == ratio)]
        early = first[first["step"] == 10]
        texts = [str(arm), name_ratio(float(str(ratio))), str(len(runs))]
        for table in (early, runs):
            texts.append(show(mean_over_seeds(table["angle"].to_numpy()), ".1f"))
            texts.append(show(mean_over_seeds(table["frac"].to_numpy())))
        rows.append([Cell(text) for text in texts])
    steps = int(found.angles["step"].max())
    header = ["model", "ratio", "seeds", "angle, step 10", "fraction, step 10"]
    header += [f"angle, step {steps:,}", f"fraction, step {steps:,}"]
    note = (
        "Angle in degrees to the largest margin; fraction of a grid over the plane assigned to the "
        "first class. 95 % intervals over seeds."
    )
    return PageTable("Separable plane", note, header, rows)


def show(estimate: Estimate, digits: str = ".2f") -> str:
    """An estimate with its interval, as text; a dash where there is none.

    Args:
        estimate: The estimate.
        digits: Format of its numbers.

    Returns:
        Such as `.43 (.40 to .46)`.
    """
    if not isfinite(estimate.value):
        return "–"
    text = f"{estimate.value:{digits}}"
    if isfinite(estimate.low):
        text += f" ({estimate.low:{digits}} to {estimate.high:{digits}})"
    return text


def _panel(
    name: str,
    title: str,
    caption: str,
    table: pd.DataFrame,
    plot: Callable[[pd.DataFrame, np.ndarray], object],
) -> Panel:
    n = table["arm"].nunique()
    columns = min(n, 3)
    shape = (-(-n // columns), columns)

    def draw(axes: object) -> object:
        return plot(table, np.array(axes, dtype=object).reshape(shape))

    return Panel(name, title, caption, draw, {name: table}, shape=shape)
