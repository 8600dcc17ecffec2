"""The look of the figures: one palette, direct labels, bands for uncertainty, in every file.

Colours are from Okabe and Ito's set, which stays apart for colour-blind readers and, by lightness,
in print. Clean samples are always blue, wrong labels always vermilion.
"""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY, GREY = "#AA4499", "#E69F00", "#56B4E9", "#666666"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
GROUP_COLOURS = {"clean": BLUE, "wrong label": VERMILION, "all": BLUE}

_ON_DARK = {
    "#ffffff": ("card", "#202225"),
    "#e4e4e4": ("grid", "#34373b"),
    "#444444": ("axis", "#9a9a9a"),
    "#222222": ("strong", "#f2f2f2"),
    "#000000": ("ink", "#ececec"),
    GREY.lower(): ("grey", "#a5a5a5"),
    BLUE.lower(): ("blue", "#4ba9e2"),
    VERMILION.lower(): ("vermilion", "#f5803e"),
    GREEN.lower(): ("green", "#2cc295"),
    PURPLE.lower(): ("purple", "#d67fd6"),
}
"""Colour in a figure, and its CSS variable and value where a page is read in the dark."""

DARK_FIGURES = " ".join(f"--{name}: {colour};" for name, colour in _ON_DARK.values())
"""The variables' values on a dark page; without them each colour is the figure's own."""

LineEnd = tuple[float, float, str, str]
"""Last x, last y, name and colour of a line."""

_RC: dict[Any, Any] = {  # matplotlib types the keys, not the values that belong to them
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.figsize": (6.2, 3.4),
    "font.size": 9,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a `$` in a class or file name is not mathematics
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextlib.contextmanager
def house_style(salt: str = "training-dynamics") -> Iterator[None]:
    """Draw in the house style, whatever the caller's own settings are.

    Args:
        salt: Makes ids inside an SVG reproducible and, one salt a figure, unique in a page.

    Yields:
        Nothing.
    """
    with mpl.rc_context(_RC | {"svg.hashsalt": salt}):
        yield


def new_axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure that no window shows."""
    if ax is not None:
        return ax
    with house_style():
        return Figure().add_subplot()


Plot = TypeVar("Plot", bound=Callable[..., Axes])


def in_house_style(plot: Plot) -> Plot:
    """Let a plot function draw in the house style wherever it is called from."""

    @functools.wraps(plot)
    def styled(*args: Any, **kwargs: Any) -> Axes:
        with house_style():
            return plot(*args, **kwargs)

    return cast("Plot", styled)


def band(
    ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, alpha: float = 0.18
) -> None:
    """Shade an interval around a line."""
    ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)


def label_lines(ax: Axes, labels: Sequence[LineEnd]) -> None:
    """Write each line's name at its right end, moved apart where names would overlap.

    Args:
        ax: Axes with their final limits and scales.
        labels: The lines' ends.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = []
    for x, y, name, colour in labels:
        placed.append((float(to_axes.transform((x, y))[1]), name, colour))
    placed.sort(key=lambda label: label[0])
    sizes = np.array([0.075 * (1 + name.count("\n")) for _, name, _ in placed])
    heights = np.array([height for height, _, _ in placed])
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + (sizes[i - 1] + sizes[i]) / 2)
    if len(heights) and heights[-1] > 1:
        heights[-1] = 1
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = min(heights[i], heights[i + 1] - (sizes[i + 1] + sizes[i]) / 2)
    for height, (_, name, colour) in zip(heights, placed, strict=True):
        ax.text(
            1.01,
            height,
            name,
            color=colour,
            transform=ax.transAxes,
            va="center",
            fontsize=8,
            parse_math=False,
        )


def epoch_axis(ax: Axes) -> None:
    """Label an axis of epochs, with ticks at whole ones."""
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.01)


def log_axis(ax: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5: the house style has no maths."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def to_svg(figure: Figure) -> str:
    """A figure as an SVG element: no size of its own, no metadata, the same bytes each time.

    Its colours are CSS variables with themselves as fallback, so that a page can darken them.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\b(fill|stroke): (#[0-9a-f]{6})\b", _as_variable, text)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r' height="[^"]*pt"', "", text, count=1)
    )


def _as_variable(found: re.Match[str]) -> str:
    prop, colour = found.groups()
    if colour not in _ON_DARK:
        return found.group()
    return f"{prop}: var(--{_ON_DARK[colour][0]}, {colour})"
