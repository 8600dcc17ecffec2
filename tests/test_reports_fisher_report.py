"""The report of a fisher-trace study says in how many seeds the trace rises and falls."""

import pytest
from recorded import fisher_run, write_fisher_study

from dynamics.traces import TraceError
from reports import write_report
from reports.write_report import build_study_report

RISING = [0.5, 0.6, 0.8, 0.9]
FALLING, STAYING = [1, 10, 8, 6, 4], [1, 10, 9, 9, 8]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    runs = [
        *(fisher_run("reference", s, FALLING, [1, 9, 3, 1, 0.1], RISING) for s in range(4)),
        fisher_run("reference", 4, STAYING, [1, 9, 3, 1, 0.1], RISING),
        fisher_run("fixed rate", 0, STAYING, [1, 9, 8, 8, 7], RISING),
        fisher_run("fixed rate", 1, FALLING[:3], None, RISING[:2], clean=False),
    ]
    return write_fisher_study(tmp_path_factory.mktemp("study") / "fisher", runs)


def test_the_reference_comes_first_with_its_count_and_interval(study):
    reference, fixed = build_study_report(study).verdict
    assert reference.startswith("Reference: in 4 of 5 seeds the trace rises to a peak and falls")
    assert "95 % interval of that share 38% to 96%" in reference
    assert "an interior peak in 5, falls by that much in 4" in reference
    assert "ends at 0.4 of its peak, the empirical trace at 0.011 of its (medians)" in reference
    assert fixed.startswith("Fixed rate: in 0 of 1 seeds")


def test_unfinished_runs_and_few_seeds_are_named(study):
    page = build_study_report(study)
    assert "Left out, because they have not ended: fixed rate-seed1." in page.caveats
    assert "Fewer than five seeds: fixed rate." in page.caveats
    assert len(page.tables[0].rows) == 6


def test_the_page_and_its_figures_are_written(study, tmp_path):
    path = write_report(study, tmp_path / "report.html", figures=tmp_path / "figures")
    text = path.read_text(encoding="utf-8")
    assert "Does the Fisher trace rise and fall?" in text
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"fall.png", "fisher_runs_reference.pdf", "accuracy_fixed_rate.svg"} <= written


def test_a_study_without_a_finished_run_is_refused(tmp_path):
    runs = [fisher_run("reference", 0, FALLING, None, RISING, clean=False)]
    study = write_fisher_study(tmp_path / "study", runs)
    with pytest.raises(TraceError, match="has come to its end"):
        build_study_report(study)
