"""Two or more studies side by side on one page: verdicts, figures on shared axes, tables."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dynamics.traces import Study, TraceError
from reports.page import Page, Panel, Rerun, Section
from reports.style import house_style

Limits = tuple[tuple[float, float], tuple[float, float]]


def compare_studies(studies: Sequence[Study], build: Callable[[Study], Page]) -> Page:
    """Lay out several studies on one page.

    Key figures that more than one study has stand next to each other with the same limits; every
    sentence and table says whose it is. No study is tested against another.

    Args:
        studies: At least two, in the order in which they are shown.
        build: Lays out the report of one study.

    Returns:
        The page.

    Raises:
        TraceError: If there are fewer than two, or one of them twice.
    """
    names = _name(studies)
    pages = dict(zip(names, (build(study) for study in studies), strict=True))
    provenance = {
        f"{name}: {key}": text
        for name, page in pages.items()
        for key, text in page.provenance.items()
    }
    return Page(
        title=f"{len(pages)} studies side by side: {', '.join(pages)}",
        subtitle=" — ".join(page.subtitle for page in pages.values()),
        verdict=[f"{name}: {text}" for name, page in pages.items() for text in page.verdict],
        caveats=[
            "The studies are shown next to each other; no difference between them is tested here.",
            *(f"{name}: {text}" for name, page in pages.items() for text in page.caveats),
        ],
        sections=_join_sections(pages),
        tables=[
            type(table)(f"{name}: {table.title}", table.note, table.columns, table.rows)
            for name, page in pages.items()
            for table in page.tables
        ],
        provenance=provenance,
        key_figures=_join({name: page.key_figures for name, page in pages.items()}),
        rerun=_rerun(pages, studies),
    )


def _name(studies: Sequence[Study]) -> list[str]:
    """The studies' folder names, or whole paths where names repeat."""
    paths = [study.path.resolve() for study in studies]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise TraceError(
            f"A comparison needs two different studies or more, but got "
            f"{', '.join(str(path) for path in paths) or 'none'}."
        )
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _join_sections(pages: dict[str, Page]) -> list[Section]:
    titles = dict.fromkeys(s.title for page in pages.values() for s in page.sections)
    joined = []
    for title in titles:
        panels = {
            name: [p for s in page.sections if s.title == title for p in s.panels]
            for name, page in pages.items()
        }
        joined.append(Section(title, _join(panels)))
    return joined


def _join(panels: dict[str, list[Panel]]) -> list[Panel]:
    """One panel for each name: that of the studies that have it, next to each other."""
    names = dict.fromkeys(panel.name for of_study in panels.values() for panel in of_study)
    joined = []
    for name in names:
        found = {s: p for s, own in panels.items() for p in own if p.name == name}
        drawn = {study: panel for study, panel in found.items() if panel.draw is not None}
        joined.append(_side_by_side(drawn) if drawn else next(iter(found.values())))
    return joined


def _side_by_side(panels: dict[str, Panel]) -> Panel:
    first = next(iter(panels.values()))
    rows = sum(panel.shape[0] for panel in panels.values())
    columns = max(panel.shape[1] for panel in panels.values())

    def draw(axes: Any) -> None:
        grid = np.array([[axes]]) if isinstance(axes, Axes) else axes
        x, y = _limits(panels)
        used = 0
        for study, panel in panels.items():
            part = grid[used : used + panel.shape[0]]
            for ax in part.flat:
                ax.set(xlim=x, ylim=y)  # first, because names at the ends of lines go by them
            for ax in part[:, panel.shape[1] :].flat:
                ax.set_axis_off()
            _draw(panel, part[:, : panel.shape[1]])
            for ax in part[:, : panel.shape[1]].flat:
                ax.set_title(f"{study}: {ax.get_title(loc='left')}", loc="left")
            used += panel.shape[0]

    tables = {
        f"{name}_{place}": table
        for place, panel in enumerate(panels.values())
        for name, table in panel.tables.items()
    }
    return Panel(first.name, first.title, first.caption, draw, tables, shape=(rows, columns))


def _draw(panel: Panel, axes: np.ndarray) -> None:
    if panel.draw is not None:
        panel.draw(axes[0, 0] if panel.shape == (1, 1) else axes)


def _limits(panels: dict[str, Panel]) -> Limits:
    """Limits that hold every study's own figure."""
    x, y = [], []
    for panel in panels.values():
        with house_style(salt=panel.name):
            figure = Figure()
            axes = figure.subplots(*panel.shape, sharex=True, sharey=True, squeeze=False)
            _draw(panel, axes)
        x.append(sorted(axes[0, 0].get_xlim()))
        y.append(sorted(axes[0, 0].get_ylim()))
    low, high = np.min([x, y], axis=1)[:, 0], np.max([x, y], axis=1)[:, 1]
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def _rerun(pages: dict[str, Page], studies: Sequence[Study]) -> Rerun:
    report = "dynamics report " + " ".join(str(study.path) for study in studies)
    commands = [page.rerun.command for page in pages.values() if page.rerun is not None]
    missing = [
        f"{name}, {text}"
        for name, page in pages.items()
        if page.rerun is not None
        for text in page.rerun.missing
    ]
    return Rerun(" && \\\n".join([*commands, f"{report} --out comparison.html"]), "", missing)
