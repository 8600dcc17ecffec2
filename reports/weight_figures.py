"""Figures over the runs of study `weight-ratio`, in small multiples that share their limits.

Each `plot_<name>(table, axes)` takes as many axes as there are arms or sets; each docstring says
what to look for.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from reports.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    band,
    epoch_axis,
    in_house_style,
    label_lines,
    log_axis,
    new_axes,
)

_SETS = {"in-class test": BLUE, "off-class": GREEN, "noise": GREY}
_TOWARDS_FIRST, _TOWARDS_SECOND, _EVEN = (SKY, BLUE), (ORANGE, VERMILION), "#222222"


def name_ratio(log2_ratio: float) -> str:
    """A weight ratio as it is spoken: 16:1 for 4, 1:256 for −8.

    Args:
        log2_ratio: Logarithm to base 2 of first over second.

    Returns:
        The ratio.
    """
    size = f"{2 ** abs(log2_ratio):.3g}"
    return f"{size}:1" if log2_ratio >= 0 else f"1:{size}"


@in_house_style
def plot_effect_size(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Effect of the weights over epochs, an axes per arm and a line per set of inputs.

    Look at whether a line reaches 0, where weights no longer matter, and stays; the band is a 95 %
    interval over seeds, and the dashed line what weights do to the best log-odds.

    Args:
        table: `mean_curves` of `effect_sizes` by arm, set and epoch.
        axes: Axes of one figure, any shape.

    Returns:
        The axes.
    """

    def lines(rows: pd.DataFrame) -> dict[str, str]:
        return {name: colour for name, colour in _SETS.items() if name in set(rows["set"])}

    _small_multiples(table.assign(line=table["set"]), axes, lines, (-0.3, 2.2))
    for ax in axes.flat[: table["arm"].nunique()]:
        ax.axhline(np.log(2), color=GREY, linewidth=0.8, linestyle="--")
        ax.axhline(0, color=_EVEN, linewidth=0.8)
    return _named(axes, "log-odds per doubling\nof the weight ratio")


@in_house_style
def plot_predicted_first(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Fraction of in-class test images assigned to the first class, an axes per arm, by ratio.

    Look at whether the lines come together at one half, whatever the ratio.

    Args:
        table: `mean_curves` of `predicted_fractions` by arm, log2_ratio and epoch, of one set.
        axes: Axes of one figure, any shape.

    Returns:
        The axes.
    """
    _by_ratio(table, axes)
    return _named(axes, "fraction assigned\nto the first class")


@in_house_style
def plot_gradient_share(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Share of the weighted gradient that the up-weighted class holds, an axes per arm, by ratio.

    Look at how soon it leaves the share of the weight (epoch 0 begins near it) for one half: that
    balance is reached at once, with and without an effect on predictions.

    Args:
        table: `mean_curves` of `weighting_by_run`'s `gradient_share` by arm, log2_ratio, epoch.
        axes: Axes of one figure, any shape.

    Returns:
        The axes.
    """
    _by_ratio(table, axes)
    for ax in axes.flat[: table["arm"].nunique()]:
        ax.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    return _named(axes, "up-weighted class's\nshare of Σ w‖∇ℓ‖")


@in_house_style
def plot_weight_reach(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Share of training samples whose margin is below the log of the weight ratio, by ratio.

    Look at whether it falls to 0: then no prediction on the training set hangs on the weights.

    Args:
        table: `mean_curves` of `weighting_by_run`'s `in_reach` by arm, log2_ratio, epoch.
        axes: Axes of one figure, any shape.

    Returns:
        The axes.
    """
    _by_ratio(table, axes)
    return _named(axes, "share of samples\nin reach of the weights")


@in_house_style
def plot_margin_angle(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Angle to the direction of the largest margin over steps, an axes per model, by weight ratio.

    Look at whether every ratio's line falls, and at how slowly: both axes are logarithmic. Seeds
    differ in their points, so intervals are in the table.

    Args:
        table: `mean_curves` of `plane_angles` by arm, log2_ratio and step.
        axes: Axes of one figure, any shape.

    Returns:
        The axes.
    """
    for ax in axes.flat:
        log_axis(ax, "y")
    _by_ratio(table[table["step"] > 0], axes, "step", (1, 100))
    return _named(axes, "angle to the largest\nmargin (degrees)")


@in_house_style
def plot_weighting(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """What the weights of one run still do: gradient share, effective sample size, and reach.

    Look at the reach: where it is 0, no prediction on the training set hangs on the weights.

    Args:
        table: `weighting_over_epochs(run)`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    lines = {
        "gradient_share": ("share of the\nweighted gradient", VERMILION, "-"),
        "weight_share": ("share of the weight", VERMILION, "--"),
        "in_reach": ("samples in reach", BLUE, "-"),
    }
    ends = []
    for column, (name, colour, style) in lines.items():
        rows = table.dropna(subset=[column])
        if rows.empty:
            continue
        ax.plot(rows["epoch"], rows[column], style, color=colour)
        ends.append((float(rows["epoch"].iloc[-1]), float(rows[column].iloc[-1]), name, colour))
    error = 1.96 * table["gradient_stderr"]
    low, high = table["gradient_share"] - error, table["gradient_share"] + error
    band(ax, table["epoch"].to_numpy(), low.to_numpy(), high.to_numpy(), VERMILION)
    ax.set(title="What the weights still do", ylabel="share", ylim=(0, 1.02))
    epoch_axis(ax)
    label_lines(ax, ends)
    return ax


def _by_ratio(
    table: pd.DataFrame,
    axes: np.ndarray,
    x: str = "epoch",
    ylim: tuple[float, float] = (0, 1),
) -> None:
    """A line per weight ratio, blue towards the first class and vermilion towards the second."""

    def lines(rows: pd.DataFrame) -> dict[str, str]:
        ratios = sorted(rows["log2_ratio"].unique(), reverse=True)
        colours = {r: _EVEN for r in ratios if r == 0}
        colours |= _shades([r for r in ratios if r > 0], _TOWARDS_FIRST)
        colours |= _shades([r for r in ratios if r < 0], _TOWARDS_SECOND)
        return {name_ratio(ratio): colours[ratio] for ratio in ratios}

    named = table.assign(line=table["log2_ratio"].map(name_ratio))
    _small_multiples(named, axes, lines, ylim, x)


def _shades(ratios: list[float], colours: tuple[str, str]) -> dict[float, str]:
    """The darker colour for each ratio, the lighter for the one nearest to 1 if it is not alone."""
    ordered = sorted(ratios, key=abs)
    return {ratio: colours[i > 0 or len(ordered) == 1] for i, ratio in enumerate(ordered)}


def _small_multiples(
    table: pd.DataFrame,
    axes: np.ndarray,
    lines: Callable[[pd.DataFrame], dict[str, str]],
    ylim: tuple[float, float],
    x: str = "epoch",
) -> None:
    """Draw each arm's curves, by their column `line`, into an axes of its own, on a log axis.

    Epochs are counted from 1, as epochs trained.
    """
    arms = list(dict.fromkeys(table["arm"]))
    for place, ax in enumerate(axes.flat):
        if place >= len(arms):
            ax.set_axis_off()
            continue
        rows = table[table["arm"] == arms[place]]
        log_axis(ax, "x")
        ax.tick_params(labelbottom=True)
        if x == "step":  # too many decades for ticks in between
            ax.xaxis.set_major_locator(LogLocator())
        ax.set(title=arms[place], xlabel="epochs trained" if x == "epoch" else "steps", ylim=ylim)
        ends = []
        for name, colour in lines(rows).items():
            line = rows[(rows["line"] == name) & (rows[x] >= 0)].sort_values(x)
            at = line[x].to_numpy(dtype=float) + (x == "epoch")
            value = line["value"].to_numpy()
            ax.plot(at, value, color=colour, linewidth=1.3)
            if x == "epoch":
                band(ax, at, line["low"].to_numpy(), line["high"].to_numpy(), colour, 0.12)
            ends.append((float(at[-1]), float(value[-1]), name, colour))
        label_lines(ax, ends)


def _named(axes: np.ndarray, ylabel: str) -> np.ndarray:
    for row in axes:
        row[0].set_ylabel(ylabel)
    return axes
