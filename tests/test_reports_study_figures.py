"""Figures that study reports alone draw: each is reached, named, and leaves its data."""

import sys

import pandas as pd
import pytest
from test_reports_critical_report import critical_runs
from test_reports_critical_report import study as critical_study  # noqa: F401 (a fixture)
from test_reports_critical_report import timing as timing_study  # noqa: F401 (a fixture)
from test_reports_figures import TABLES
from test_reports_weighting_report import page as weighting_page  # noqa: F401 (a fixture)
from test_studies_weight_ratio import study as weight_study  # noqa: F401 (a fixture)

import reports
from reports.write_report import build_study_report


@pytest.fixture(scope="module")
def pages(request):
    built = {"example-weighting": request.getfixturevalue("weighting_page")}
    for name in ("critical_study", "timing_study", "weight_study"):
        built[name] = build_study_report(request.getfixturevalue(name))
    return built


def figures_drawn(panel):
    """The drawn figure, and the names of the functions `plot_*` that were called for it."""
    names = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_name.startswith("plot_"):
            names.add(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        return panel.figure(), names
    finally:
        sys.setprofile(before)


def test_every_figure_of_a_study_page_is_named_and_leaves_its_tables(pages):
    called = set()
    for page in pages.values():
        for panel in page.panels:
            if panel.draw is None:
                continue
            before = {name: table.copy() for name, table in panel.tables.items()}
            figure, names = figures_drawn(panel)
            called |= names
            places = {ax.get_position().bounds: ax for ax in reversed(figure.axes)}  # not twins
            seen = [ax for ax in places.values() if ax.axison]
            assert all(ax.get_title() or ax.get_title(loc="left") for ax in seen), panel.name
            assert any(ax.get_xlabel() for ax in seen), panel.name
            assert any(ax.get_ylabel() for ax in seen), panel.name
            assert all(ax.lines or ax.collections or ax.patches for ax in seen), panel.name
            assert panel.caption, panel.name
            for name, table in panel.tables.items():
                pd.testing.assert_frame_equal(table, before[name])
    public = {name for name in reports.__all__ if name.startswith("plot_")}
    assert called | set(TABLES) == public


def test_a_page_without_windows_says_so_and_draws_the_rest(tmp_path):
    from recorded import write_critical_study

    runs = critical_runs({"decayed": 0.1, "fixed": 0.0})
    page = build_study_report(write_critical_study(tmp_path / "study", runs))
    assert any(panel.draw is None and panel.missing for panel in page.panels)
