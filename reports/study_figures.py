"""Figures over the runs of a study, one function each: `plot_<name>(table, ..., *, ax=None)`."""

import pandas as pd
from matplotlib.axes import Axes

from reports.style import BLUE, GREEN, ORANGE, VERMILION, in_house_style, label_lines, new_axes


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
