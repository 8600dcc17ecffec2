"""A report as one HTML file: what it holds, how it is rendered, and its figures as files.

Nothing in the page is loaded from anywhere, no script runs, and every text is escaped; the only
markup that is passed through is the SVG that matplotlib made.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.image import imsave

from reports.style import DARK_FIGURES, house_style, to_svg

PANEL_WIDTH, PANEL_HEIGHT = 4.0, 3.1
"""Inches of one of several axes in a figure."""

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Panel:
    """One figure of a report, with its data and what to look for.

    Attributes:
        name: Name of its files, and of the function `plot_<name>` that draws it.
        title: What it shows, for readers who do not see it.
        caption: What to look for.
        draw: Draws into the axes given; None if the data were not recorded.
        tables: The data drawn, by name of the CSV file without its ending.
        missing: Which probe to switch on, where the data were not recorded.
        shape: Rows and columns of small multiples. Beyond (1, 1), `draw` gets an array of axes of
            this shape, which share their limits, and the figure goes over the page's width.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any], object] | None = None
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    missing: str = ""
    shape: tuple[int, int] = (1, 1)

    def figure(self) -> Figure:
        """The drawn figure, in the house style."""
        if self.draw is None:
            raise ValueError(f"{self.name} was not recorded. {self.missing}")
        rows, columns = self.shape
        if self.shape == (1, 1):
            figure = Figure()
            self.draw(figure.add_subplot())
            return figure
        figure = Figure(figsize=(max(6.2, PANEL_WIDTH * columns), PANEL_HEIGHT * rows))
        self.draw(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False))
        return figure

    @cached_property
    def svg(self) -> Markup | None:
        """The figure as an SVG element, or None if it was not recorded."""
        if self.draw is None:
            return None
        with house_style(salt=self.name):
            return Markup(to_svg(self.figure()))  # noqa: S704 (matplotlib escapes its texts)


@dataclass(frozen=True)
class Section:
    """Figures that belong together."""

    title: str
    panels: list[Panel]


@dataclass(frozen=True)
class Cell:
    """One cell of a table: text, or a picture with the text as its description."""

    text: str
    picture: str | None = None


@dataclass(frozen=True)
class PageTable:
    """A table of a report."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Rerun:
    """How to run it again.

    Attributes:
        command: One command line.
        took: How long it took, in words; empty if unknown.
        missing: What the plan holds and this page does not, such as runs that have not ended.
    """

    command: str
    took: str = ""
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """A report, in the order in which it is read.

    Attributes:
        title: What it asks or is about.
        subtitle: Of what.
        verdict: Its answer, in one sentence with its uncertainty where it can be.
        caveats: What could have fooled us.
        sections: Further figures.
        tables: The numbers.
        provenance: Where they come from, by name.
        key_figures: The three figures that the verdict rests on, before the caveats.
        rerun: How to run it again; nothing where it is not a study's.
    """

    title: str
    subtitle: str
    verdict: list[str]
    caveats: list[str]
    sections: list[Section]
    tables: list[PageTable]
    provenance: dict[str, str]
    key_figures: list[Panel] = field(default_factory=list)
    rerun: Rerun | None = None

    @property
    def panels(self) -> list[Panel]:
        """Every figure, in order."""
        return [*self.key_figures, *(p for section in self.sections for p in section.panels)]

    def to_html(self) -> str:
        """The page as one self-contained HTML document."""
        environment = Environment(
            loader=PackageLoader("reports"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        return environment.get_template("report.html").render(page=self, dark_figures=DARK_FIGURES)

    def write_figures(self, folder: Path) -> list[Path]:
        """Write every figure as PNG, SVG and PDF, and the data drawn as CSV.

        Args:
            folder: Folder to write to; made if missing.

        Returns:
            The files written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for panel in self.panels:
            if panel.draw is None:
                continue
            with house_style(salt=panel.name):
                figure = panel.figure()
                for ending in ("png", "svg", "pdf"):
                    path = folder / f"{panel.name}.{ending}"
                    undated = {"CreationDate": None} if ending == "pdf" else {}
                    undated = {"Date": None} if ending == "svg" else undated
                    figure.savefig(path, dpi=200, metadata=undated)
                    written.append(path)
            for name, table in panel.tables.items():
                written.append(write_csv(table, folder / f"{name}.csv"))
        return written


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as CSV in which no text starts like a spreadsheet formula.

    Args:
        table: The table.
        path: File to write.

    Returns:
        The path.
    """
    safe = table.reset_index() if table.index.name else table.copy()
    for column in safe.select_dtypes(exclude="number"):
        safe[column] = safe[column].map(lambda v: _harmless(v) if isinstance(v, str) else v)
    safe.to_csv(path, index=False)
    return path


def _harmless(text: str) -> str:
    """Text that no spreadsheet runs, on one line: a line may not begin with a formula either."""
    prefixed = f"'{text}" if text.startswith(FORMULA_STARTS) else text
    return prefixed.replace("\r", " ").replace("\n", " ")


def picture(image: np.ndarray, peak: int) -> str:
    """An image as a `data:` address of a PNG.

    Args:
        image: Shape (H, W) or (H, W, 3), from 0 to `peak`.
        peak: Largest pixel value of the format.

    Returns:
        The address.
    """
    buffer = io.BytesIO()
    scaled = np.clip(image.astype(np.float64) / peak, 0, 1)
    imsave(buffer, scaled, format="png", cmap="gray", vmin=0, vmax=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
