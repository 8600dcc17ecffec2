"""Figures that compare weighting schemes: `plot_<name>(table, *, ax=None) -> Axes`."""

import pandas as pd
from matplotlib.axes import Axes

from reports.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    LineEnd,
    band,
    epoch_axis,
    in_house_style,
    label_lines,
    log_axis,
    new_axes,
)

SCHEME_COLOURS = {
    "uniform": "#222222",
    "random": GREY,
    "reweight": BLUE,
    "co-teaching": GREEN,
    "dm": ORANGE,
    "selfie": PURPLE,
    "bootstrap-hard": VERMILION,
    "data-weighting": SKY,
}
"""The schemes that keep one colour in every figure; the others are grey context."""

_CONTEXT = "#c9c9c9"


@in_house_style
def plot_best_and_final(summary: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Best and final test accuracy of each scheme, final ones with their interval.

    Look at how far a filled dot has fallen from its ring: that is what wrong labels have cost once
    they are memorised. A scheme left of the dotted line is worse than knowing nothing.

    Args:
        summary: `summarise_schemes(table)` rows of one task and level.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    rows = summary.sort_values("final", ascending=False)
    places = range(len(rows))
    ax.hlines(places, rows["final"], rows["best"], color=_CONTEXT, linewidth=2)
    ax.hlines(places, rows["final_low"], rows["final_high"], color=BLUE, linewidth=1)
    ax.plot(rows["best"], places, "o", markerfacecolor="white", markeredgecolor=GREY, markersize=5)
    ax.plot(rows["final"], places, "o", color=BLUE, markersize=5)
    for scheme, style in (("uniform", "--"), ("random", ":")):
        for final in rows.loc[rows["scheme"] == scheme, "final"]:
            ax.axvline(final, color="#222222", linewidth=0.8, linestyle=style)
    _scheme_axis(ax, rows)
    ax.set(
        title="Test accuracy: best (ring) and final (dot)",
        xlabel="share predicted right, 95 % interval over seeds (dashed: plain, dotted: random)",
        ylabel="scheme",
    )
    # An interval over two seeds may be wider than all that there is to see.
    low = min(rows["final"].min(), rows["best"].min())
    ax.set_xlim(low - 0.35 * (1 - low), min(rows["best"].max() + 0.05, 1.0))
    return ax


@in_house_style
def plot_scheme_cost(summary: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Processor time of training under each scheme, as a multiple of plain training's.

    Look at it beside the accuracies: what does a point of accuracy cost?

    Args:
        summary: `summarise_schemes(table)` rows of one task and level.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    rows = summary.dropna(subset=["cost"]).sort_values("cost")
    places = range(len(rows))
    ax.hlines(places, rows["cost_low"].clip(lower=0.5), rows["cost_high"], color=BLUE, linewidth=1)
    ax.plot(rows["cost"], places, "o", color=BLUE, markersize=5)
    ax.axvline(1, color="#222222", linewidth=0.8, linestyle="--")
    _scheme_axis(ax, rows)
    log_axis(ax, "x")
    ax.set(
        title="Cost of training",
        xlabel="processor time ÷ that of plain training, 95 % interval over seeds",
        ylabel="scheme",
        xlim=(0.7, max(1.5 * rows["cost"].max(), 2)),
    )
    return ax


@in_house_style
def plot_pull_share(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A group's share of the pull Σ wᵢ‖∂ℓᵢ/∂zᵢ‖ over epochs, under each scheme.

    Look at when the lines of schemes leave that of plain training.

    Args:
        table: `pull_over_seeds(curves)` rows of one task, level and group.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = _plot_schemes(table, new_axes(ax))
    group = str(table["group"].iloc[0])
    ax.set(title=f"Share of the pull: {group}", ylabel="share of Σ wᵢ‖∂ℓᵢ/∂zᵢ‖")
    return ax


@in_house_style
def plot_scheme_accuracy(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Test accuracy over epochs under each scheme.

    Look for a peak and a fall: the fall is memorisation of wrong labels.

    Args:
        table: `accuracy_curves(study)` rows of one task and level.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = _plot_schemes(table, new_axes(ax))
    ax.set(title="Test accuracy over training", ylabel="share predicted right")
    return ax


@in_house_style
def plot_imbalance_error(summary: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Error on a balanced test set against how rare the rare class is in training.

    Look at 0.5, where the rare class is never predicted, and at 0.05, the error that is claimed.

    Args:
        summary: `summarise_schemes(table)` rows of the task imbalance.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    schemes = sorted(summary["scheme"].unique(), key=lambda scheme: scheme not in SCHEME_COLOURS)
    for place, scheme in enumerate(schemes):
        rows = summary[summary["scheme"] == scheme].sort_values("level")
        colour = SCHEME_COLOURS.get(scheme, _CONTEXT)
        shift = 1 + 0.04 * (place - (len(schemes) - 1) / 2)  # side by side, not on one another
        ax.vlines(
            rows["level"] * shift,
            (1 - rows["final_high"]).clip(lower=0),
            (1 - rows["final_low"]).clip(upper=0.6),
            color=colour,
            linewidth=1,
        )
        ax.plot(rows["level"] * shift, 1 - rows["final"], "o-", color=colour, label=scheme)
    ax.axhline(0.05, color="#222222", linewidth=0.8, linestyle="--")
    log_axis(ax, "x")
    ax.set(
        title="Error on a balanced test set",
        xlabel="images of the common class for each of the rare one",
        ylabel="share predicted wrong, 95 % interval",
        ylim=(0, 0.6),
        xticks=sorted(summary["level"].unique()),
        xlim=(summary["level"].min() / 1.6, summary["level"].max() * 1.6),
    )
    ax.legend(loc="upper left", fontsize=8)
    return ax


def _scheme_axis(ax: Axes, rows: pd.DataFrame) -> None:
    ax.set(yticks=range(len(rows)), yticklabels=rows["scheme"])
    ax.tick_params(axis="y", labelsize=7)
    ax.invert_yaxis()


def _plot_schemes(table: pd.DataFrame, ax: Axes) -> Axes:
    """A line for each scheme with its interval; schemes without a colour of their own in grey."""
    ends: list[LineEnd] = []
    schemes = sorted(table["scheme"].unique(), key=lambda scheme: scheme in SCHEME_COLOURS)
    for scheme in schemes:
        rows = table[table["scheme"] == scheme].sort_values("epoch")
        epochs, value = rows["epoch"].to_numpy(), rows["value"].to_numpy()
        colour = SCHEME_COLOURS.get(scheme)
        ax.plot(epochs, value, color=colour or _CONTEXT, linewidth=1.6 if colour else 0.8)
        if colour:
            ends.append((epochs[-1], value[-1], scheme, colour))
            if (rows["n"] > 2).all():  # intervals over two seeds would hide the lines
                band(ax, epochs, rows["low"].to_numpy(), rows["high"].to_numpy(), colour, 0.12)
    n_others = len(schemes) - len(ends)
    if n_others:
        ax.plot([], [], color=_CONTEXT, linewidth=0.8, label=f"other schemes: {n_others}")
        ax.legend(loc="best", fontsize=8)
    spread = table["value"].max() - table["value"].min()
    margin = max(0.08 * spread, 0.01)
    ax.set_ylim(table["value"].min() - margin, table["value"].max() + margin)
    epoch_axis(ax)
    label_lines(ax, ends)
    return ax
