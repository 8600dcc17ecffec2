"""One function a figure, `plot_<name>(table, *, ax=None) -> Axes`: draws a table, computes nothing.

Each docstring says what to look for, and which table it draws. Epochs count from 0, as in the
trace; −1 stands for a measurement before training.
"""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from reports.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    GROUP_COLOURS,
    ORANGE,
    VERMILION,
    LineEnd,
    band,
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
    _epoch_axis(ax)
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
    _epoch_axis(ax)
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
    _epoch_axis(ax)
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
    _epoch_axis(ax)
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
    _epoch_axis(ax)
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
    _epoch_axis(ax)
    others = list(colours.values()).count(_CONTEXT)
    if others:
        ends.append((table["epoch"].max(), table["value"].median(), f"{others} others", "#8a8a8a"))
    return ax, ends


def _epoch_axis(ax: Axes) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.01)
