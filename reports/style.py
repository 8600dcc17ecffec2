"""The look of the figures: one palette, direct labels, bands for uncertainty, the same in every file.

Colours are from Okabe and Ito's set, which stays apart for colour-blind readers and, by lightness, in
print. Clean samples are always blue, wrong labels always vermilion.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY, GREY = "#AA4499", "#E69F00", "#56B4E9", "#666666"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
GROUP_COLOURS = {"clean": BLUE, "wrong label": VERMILION, "all": BLUE}

_RC = {
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.prop_cycle": mpl.cycler(color=CYCLE),
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
        salt: Makes the ids inside an SVG reproducible and, with one salt a figure, unique in a page.

    Yields:
        Nothing.
    """
    with mpl.rc_context({**_RC, "svg.hashsalt": salt}):
        yield


def new_axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure that no window shows."""
    if ax is not None:
        return ax
    with house_style():
        return Figure().add_subplot()


def band(
    ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, alpha: float = 0.18
) -> None:
    """Shade an interval around a line."""
    ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)


def label_lines(ax: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name at its right end, moved apart where names would overlap.

    Args:
        ax: Axes with final limits.
        labels: For each line its last x, last y, name and colour.
    """
    if not labels:
        return
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = [float(to_axes.transform((x, y))[1]) for x, y, _, _ in labels]
    gap = 0.075
    placed = np.array(heights)[np.argsort(heights)]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    overflow = placed[-1] - 1.0
    if overflow > 0:
        placed[-1] -= overflow
        for i in range(len(placed) - 2, -1, -1):
            placed[i] = min(placed[i], placed[i + 1] - gap)
    for (_, _, name, colour), height in zip(
        sorted(labels, key=lambda label: heights[labels.index(label)]), placed, strict=True
    ):
        ax.text(
            1.01, height, name, color=colour, transform=ax.transAxes, va="center", fontsize=8
        )


def to_svg(figure: Figure) -> str:
    """A figure as an SVG element for a page: no size of its own, no metadata, the same each time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r' height="[^"]*pt"', "", text, count=1))
