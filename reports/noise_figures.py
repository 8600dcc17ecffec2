"""Figures of the noise-ratio study, one function each: `plot_<name>(table, ..., *, ax=None)`."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILION,
    LineEnd,
    in_house_style,
    label_lines,
    new_axes,
)

LAW_STYLES = {
    "theory": ("#222222", "-"),
    "theory × clean accuracy": (GREEN, "-"),
    "free quadratic": (BLUE, "--"),
    "straight line": (ORANGE, ":"),
    "monotone spline": (PURPLE, "-."),
}
ARM_STYLES = {
    "memorised": (VERMILION, "o"),
    "early-stopped": (BLUE, "D"),
    "weight decay": (GREEN, "s"),
    "dropout": (PURPLE, "^"),
}


@in_house_style
def plot_noise_law(runs: pd.DataFrame, curves: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Held-out accuracy on noisy labels against noise ratio: the runs, and the laws.

    Look at whether the points follow the theory's bend or a straight line.

    Args:
        runs: Memorised `noise_table(study)` rows of one kind of noise.
        curves: `LawComparison.curves`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends: list[LineEnd] = []
    for law, (colour, style) in LAW_STYLES.items():
        ax.plot(curves["ratio"], curves[law], style, color=colour)
        name = law.replace(" × clean accuracy", " × clean\naccuracy")
        ends.append((curves["ratio"].iloc[-1], curves[law].iloc[-1], name, colour))
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
        xlabel="noise ratio: share of wrong labels",
        ylabel="accuracy on held-out noisy labels",
        ylim=(0, 1.02),
    )
    ax.legend(loc="lower left", fontsize=8)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_memorisation(
    summary: pd.DataFrame, *, tolerance: float = 0.06, ax: Axes | None = None
) -> Axes:
    """Deviation from the law against training accuracy, in every arm.

    Look at where the points leave the band: the law is about networks right of there.

    Args:
        summary: `summarise_noise_table` rows of one kind of noise, of ratios above 0.
        tolerance: Half of the band's height.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ax.axhspan(-tolerance, tolerance, color=GREY, alpha=0.12, linewidth=0)
    ax.axhline(0, color="#222222", linewidth=0.8)
    for arm, (colour, marker) in ARM_STYLES.items():
        rows = summary[summary["arm"] == arm]
        if rows.empty:
            continue
        around = rows[["deviation_low", "deviation_high"]].to_numpy(dtype=float).T
        error = np.abs(np.nan_to_num(around - rows["deviation"].to_numpy(), nan=0.0))
        ax.errorbar(
            rows["train_accuracy"],
            rows["deviation"],
            yerr=error,
            fmt=marker,
            color=colour,
            markersize=5,
            elinewidth=1,
            label=arm,
        )
        apart = rows[rows["arm"] != "memorised"]  # those all lie at 1, above one another
        for x, y, ratio in zip(
            apart["train_accuracy"], apart["deviation"], apart["ratio"], strict=True
        ):
            ax.annotate(
                f"{ratio:g}",
                (x, y),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
    ax.set(
        title=f"{summary['noise'].iloc[0].capitalize()} noise",
        xlabel="accuracy on the training labels (noisy)",
        ylabel="accuracy minus law, noisy labels",
    )
    ax.margins(y=0.15)
    ax.legend(loc="lower left", fontsize=8)
    return ax


@in_house_style
def plot_ratio_estimates(
    estimates: pd.DataFrame, *, tolerance: float = 0.05, ax: Axes | None = None
) -> Axes:
    """The noise ratio as estimated without a true label, against the truth.

    Look at filled points outside of the band; hollow ones are those that the estimator itself
    declares useless.

    Args:
        estimates: `estimate_ratios` rows of one kind of noise.
        tolerance: Half of the band's height.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    line = np.array([0.0, max(0.6, float(estimates["ratio"].max()))])
    ax.fill_between(line, line - tolerance, line + tolerance, color=GREY, alpha=0.15, linewidth=0)
    ax.plot(line, line, color="#222222", linewidth=0.8)
    styles = (("inverted law", BLUE, "o", -0.008), ("loss mixture", VERMILION, "s", 0.008))
    for name, colour, marker, shift in styles:
        for usable, rows in estimates[estimates["estimator"] == name].groupby("usable"):
            around = rows[["low", "high"]].to_numpy(dtype=float).T
            error = np.abs(np.nan_to_num(around - rows["estimate"].to_numpy(), nan=0.0))
            ax.errorbar(
                rows["ratio"] + shift,
                rows["estimate"],
                yerr=error,
                fmt=marker,
                color=colour,
                markerfacecolor=colour if usable else "none",
                markersize=5,
                elinewidth=1,
                label=name if usable else f"{name}, not to be believed",
            )
    ax.set(
        title=f"{estimates['noise'].iloc[0].capitalize()} noise",
        xlabel="true noise ratio",
        ylabel="estimated noise ratio",
        ylim=(-0.03, 1.0),
    )
    ax.legend(loc="upper left", fontsize=8)
    return ax


@in_house_style
def plot_label_precision(
    runs: pd.DataFrame, theory: pd.DataFrame, *, ax: Axes | None = None
) -> Axes:
    """Label precision and recall of keeping the samples whose prediction agrees with their label.

    Look at precision above 1 − ratio: that gain is what the selection is worth.

    Args:
        runs: `noise_table(study)` rows of one kind of noise, memorised and early-stopped.
        theory: Columns `ratio`, `label_precision`, `label_recall` of the law.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends: list[LineEnd] = []
    early = runs["arm"].to_numpy() == "early-stopped"
    for name, colour in (("label_precision", BLUE), ("label_recall", VERMILION)):
        ax.plot(theory["ratio"], theory[name], color=colour)
        ax.plot(runs["ratio"][~early], runs[name][~early], "o", color=colour, markersize=5)
        if early.any():
            x, y = runs["ratio"][early], runs[name][early]
            ax.plot(x, y, "D", color=colour, markerfacecolor="none", markersize=5)
        text = name.replace("_", " ")
        ends.append((theory["ratio"].iloc[-1], theory[name].iloc[-1], text, colour))
    ax.set(
        title=f"{runs['noise'].iloc[0].capitalize()} noise",
        xlabel="noise ratio",
        ylabel="share",
        ylim=(0, 1.02),
    )
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_left_out_error(comparison: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Error of each law at a noise ratio that it was not fitted to, with its bootstrap interval.

    Look for the law furthest to the left whose interval is apart from the others'.

    Args:
        comparison: `LawComparison.table`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    places = np.arange(len(comparison))
    colours = [LAW_STYLES[law][0] for law in comparison["law"]]
    ax.hlines(places, comparison["left_out_low"], comparison["left_out_high"], color=colours)
    ax.scatter(comparison["left_out_error"], places, color=colours, s=26, zorder=3)
    ax.set(
        title="Error at a ratio left out of the fit",
        xlabel="root mean square error of accuracy",
        ylabel="law",
        yticks=places,
        yticklabels=comparison["law"],
        ylim=(len(comparison) - 0.5, -0.5),
    )
    ax.update_datalim([(0.0, 0.0)])
    ax.autoscale_view()
    return ax


@in_house_style
def plot_prediction_shares(shares: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Where held-out predictions go: kept, flipped as the labels are, or to neither class.

    Look at the grey points: the law has none of them, and each costs accuracy on noisy labels.

    Args:
        shares: `shares_by_ratio` rows of one arm, width and kind of noise.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ratio = shares["ratio"].to_numpy(dtype=float)
    ends: list[LineEnd] = []
    for name, colour, law in (
        ("kept", BLUE, 1 - ratio),
        ("flipped", VERMILION, ratio),
        ("neither", GREY, np.zeros_like(ratio)),
    ):
        ax.plot(ratio, law, color=colour)
        ax.plot(ratio, shares[name], "o", color=colour, markersize=5)
        ends.append((ratio[-1], float(law[-1]), name, colour))
    ax.set(
        title=f"Where predictions go, {shares['noise'].iloc[0]} noise",
        xlabel="noise ratio (lines: what the law takes them to be)",
        ylabel="share of held-out samples",
        ylim=(-0.02, 1.02),
    )
    label_lines(ax, ends)
    return ax
