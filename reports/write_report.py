"""`write_report`: from a run or a study to an HTML file, and figures beside it if asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dynamics.datasets import Dataset, open_dataset
from dynamics.traces import Run, Study, TraceError
from reports.comparison import compare_studies
from reports.critical_report import build_critical_report
from reports.fisher_report import build_fisher_report
from reports.noise_report import build_noise_report
from reports.page import Page
from reports.run_report import build_run_report
from reports.timing_report import build_timing_report
from reports.weight_report import build_weight_report
from reports.weighting_report import build_weighting_report

MAX_BYTES = 2_000_000

STUDY_REPORTS: dict[str, Callable[[Study], Page]] = {
    "noise-ratio": build_noise_report,
    "fisher-trace": build_fisher_report,
    "weight-ratio": build_weight_report,
    "example-weighting": build_weighting_report,
    "critical-period": build_critical_report,
    "regularisation-timing": build_timing_report,
}
"""What lays out the report of each kind of study, by its name."""


def write_report(
    source: Run | Study | Sequence[Study],
    path: str | Path,
    *,
    data: str | Path | None = None,
    figures: str | Path | None = None,
) -> Path:
    """Analyse a run, a study or several, and write the report as one self-contained HTML file.

    Args:
        source: What `open_run` or `open_study` returned; several studies stand side by side.
        path: File to write; its folder is made if missing.
        data: Data set for pictures of suspect samples, as for `open_dataset`; the one that
            `run.json` names by default, if it is there and unchanged.
        figures: Folder for every figure as PNG, SVG and PDF and its data as CSV; none by default.

    Returns:
        The path written.

    Raises:
        ValueError: If the data set given is not the one that the run was trained on.
    """
    page: Page
    if isinstance(source, Study):
        page = build_study_report(source)
    elif not isinstance(source, Run):
        page = compare_studies(source, build_study_report)
    else:
        page = build_run_report(source, _find_dataset(source, data))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.to_html(), encoding="utf-8", errors="replace")
    if figures is not None:
        page.write_figures(Path(figures))
    return path


def build_study_report(study: Study) -> Page:
    """Analyse a study and lay out its report.

    Args:
        study: A study of a kind that has a report.

    Returns:
        The page.

    Raises:
        TraceError: If there is no report for its kind, or none of its runs has ended.
    """
    if study.name not in STUDY_REPORTS:
        raise TraceError(
            f"There is no report for studies called {study.name!r}; there is one for "
            f"{', '.join(STUDY_REPORTS)}. Each of its runs has a report of its own."
        )
    return STUDY_REPORTS[study.name](study)


def _find_dataset(run: Run, data: str | Path | None) -> Dataset | None:
    described = run.info.get("data")
    described = described if isinstance(described, dict) else {}
    if data is None:
        named = described.get("source")
        if not isinstance(named, str):
            return None
        try:
            dataset = open_dataset(named)
        except (FileNotFoundError, ValueError):
            return None  # the data have moved: the report says how to name them
        return dataset if dataset.fingerprint() == described.get("sha256") else None
    dataset = open_dataset(data)
    expected = described.get("sha256")
    if expected is not None and dataset.fingerprint() != expected:
        raise ValueError(
            f"{data} is not the data set that {run.path} was trained on: its fingerprint is "
            f"{dataset.fingerprint()[:12]}…, the run's {str(expected)[:12]}…."
        )
    ids = run.roster().index
    if len(ids) and int(np.max(ids)) >= len(dataset.x_train):
        raise ValueError(
            f"{data} has {len(dataset.x_train)} training images, but the run has sample "
            f"{int(np.max(ids))}."
        )
    return dataset
