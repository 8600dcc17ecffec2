"""Figures over the runs of a study, one function each: `plot_<name>(table, ..., *, ax=None)`."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.style import (
    BLUE,
    GREY,
    VERMILION,
    in_house_style,
    label_lines,
    log_axis,
    new_axes,
)


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
