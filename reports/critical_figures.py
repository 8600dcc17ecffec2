"""Figures of the critical-period study: `plot_<name>(table, ..., *, ax=None)`."""

import pandas as pd
from matplotlib.axes import Axes

from reports.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    LineEnd,
    band,
    epoch_axis,
    in_house_style,
    label_lines,
    log_axis,
    new_axes,
)

DEFICIT_COLOURS = {
    "blur": VERMILION,
    "flip": BLUE,
    "permutation": GREEN,
    "noise": PURPLE,
    "random classes": ORANGE,
}


@in_house_style
def plot_deficit_removal(
    runs: pd.DataFrame,
    drops: pd.DataFrame,
    control: pd.DataFrame,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Final accuracy against the epoch at which a deficit ends, in one learning-rate arm.

    Look at whether the line leaves the dashed one, which is training without a deficit, and whether
    it does so in the arms whose rate is fixed or reset as well.

    Args:
        runs: Rows of `critical_table` with a deficit from the first epoch on.
        drops: Rows of `removal_drops` of the same.
        control: Rows of `control_accuracy`; at most one.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends: list[LineEnd] = []
    for row in control.to_dict("records"):
        ax.axhline(row["accuracy"], color=GREY, linestyle="--", linewidth=1)
        low, high = row["accuracy_low"], row["accuracy_high"]
        ax.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0)
    for deficit, rows in drops.groupby("deficit", sort=False):
        colour = DEFICIT_COLOURS.get(str(deficit), GREY)
        seeds = runs[runs["deficit"] == deficit]
        ax.plot(seeds["until"], seeds["test_accuracy"], ".", color=colour, alpha=0.35, markersize=5)
        ax.plot(rows["until"], rows["accuracy"], "o-", color=colour, markersize=4)
        x, lows, highs = rows["until"], rows["accuracy_low"], rows["accuracy_high"]
        band(ax, x.to_numpy(), lows.to_numpy(), highs.to_numpy(), colour)
        last = rows.iloc[-1]
        ends.append((float(last["until"]), float(last["accuracy"]), str(deficit), colour))
    ax.set(xlabel="epoch t0 at which the deficit ends", ylabel="final test accuracy")
    ax.set_xlim(left=0)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_deficits(rows: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """What each deficit costs that lasted until the largest t0, beside half of what blur costs.

    Look at which intervals lie left of the dashed line: flip and permutation should, if what harms
    is the loss of low-level statistics.

    Args:
        rows: Rows of `compare_deficits` of one network and rate.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    for place, row in enumerate(rows.to_dict("records")):
        colour = DEFICIT_COLOURS.get(row["deficit"], GREY)
        error = [[row["drop"] - row["low"]], [row["high"] - row["drop"]]]
        ax.errorbar(row["drop"], place, xerr=error, fmt="D", color=colour, markersize=5)
    half = float(rows["against_drop"].mean()) / 2
    ax.axvline(half, color=VERMILION, linestyle="--", linewidth=1)
    ax.axvline(0, color="#222222", linewidth=0.8)
    ax.set(
        xlabel="drop in final accuracy (dashed: half of blur's)",
        ylabel="deficit",
        yticks=range(len(rows)),
        yticklabels=rows["deficit"].tolist(),
    )
    return ax


@in_house_style
def plot_window_sensitivity(
    rows: pd.DataFrame, trace: pd.DataFrame, *, ax: Axes | None = None
) -> Axes:
    """What a deficit in a window costs against its onset, beside the Fisher trace at the onset.

    Look at whether the drops (left axis) are large where the grey trace (right axis) is high.

    Args:
        rows: Rows of `sensitivity_table` of one network, deficit and rate.
        trace: `clean_trace` of the same network and rate.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    beside = ax.twinx()
    beside.spines["right"].set_visible(True)
    beside.grid(visible=False)
    known = trace[trace["value"] > 0]
    beside.plot(known["epoch"] + 1, known["value"], color=GREY, linewidth=1.2)
    beside.fill_between(known["epoch"] + 1, known["value"], color=GREY, alpha=0.1, linewidth=0)
    beside.set_ylim(bottom=0)
    beside.set_ylabel("tr F without a deficit", color=GREY)
    ax.set_zorder(beside.get_zorder() + 1)
    ax.patch.set_visible(False)
    error = [rows["sensitivity"] - rows["low"], rows["high"] - rows["sensitivity"]]
    ax.axhline(0, color="#222222", linewidth=0.8)
    ax.errorbar(rows["onset"], rows["sensitivity"], yerr=error, fmt="o-", color=VERMILION)
    length = int(rows["length"].iloc[0])
    ax.set(ylabel="drop in final accuracy")
    epoch_axis(ax)
    ax.set_xlabel(f"onset: epochs trained before {length} epochs of deficit")
    return ax


@in_house_style
def plot_fisher_phases(
    traces: pd.DataFrame, boundaries: pd.DataFrame, *, until: int, ax: Axes | None = None
) -> Axes:
    """Fisher trace over epochs with and without a deficit, with the boundaries of its phases.

    Look for a rise, a peak and a decay, and for what happens when the deficit ends (dashed).

    Args:
        traces: `trace_over_seeds` of each setting, with a column `setting`.
        boundaries: Phase boundaries: columns `setting, value, low, high`.
        until: Epoch at which the deficit ends.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    for (setting, rows), colour in zip(traces.groupby("setting", sort=False), CYCLE, strict=False):
        epoch, value = rows["epoch"].to_numpy(float), rows["value"].to_numpy(float)
        error = 1.96 * rows["stderr"].to_numpy(float)
        ax.plot(epoch, value, color=colour)
        band(ax, epoch, (value - error).clip(value / 10), value + error, colour)
        ax.annotate(
            str(setting),
            (epoch[-1], value[-1]),
            (4, 0),
            textcoords="offset points",
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )
        for row in boundaries[boundaries["setting"] == setting].to_dict("records"):
            ax.axvline(row["value"], color=colour, linestyle=":", linewidth=1)
            ax.axvspan(row["low"], row["high"], color=colour, alpha=0.08, linewidth=0)
    ax.axvline(until, color="#222222", linestyle="--", linewidth=0.8)
    ax.set_ylabel("tr F (nats² per squared unit)")
    log_axis(ax, "y")
    epoch_axis(ax)
    return ax
