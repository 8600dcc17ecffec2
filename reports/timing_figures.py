"""Figures of the regularisation-timing study: `plot_<name>(table, ..., *, ax=None)`."""

import pandas as pd
from matplotlib.axes import Axes

from reports.style import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    VERMILION,
    LineEnd,
    band,
    in_house_style,
    label_lines,
    new_axes,
)

SCHEDULES = {
    "until": ("on until t0", BLUE),
    "from": ("on from t0", VERMILION),
    "window": ("on in a window", GREEN),
}


@in_house_style
def plot_switch(effects: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Effect of a regulariser on final accuracy against when it is switched.

    Look at whether "on until" reaches the dashed line (always on) early, and "on from" falls to
    zero (never on) early: then what matters is the beginning.

    Args:
        effects: Rows of `timing_effects` of one regulariser.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    ends: list[LineEnd] = []
    ax.axhline(0, color="#222222", linewidth=0.8)
    for row in effects[effects["schedule"] == "always"].to_dict("records"):
        ax.axhline(row["effect"], color=GREY, linestyle="--", linewidth=1)
        ax.axhspan(row["low"], row["high"], color=GREY, alpha=0.12, linewidth=0)
    for schedule, (name, colour) in SCHEDULES.items():
        rows = effects[effects["schedule"] == schedule].sort_values("t0")
        if rows.empty:
            continue
        x, value = rows["t0"].to_numpy(float), rows["effect"].to_numpy(float)
        ax.plot(x, value, "o-", color=colour, markersize=4)
        band(ax, x, rows["low"].to_numpy(float), rows["high"].to_numpy(float), colour)
        ends.append((x[-1], value[-1], name.replace(" in ", "\nin "), colour))
    ax.set(xlabel="epoch t0 (dashed: always on)", ylabel="accuracy gained over never on")
    label_lines(ax, ends)
    return ax


@in_house_style
def plot_peak_fisher(runs: pd.DataFrame, *, which: str = "peak", ax: Axes | None = None) -> Axes:
    """Final accuracy of each run against the peak, or end, of its Fisher trace, within seeds.

    Look at the slope over all points and within a colour: where they differ, the sign is that of
    the regularisers and no law.

    Args:
        runs: Rows of `within_seeds`.
        which: `peak` or `final`.
        ax: Axes to draw into; a new figure's by default.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    for (regulariser, rows), colour in zip(
        runs.groupby("regulariser", sort=False), CYCLE, strict=False
    ):
        ax.plot(
            rows[f"log_{which}_fisher"],
            rows["accuracy"],
            "o",
            color=colour,
            markersize=3.5,
            alpha=0.6,
            label=str(regulariser),
        )
    ax.legend(loc="best", fontsize=7)
    ax.set(
        xlabel=f"log of {which} tr F, less its seed's mean",
        ylabel="final accuracy, less its seed's mean",
    )
    return ax
