"""Figures of the samples: `plot_<name>(table, *, ax=None) -> Axes` draws a table, computes nothing.

Each docstring says what to look for, and which table it draws. Epochs count from 0, as in the
trace; −1 stands for a measurement before training.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from reports.style import (
    BLUE,
    GREEN,
    GREY,
    GROUP_COLOURS,
    ORANGE,
    VERMILION,
    LineEnd,
    band,
    epoch_axis,
    in_house_style,
    label_lines,
    new_axes,
)

_SCORE_NAMES = {"loss": "loss", "aum": "AUM", "grad_norm": "gradient norm"}


@in_house_style
def plot_loss(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Loss of clean and wrongly labelled samples over epochs: median, and middle half as a band.

    Look for the gap: while it is open, the network has learned what is regular and not yet the
    noise; where the curves meet, it has memorised.

    Args:
        table: `summarise_epochs(run, "loss", groups=...)`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax, ends = _plot_distribution(table, ax)
    ax.set(title="Loss by sample group", ylabel="loss (nats)")
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_grad_norm(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Distribution of per-sample gradient norms over epochs: median, middle half as a band.

    Look for which group drives the updates: late in training a few samples with large norms do.

    Args:
        table: `summarise_epochs(run, "grad_norm", groups=...)`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax, ends = _plot_distribution(table, ax)
    for group, rows in table.groupby("group"):
        colour = GROUP_COLOURS.get(str(group), GREY)
        ax.plot(rows["epoch"], rows["q95"], color=colour, linewidth=0.8, linestyle=":")
    ax.set(title="Per-sample gradient norm", ylabel="‖∇ℓᵢ‖₂ (nats per unit of parameter)")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    label_lines(ax, ends)
    return ax


def _plot_distribution(table: pd.DataFrame, ax: Axes | None) -> tuple[Axes, list[LineEnd]]:
    ax = new_axes(ax)
    ends = []
    for group, rows in table.groupby("group"):
        colour = GROUP_COLOURS.get(str(group), GREY)
        epochs = rows["epoch"].to_numpy()
        ax.plot(epochs, rows["median"], color=colour)
        band(ax, epochs, rows["q25"].to_numpy(), rows["q75"].to_numpy(), colour)
        n = f"{int(rows['n'].iloc[-1]):,}"
        ends.append((epochs[-1], rows["median"].iloc[-1], f"{group}\n(n = {n})", colour))
    epoch_axis(ax)
    return ax, ends


@in_house_style
def plot_loss_mixture(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Histogram of losses at one epoch, with the two fitted beta components.

    Look for two humps and for how well the curves follow the bars; one hump means that there is
    nothing to separate, whatever the fitted rate says.

    Args:
        table: `tabulate_mixture(...)`: scaled loss bins with densities.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    width = float(table["right"].iloc[0] - table["left"].iloc[0])
    bottom = np.zeros(len(table))
    groups = [g for g in ("clean", "wrong label", "all") if g in table]
    for group in groups:
        heights = table[group].to_numpy()
        ax.bar(
            table["left"],
            heights,
            width,
            bottom=bottom,
            align="edge",
            color=GROUP_COLOURS[group],
            alpha=0.35,
            label="samples" if group == "all" else f"{group} samples (truth)",
        )
        bottom += heights
    centre = (table["left"] + table["right"]) / 2
    ax.plot(centre, table["component_0"], color=BLUE, label="fitted: label right")
    ax.plot(centre, table["component_1"], color=VERMILION, label="fitted: label wrong")
    ax.set(
        title="Losses and the fitted beta mixture",
        xlabel="loss, scaled so that the 5th and 95th percentile are 0 and 1",
        ylabel="density",
        ylim=(0, 1.08 * max(bottom.max(), table["component_0"].iloc[1:].max())),
    )
    ax.legend(fontsize=8, loc="upper center")
    return ax


@in_house_style
def plot_detection_auc(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How well loss, AUM and gradient norm tell wrong labels over epochs, with 95 % bands.

    Look for the plateau before memorisation, and for AUM staying up when the loss falls: it
    remembers.

    Args:
        table: `detection_auc(run, flipped)`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends = []
    for (score, name), colour in zip(_SCORE_NAMES.items(), (BLUE, GREEN, ORANGE), strict=True):
        rows = table[table["score"] == score]
        if rows.empty:
            continue
        epochs, auc = rows["epoch"].to_numpy(), rows["auc"].to_numpy()
        ax.plot(epochs, auc, color=colour)
        band(ax, epochs, auc - 1.96 * rows["stderr"], auc + 1.96 * rows["stderr"], colour)
        ends.append((epochs[-1], auc[-1], name, colour))
    ax.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    ax.set(title="Which labels are wrong?", ylabel="area under the ROC curve")
    ax.set_ylim(top=1.01)
    epoch_axis(ax)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_data_map(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Each sample by mean and spread of its label's probability over training.

    Look at the corners: top left easy, bottom left hard or mislabelled, right ambiguous.

    Args:
        table: `summarise_samples(...)` with a column `group`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    for group in ("all", "clean", "wrong label"):
        rows = table[table["group"] == group]
        if len(rows):
            colour = GROUP_COLOURS[group]
            label = f"{group} ({len(rows):,})"
            ax.scatter(
                rows["std_p_true"],
                rows["mean_p_true"],
                s=9,
                color=colour,
                alpha=0.5,
                linewidths=0,
                label=label,
                rasterized=True,
            )
    ax.set(
        title="Data map",
        xlabel="variability: standard deviation of p(label) over epochs",
        ylabel="confidence: mean p(label)",
        ylim=(-0.02, 1.02),
    )
    ax.legend(loc="lower right", fontsize=8, markerscale=1.6)
    return ax
