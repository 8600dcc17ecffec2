"""The report of a noise-ratio study: which law the runs follow, and what that rests on."""

import numpy as np
import pytest
from recorded import law, noise_scalars, study_runs, write_study

from dynamics.traces import TraceError
from reports import write_report
from reports.comparison import compare_studies
from reports.write_report import build_study_report

SYMMETRIC = ("symmetric",)


def straight(ratio, kind):
    return 1 - 0.9 * ratio


def page_of(path, runs, **kwargs):
    return build_study_report(write_study(path, runs, **kwargs))


def cells_of(table):
    return [
        {name: cell.text for name, cell in zip(table.columns, row, strict=True)}
        for row in table.rows
    ]


@pytest.fixture(scope="module")
def following(tmp_path_factory):
    """Both kinds of noise follow the law."""
    return page_of(tmp_path_factory.mktemp("study") / "noise", study_runs())


def test_runs_that_follow_the_law_are_said_to(following):
    for name, theory, bend in (
        ("Symmetric", *following.verdict[:2]),
        ("Asymmetric", *following.verdict[2:4]),
    ):
        assert theory.startswith(f"{name} noise: Chen et al.'s quadratic")
        assert " holds within ± 0.06 at ratios from 0.2 to 0.8" in theory
        assert "not all of these runs have memorised" not in theory
        assert "Yes, it bends upwards" in bend
        assert "over 10 runs" in bend


def test_runs_on_a_straight_line_are_not_called_a_parabola(tmp_path):
    page = page_of(tmp_path / "study", study_runs(SYMMETRIC, accuracy=straight))
    theory, bend = page.verdict[:2]
    assert "does not hold within ± 0.06" in theory
    assert "It cannot be told from a straight line" in bend
    assert "the best of five is the straight line" in bend


def test_the_largest_deviation_is_named_with_its_sign_and_ratio(tmp_path):
    def off(ratio, kind):
        return law(ratio, kind) - 0.05 * (ratio == 0.4)

    page = page_of(tmp_path / "study", study_runs(SYMMETRIC, accuracy=off, noise=0))
    assert " holds within" in page.verdict[0]
    assert "is -0.050 (95 % interval -0.050 to -0.050), at ratio 0.4" in page.verdict[0]


def test_fewer_than_four_ratios_compare_no_curve_with_a_line(tmp_path):
    page = page_of(tmp_path / "study", study_runs(SYMMETRIC, ratios=(0.0, 0.2, 0.4)))
    assert page.verdict[1] == (
        "Symmetric noise: fewer than four ratios, so no curve is compared with a line."
    )
    law_panel, precision = page.key_figures[0], page.sections[0].panels[0]
    assert law_panel.draw is None
    assert "four noise ratios" in law_panel.missing
    assert precision.draw is not None
    assert "parabola" not in " ".join(page.verdict)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_a_caveat(tmp_path, seeds):
    page = page_of(tmp_path / "study", study_runs(SYMMETRIC, seeds=seeds))
    assert f"ONLY {seeds} SEED(S)" in page.caveats[0]


def test_three_seeds_are_no_caveat(tmp_path):
    page = page_of(tmp_path / "study", study_runs(SYMMETRIC, seeds=3))
    assert not any("SEED(S)" in caveat for caveat in page.caveats)


def test_a_curve_that_one_seed_cannot_tell_from_a_line_is_said_so(tmp_path):
    page = page_of(tmp_path / "study", study_runs(SYMMETRIC, seeds=1, noise=0.2))
    assert "It cannot be told from a straight line" in page.verdict[1]


def test_unfinished_runs_are_left_out_and_named(tmp_path):
    runs = study_runs(SYMMETRIC)
    runs[2] |= {"clean": False, "scalars": noise_scalars(0.0, epoch=1)}
    page = page_of(tmp_path / "study", runs)
    assert "Left out, because they have not ended: symmetric-0.2-seed0." in page.caveats
    assert " holds within" in page.verdict[0]
    assert [row["seeds"] for row in cells_of(page.tables[0])] == ["2", "1", "2", "2", "2"]


def test_a_run_that_has_recorded_nothing_yet_is_named_too(tmp_path):
    runs = study_runs(SYMMETRIC)
    runs[2] |= {"clean": False, "scalars": []}
    caveats = page_of(tmp_path / "study", runs).caveats
    assert any("symmetric-0.2-seed0" in caveat for caveat in caveats)


def test_runs_that_have_not_memorised_are_named(tmp_path):
    runs = study_runs(SYMMETRIC)
    runs[5]["scalars"] = noise_scalars(0.4, train=0.9)
    page = page_of(tmp_path / "study", runs)
    assert any("symmetric-0.4-seed1. The law is about" in caveat for caveat in page.caveats)
    assert page.verdict[0].endswith("but not all of these runs have memorised their labels.")


def test_a_study_of_one_ratio_without_noise_has_a_page(tmp_path):
    page = page_of(tmp_path / "study", study_runs(SYMMETRIC, ratios=(0.0,)))
    assert "<svg" in page.to_html()


def test_the_table_of_runs_holds_means_the_law_and_its_inverse(following):
    table = following.tables[0]
    rows = cells_of(table)
    assert [(row["noise"], row["ratio"]) for row in rows] == [
        (kind, f"{ratio:g}")
        for kind in ("asymmetric", "symmetric")
        for ratio in (0, 0.2, 0.4, 0.6, 0.8)
    ]
    runs = study_runs()
    for row in rows:
        measured = [
            scalars["value"][0]
            for run in runs
            if (run["noise"], f"{run['ratio']:g}") == (row["noise"], row["ratio"])
            for scalars in run["scalars"]
            if scalars["block"] == ["held-out, noisy labels"]
        ]
        exact = law(float(row["ratio"]), row["noise"])
        assert row["seeds"] == "2"
        assert row["epochs"] == "10–10"
        assert row["law"] == f"{exact:.3f}"
        assert row["held-out, noisy"].startswith(f"{np.mean(measured):.3f} ± ")
        assert row["deviation"] == f"{np.mean(measured) - exact:+.3f}"
        if float(row["ratio"]) < 0.5:
            assert abs(float(row["ratio by law"].split()[0]) - float(row["ratio"])) < 0.02


def test_the_page_is_written_with_its_figures_and_their_tables(following, tmp_path):
    runs = study_runs(SYMMETRIC)
    study = write_study(tmp_path / "study", runs)
    html = write_report(study, tmp_path / "r.html", figures=tmp_path / "f").read_text("utf-8")
    names = {path.name for path in (tmp_path / "f").iterdir()}
    for name in ("noise_law", "memorisation", "label_precision", "left_out_error"):
        assert {f"{name}.{ending}" for ending in ("png", "svg", "pdf")} <= names
    assert {"noise_law_symmetric_curves.csv", "noise_law_symmetric_comparison.csv"} <= names
    order = ['class="verdict"', "<figure", 'class="caveats"', "<table", 'id="rerun"', "Provenance"]
    places = [html.index(text) for text in order]
    assert places == sorted(places)
    assert "dynamics study noise-ratio --noise symmetric --ratios 0,0.2,0.4,0.6,0.8" in html


def test_an_unknown_study_is_refused_by_name(tmp_path):
    with pytest.raises(
        TraceError, match="'sleep-deprivation'; there is one for noise-ratio, fisher-trace"
    ):
        page_of(tmp_path / "study", study_runs(SYMMETRIC), name="sleep-deprivation")


def test_a_study_without_an_ended_run_is_refused(tmp_path):
    with pytest.raises(TraceError, match="recorded anything"):
        page_of(tmp_path / "empty", [])
    runs = [run | {"clean": False} for run in study_runs(SYMMETRIC, seeds=1)]
    with pytest.raises(TraceError, match="come to its end"):
        page_of(tmp_path / "unended", runs)


def test_two_studies_stand_side_by_side_on_the_same_axes(tmp_path):
    studies = [
        write_study(tmp_path / name, study_runs(SYMMETRIC, accuracy=curve))
        for name, curve in (("bent", law), ("straight", lambda r, kind: 2 * straight(r, kind) / 3))
    ]
    page = compare_studies(studies, build_study_report)
    assert page.verdict[0].startswith("bent: Symmetric noise")
    assert {table.title.split(":")[0] for table in page.tables} == {"bent", "straight"}
    panel = page.key_figures[1]
    assert panel.shape == (2, 1)
    upper, lower = panel.figure().axes
    assert upper.get_ylim() == lower.get_ylim()
    assert upper.get_title(loc="left") == "bent: Symmetric noise"
    lowest = min(np.min(line.get_ydata()) for ax in (upper, lower) for line in ax.get_lines())
    assert upper.get_ylim()[0] <= lowest
    assert len({p.name for p in page.panels}) == len(page.panels)
    with pytest.raises(TraceError, match="two different studies"):
        compare_studies([studies[0], studies[0]], build_study_report)
