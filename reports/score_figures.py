"""Figures of per-sample scores: whether they agree, whether to sample by them, can one be believed.

Each draws a table of `dynamics` and computes nothing, as in figures.py.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from reports.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    band,
    epoch_axis,
    in_house_style,
    label_lines,
    new_axes,
)

_NAMES = {"aum": "AUM", "el2n": "EL2N", "grand": "GraNd"}
_PROPOSALS = {"loss": "loss", "bound": "bound Ĝ", "grad_norm": "gradient\nnorm"}


@in_house_style
def plot_importance_gain(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """τ of sampling by loss, bound or gradient norm over epochs, with 95 % bands and the threshold.

    Look for when the bound Ĝ crosses the dashed line: from there on importance sampling would
    save time. τ of the loss overstates it.

    Args:
        table: `importance_each_epoch(run, presample=..., batch=...)`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends = []
    for (score, name), colour in zip(_PROPOSALS.items(), (BLUE, GREEN, ORANGE), strict=True):
        rows = table[table["score"] == score]
        if rows.empty:
            continue
        epochs = rows["epoch"].to_numpy()
        ax.plot(epochs, rows["tau"], color=colour)
        band(ax, epochs, rows["low"].to_numpy(), rows["high"].to_numpy(), colour)
        ends.append((epochs[-1], float(rows["tau"].iloc[-1]), name, colour))
    threshold = float(table["threshold"].iloc[0])
    ax.axhline(threshold, color=GREY, linewidth=0.8, linestyle="--")
    ax.text(
        0.01,
        threshold,
        "pays above",
        color=GREY,
        fontsize=8,
        va="bottom",
        transform=ax.get_yaxis_transform(),
    )
    ax.set(title="Would importance sampling pay?", ylabel="τ = √(1 + CV²) of the scores")
    epoch_axis(ax)
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_score_agreement(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Rank correlation of every pair of difficulty scores; 1 means the same samples are hard.

    Look for scores that stand apart: near 1, one can be recorded in place of the other.

    Args:
        table: `rank_agreement(scores)`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    names = list(dict.fromkeys([*table["a"], *table["b"]]))
    grid = np.full((len(names), len(names)), np.nan)
    for row in table.itertuples():
        at = names.index(str(row.b)), names.index(str(row.a))
        grid[at] = row.correlation
        half = (float(row.high) - float(row.low)) / 2  # type: ignore[arg-type]  # of a float column
        spread = f"\n±{half:.2f}" if np.isfinite(half) else ""
        dark = abs(grid[at]) > 0.6
        ax.text(
            at[1],
            at[0],
            f"{grid[at]:.2f}{spread}".replace("-", "−"),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )
    edges = np.arange(len(names)) - 0.5
    ax.pcolormesh(edges, edges + 1, grid[1:, :-1], cmap="RdBu", vmin=-1, vmax=1)
    ax.invert_yaxis()
    shown = [_NAMES.get(name, name) for name in names]
    ax.set_xticks(range(len(names) - 1), shown[:-1])
    ax.set_yticks(range(1, len(names)), shown[1:])
    ax.grid(visible=False)
    ax.set(title="Do the scores agree on what is hard?", xlabel="score", ylabel="and another")
    return ax


@in_house_style
def plot_posterior_calibration(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of labels that are wrong in truth, by the mixture's probability of being wrong.

    Look for dots off the diagonal by more than their bars: there the posterior cannot be taken as
    a probability. Below the diagonal it accuses too many.

    Args:
        table: `tabulate_reliability(posterior, truth)`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    x, y = table["posterior"].to_numpy(), table["share"].to_numpy()
    ax.vlines(x, table["low"], table["high"], color=BLUE, linewidth=1.2)
    ax.plot(x, y, "o", color=BLUE, markersize=4)
    for at, height, n in zip(x, table["high"], table["n"], strict=True):
        ax.annotate(
            f"{n:,}",
            (at, height),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=GREY,
        )
    ax.text(0.83, 0.93, "calibrated", color=GREY, fontsize=8, ha="right")
    ax.set(
        title="Can the posterior be believed?",
        xlabel="P(label wrong) by the beta mixture; numbers: samples",
        ylabel="share wrong in truth",
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.1),
    )
    return ax
