"""Figures of what was measured on the network: `plot_<name>(table, *, ax=None) -> Axes`.

They draw tables and compute nothing; each docstring says what to look for.
"""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.style import (
    CYCLE,
    GREY,
    LineEnd,
    band,
    epoch_axis,
    in_house_style,
    label_lines,
    new_axes,
)

_PER_PARAMETER = "tr F (nats² per squared unit of parameter)"
_TRACES = {
    "fisher_trace": ("Fisher trace (model labels)", _PER_PARAMETER),
    "empirical_fisher_trace": ("Empirical Fisher trace (data labels)", _PER_PARAMETER),
    "scale_free_fisher_trace": ("Scale-free Fisher trace (model labels)", "Σ w² F (nats²)"),
}


@in_house_style
def plot_fisher_trace(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Fisher trace over epochs, in total and by block, with bands of ±1.96 standard errors.

    Look for rise, peak and fall: the network is plastic while the trace is high and moving. A block
    that takes over the trace late is where the remaining fitting happens.

    Args:
        table: `run.scalars("fisher_trace")`, or of `empirical_fisher_trace` or
            `scale_free_fisher_trace`, which are titled as such.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.

    Raises:
        ValueError: If the table holds several of them.
    """
    ax = new_axes(ax)
    names = set(table["name"])
    if len(names) > 1:
        raise ValueError(
            f"plot_fisher_trace draws one kind of trace, but the table holds {', '.join(names)}. "
            "They are different quantities: draw each by itself."
        )
    blocks = ["total", *(b for b in table["block"].unique() if b != "total")]
    ends = []
    for block, colour in zip(blocks, ("#222222", *CYCLE, *[GREY] * len(blocks)), strict=False):
        rows = table[table["block"] == block]
        epochs, value = rows["epoch"].to_numpy(), rows["value"].to_numpy()
        ax.plot(epochs, value, color=colour, linewidth=2 if block == "total" else 1.2)
        error = 1.96 * rows["stderr"].to_numpy()
        band(ax, epochs, value - error, value + error, colour)
        ends.append(
            (epochs[-1], value[-1], block if block == "total" else f"layer {block}", colour)
        )
    title, unit = _TRACES[names.pop()] if names else _TRACES["fisher_trace"]
    ax.set(title=title, ylabel=unit)
    ax.set_ylim(bottom=0)
    epoch_axis(ax)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_fisher_share(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of each block in the Fisher trace over epochs, the first layers at the bottom.

    Look at where the mass moves: under a deficit it goes to the last layers (Achille et al.,
    Sec. 3.2), and a layer that keeps most of it is where the data still change the network.

    Args:
        table: `run.scalars("fisher_share")`, blocks in the model's order.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    blocks = list(dict.fromkeys(table["block"]))
    shares = table.pivot(index="epoch", columns="block", values="value")[blocks]
    depths = np.linspace(0.1, 0.92, len(blocks))
    colours = [mpl.colormaps["cividis"](depth) for depth in depths]
    values = shares.to_numpy(dtype=float).T
    ax.stackplot(shares.index, values, colors=colours, edgecolor="white", linewidth=0.5)
    last = values[:, -1]
    middles = np.cumsum(last) - last / 2
    ends = [
        (float(shares.index[-1]), middle, f"layer {block}", "#222222")
        for block, middle, share in zip(blocks, middles, last, strict=True)
        if share >= 0.03
    ]
    ax.set(title="Share of the Fisher trace by depth", ylabel="share of tr F", ylim=(0, 1))
    ax.margins(x=0)
    epoch_axis(ax)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_accuracy(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracies over epochs, with bands of ±1.96 standard errors.

    Look for the best test accuracy before the training curve reaches 1: what is lost after it is
    what memorising costs.

    Args:
        table: `run.scalars("accuracy")`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends = []
    for block, colour in zip(table["block"].unique(), CYCLE, strict=False):
        rows = table[table["block"] == block]
        epochs, value = rows["epoch"].to_numpy(), rows["value"].to_numpy()
        error = 1.96 * rows["stderr"].to_numpy()
        ax.plot(epochs, value, color=colour)
        band(ax, epochs, value - error, value + error, colour)
        ends.append((epochs[-1], value[-1], str(block).replace(", ", ",\n"), colour))
    ax.set(title="Accuracy", ylabel="share predicted right", ylim=(0, 1.02))
    epoch_axis(ax)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_weighted_gradient_share(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Each weight group's share of the weighted gradient Σ wᵢ‖∇ℓᵢ‖ over epochs, against its weight.

    Look at solid against dashed: where a group's share of the gradient leaves its share of the
    weight, the weight no longer decides what the group contributes.

    Args:
        table: `run.scalars()` rows of `weighted_gradient_share` and `weight_share`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    shares = table[table["name"] == "weighted_gradient_share"]
    ax, ends = _plot_blocks(shares, ax)
    weights = table[table["name"] == "weight_share"]
    for block, colour in _colours(shares).items():
        rows = weights[weights["block"] == block]
        if len(rows) and colour != _CONTEXT:
            ax.plot(rows["epoch"], rows["value"], "--", color=colour, linewidth=0.8)
    ax.set(title="Share of the weighted gradient", ylabel="share (dashed: share of the weight)")
    ax.set_ylim(bottom=0)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_predicted_frac(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Fraction of an evaluation set assigned to each class, over epochs.

    Look for fractions that drift back to what an unweighted network gives: the effect of the
    weights is wearing off.

    Args:
        table: `run.scalars("predicted_frac")` rows of one set; blocks are `<set>: class <c>`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax, ends = _plot_blocks(table, ax)
    name = str(table["block"].iloc[0]).rpartition(": ")[0]
    ax.set(title=f"Predicted classes: {name}", ylabel="fraction of the set", ylim=(0, None))
    label_lines(ax, ends)
    return ax


_CONTEXT = "#c9c9c9"
_N_NAMED = 4


def _colours(table: pd.DataFrame) -> dict[str, str]:
    """A colour for each block; of many, for those that end highest and lowest, the rest grey."""
    last = table[table["epoch"] == table["epoch"].max()].sort_values("value")["block"].tolist()
    named = last if len(last) <= _N_NAMED else [*last[:1], *last[1 - _N_NAMED :]]
    colours = dict(zip(sorted(named), CYCLE, strict=False))
    return {block: colours.get(block, _CONTEXT) for block in table["block"].unique()}


def _plot_blocks(table: pd.DataFrame, ax: Axes | None) -> tuple[Axes, list[LineEnd]]:
    ax = new_axes(ax)
    ends = []
    colours = _colours(table)
    for block, colour in sorted(colours.items(), key=lambda item: item[1] != _CONTEXT):
        rows = table[table["block"] == block]
        epochs, value = rows["epoch"].to_numpy(), rows["value"].to_numpy()
        error = 1.96 * rows["stderr"].to_numpy()
        ax.plot(epochs, value, color=colour, linewidth=0.8 if colour == _CONTEXT else 1.4)
        if colour != _CONTEXT:
            band(ax, epochs, value - error, value + error, colour)
            ends.append((epochs[-1], value[-1], str(block).rpartition(": ")[2], colour))
    epoch_axis(ax)
    others = list(colours.values()).count(_CONTEXT)
    if others:
        ends.append((table["epoch"].max(), table["value"].median(), f"{others} others", "#8a8a8a"))
    return ax, ends
