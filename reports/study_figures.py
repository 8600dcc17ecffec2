"""Figures over the runs of a study, one function each: `plot_<name>(table, ..., *, ax=None)`."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    in_house_style,
    label_lines,
    log_axis,
    new_axes,
)


@in_house_style
def plot_noise_law(runs: pd.DataFrame, curves: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Held-out accuracy on noisy labels against noise ratio: the runs, and the laws.

    Look at whether the points follow the theory's bend or a straight line.

    Args:
        runs: `noise_table(study)` rows of one kind of noise.
        curves: `LawComparison.curves`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    styles = {
        "theory": ("#222222", "-"),
        "theory × clean accuracy": (GREEN, "-"),
        "free quadratic": (BLUE, "--"),
        "straight line": (ORANGE, ":"),
    }
    ends = []
    for law, (colour, style) in styles.items():
        ax.plot(curves["ratio"], curves[law], style, color=colour)
        ends.append((curves["ratio"].iloc[-1], curves[law].iloc[-1], law, colour))
    ax.errorbar(
        runs["ratio"],
        runs["held_out_noisy"],
        yerr=1.96 * runs["held_out_noisy_stderr"],
        fmt="o",
        color=VERMILION,
        markersize=5,
        alpha=0.8,
        elinewidth=1,
        label="runs, ±1.96 standard errors",
    )
    ax.set(
        title=f"What {runs['noise'].iloc[0]} label noise costs",
        xlabel="noise ratio: share of wrong labels (true class excluded)",
        ylabel="accuracy on held-out noisy labels",
        ylim=(0, 1.02),
    )
    ax.legend(loc="lower left", fontsize=8)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_label_precision(
    runs: pd.DataFrame, theory: pd.DataFrame, *, ax: Axes | None = None
) -> Axes:
    """Label precision and recall of keeping the samples whose prediction agrees with their label.

    Look at precision above 1 − ratio: that gain is what the selection is worth.

    Args:
        runs: `noise_table(study)` rows of one kind of noise.
        theory: Columns `ratio`, `label_precision`, `label_recall` of the law.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends = []
    for name, colour in (("label_precision", BLUE), ("label_recall", VERMILION)):
        ax.plot(theory["ratio"], theory[name], color=colour)
        ax.plot(runs["ratio"], runs[name], "o", color=colour, markersize=5, alpha=0.8)
        text = name.replace("_", " ")
        ends.append((theory["ratio"].iloc[-1], theory[name].iloc[-1], text, colour))
    ax.set(
        title=f"Selecting clean labels, {runs['noise'].iloc[0]} noise",
        xlabel="noise ratio (lines: the law, points: runs)",
        ylabel="share",
        ylim=(0, 1.02),
    )
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_fisher_runs(curves: pd.DataFrame, middle: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Fisher traces of several seeds over epochs, beside the empirical ones, on a log axis.

    Look for a rise, a peak before the end (dots) and a fall, in every seed; the empirical trace
    falls further because the labels are fitted, not because the network is less plastic.

    Args:
        curves: `plasticity_curves(study)` rows of one setting.
        middle: `curves_over_seeds` of them.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends = []
    for curve, name, colour in (
        ("fisher_trace", "Fisher trace\n(model labels)", BLUE),
        ("empirical_fisher_trace", "empirical\n(data labels)", VERMILION),
    ):
        rows = curves[(curves["curve"] == curve) & (curves["value"] > 0)]
        if rows.empty:
            continue
        for _, run in rows.groupby("run"):
            ax.plot(run["epoch"], run["value"], color=colour, linewidth=0.7, alpha=0.6)
            if curve == "fisher_trace":
                values = run["value"].to_numpy(dtype=float)
                top = int(np.nanargmax(values))
                ax.plot(run["epoch"].to_numpy()[top], values[top], "o", color=colour, markersize=4)
        bold = middle[(middle["curve"] == curve) & (middle["median"] > 0)]
        ax.plot(bold["epoch"], bold["median"], color=colour, linewidth=2)
        ends.append((bold["epoch"].iloc[-1], bold["median"].iloc[-1], name, colour))
    ax.set(
        title="Fisher trace: seeds thin, median bold, peaks dotted",
        xlabel="epoch (−1: before training)",
        ylabel="tr F (nats² per squared unit of parameter)",
    )
    log_axis(ax, "y")
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_fall(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How far each run's Fisher trace has fallen from its peak, by setting.

    Look at which settings lie left of the line at one half, and at how much seeds differ.

    Args:
        table: `plasticity_table(study)`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    settings = list(dict.fromkeys(table["setting"]))
    for place, setting in enumerate(settings):
        rows = table[table["setting"] == setting]
        offsets = place + 0.12 * (np.arange(len(rows)) - (len(rows) - 1) / 2)
        colours = [BLUE if peaked else GREY for peaked in rows["has_interior_peak"]]
        ax.hlines(
            offsets,
            (rows["last_over_peak"] - 1.96 * rows["last_over_peak_stderr"]).clip(lower=1e-4),
            rows["last_over_peak"] + 1.96 * rows["last_over_peak_stderr"],
            color=colours,
            linewidth=1,
        )
        ax.scatter(rows["last_over_peak"], offsets, color=colours, s=22, zorder=3)
    ax.axvline(0.5, color="#222222", linewidth=0.8, linestyle="--")
    ax.set(
        title="Fisher trace at the end, as a share of its peak",
        xlabel="last ÷ peak, ±1.96 standard errors (dashed: one half; grey: no interior peak)",
        ylabel="setting",
        yticks=range(len(settings)),
        yticklabels=settings,
    )
    log_axis(ax, "x")
    ax.invert_yaxis()
    return ax
