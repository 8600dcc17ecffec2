"""Reports of critical-period and regularisation-timing studies say what their runs show."""

import numpy as np
import pytest
from recorded import critical_run, timing_run, write_critical_study, write_timing_study

from dynamics.traces import TraceError
from reports import write_report
from reports.write_report import build_study_report

TRACE = [1, 8, 20, 12, 7, 4, 3, 2, 2]


def critical_runs(drops, *, seeds=4, **changed):
    """Runs without a deficit, and with blur until 20 whose drops are given by rate."""
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(seeds):
        for rate in ("decayed", "fixed"):
            runs.append(critical_run("none", rate, 0, 0, seed, 0.9, trace=TRACE))
        for rate, drop in drops.items():
            test = 0.9 - drop + 0.002 * rng.standard_normal()
            runs.append(critical_run("blur", rate, 0, 20, seed, test, trace=TRACE, **changed))
    return runs


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    rng = np.random.default_rng(1)
    runs = critical_runs({"decayed": 0.1, "fixed": 0.0, "reset": 0.0})
    for seed in range(4):
        for onset, drop in ((1, 0.1), (2, 0.06), (3, 0.0), (4, 0.0)):
            test = 0.9 - drop + 0.002 * rng.standard_normal()
            runs.append(critical_run("blur", "decayed", onset, onset + 20, seed, test))
        runs.append(critical_run("flip", "decayed", 0, 20, seed, 0.89))
    runs.append(critical_run("blur", "fixed", 0, 40, 0, 0.5, clean=False))
    return write_critical_study(tmp_path_factory.mktemp("critical") / "study", runs)


def test_a_rate_confound_is_told_in_words(study):
    verdict = build_study_report(study).verdict
    assert verdict[0].startswith("MLP: a rate confound, not a critical period.")
    assert "Blur until epoch 20 costs +0.1" in verdict[0]
    assert "4 seeds) in the fixed arm" in verdict[0]
    assert "in the decayed arm from t0 = 20 on, the fixed arm at none" in verdict[1]
    assert "flip until epoch 20 costs +0.010" in verdict[2]
    assert "which is at most half of what blur costs" in verdict[2]


def test_window_phases_and_their_comparison_are_told(study):
    text = " ".join(build_study_report(study).verdict)
    assert "costs accuracy from onset 0 on, and not at 3 (Holm over onsets, 4 seeds)" in text
    assert "Rank correlation of sensitivity with tr F at the onset" in text
    assert "a peak at epoch 1 (1 to 1) and falls to 0.1 of it" in text


def test_a_drop_in_every_arm_is_a_critical_period(tmp_path):
    runs = critical_runs({"decayed": 0.1, "fixed": 0.1, "reset": 0.1})
    page = build_study_report(write_critical_study(tmp_path / "study", runs))
    assert page.verdict[0].startswith("MLP: a critical period that the learning rate does not")
    assert page.key_figures[1].draw is None  # no windows
    assert "--onsets" in page.key_figures[1].missing


def test_no_interior_peak_is_said(tmp_path):
    runs = [run | {"scalars": run["scalars"]} for run in critical_runs({"decayed": 0.1})]
    rising = [
        critical_run("none", "decayed", 0, 0, 9, 0.9, trace=[1, 2, 3, 4, 5]),
        critical_run("blur", "decayed", 0, 20, 9, 0.8, trace=[1, 2, 3, 4, 5]),
    ]
    page = build_study_report(write_critical_study(tmp_path / "study", rising))
    assert "no interior peak that stands out of its error" in page.verdict[-1]
    assert any("Only 1 seed(s)" in caveat for caveat in page.caveats)
    assert len(runs) == 12


def test_what_could_have_fooled_us_names_weak_and_unpaired_runs(tmp_path):
    runs = critical_runs({"decayed": 0.1}, train=0.9)
    runs += [critical_run("blur", "fixed", 0, 20, 9, 0.8)]
    page = build_study_report(write_critical_study(tmp_path / "study", runs))
    caveats = " ".join(page.caveats)
    assert "4 run(s) ended below 99% training accuracy (4 of mlp, decayed rate)" in caveats
    assert "No run without a deficit to compare with: mlp-blur-fixed-0-20-seed9" in caveats


def test_the_page_is_written_with_its_command_and_unfinished_runs(study, tmp_path):
    path = write_report(study, tmp_path / "report.html", figures=tmp_path / "figures")
    text = path.read_text(encoding="utf-8")
    assert "dynamics study critical-period" in text
    assert "--until 20,40" in text
    assert "mlp-blur-fixed-0-40-seed0 has not ended" in text
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    figures = ("deficit_removal", "window_sensitivity", "fisher_phases", "deficits")
    assert {f"{name}.png" for name in figures} <= written
    assert len(text) < 2_000_000


def test_a_study_without_a_pair_is_refused(tmp_path):
    runs = [critical_run("blur", "decayed", 0, 20, 0, 0.8)]
    with pytest.raises(TraceError, match="together with the one without"):
        build_study_report(write_critical_study(tmp_path / "study", runs))


@pytest.fixture(scope="module")
def timing(tmp_path_factory):
    rng = np.random.default_rng(2)
    runs = []
    for seed in range(5):
        spans = {(0, 20): 0.05, (0, 5): 0.05, (5, 20): 0.0, (5, 15): 0.0}
        runs.append(timing_run("none", 0, 0, seed, 0.8, trace=(1, 5, 2)))
        for regulariser in ("shift", "mixup"):
            for (start, end), gain in spans.items():
                test = 0.8 + gain + 0.004 * rng.standard_normal()
                trace = (1, 5 + 100 * gain, 2)
                runs.append(timing_run(regulariser, start, end, seed, test, trace=trace))
    return write_timing_study(tmp_path_factory.mktemp("timing") / "study", runs)


def test_effects_of_timing_are_told_with_the_power_needed(timing):
    page = build_study_report(timing)
    (shift,) = (text for text in page.verdict if text.startswith("Shift: "))
    assert "always on it changes final accuracy by +0.0" in shift
    assert "On until 5: +0.05" in shift
    assert "helps" in shift
    assert "On only from 5: " in shift
    assert "not resolved" in shift
    assert "Switched off at 5 it loses nothing that is resolved against always on." in shift
    assert any(text.startswith("Rank correlation over all 45 runs") for text in page.verdict)
    assert any("positive. Golatkar" in text for text in page.verdict)


def test_what_is_not_resolved_says_how_many_seeds_it_needs(tmp_path):
    tests = {0: (0.80, 0.83), 1: (0.82, 0.80), 2: (0.78, 0.79)}
    runs = [timing_run("none", 0, 0, seed, never) for seed, (never, _) in tests.items()]
    runs += [timing_run("shift", 0, 20, seed, always) for seed, (_, always) in tests.items()]
    page = build_study_report(write_timing_study(tmp_path / "study", runs))
    assert "not resolvable at this scale (an effect of 0.01 would need" in page.verdict[0]
    assert any("Only 3 seeds" in caveat for caveat in page.caveats)


def test_the_timing_page_and_its_figures_are_written(timing, tmp_path):
    path = write_report(timing, tmp_path / "report.html", figures=tmp_path / "figures")
    assert "dynamics study regularisation-timing" in path.read_text(encoding="utf-8")
    written = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"switch.png", "window_effect.png", "peak_fisher.png"} <= written


def test_a_timing_study_needs_runs_without_a_regulariser(tmp_path):
    runs = [timing_run("shift", 0, 20, 0, 0.8)]
    with pytest.raises(TraceError, match="with and without a regulariser"):
        build_study_report(write_timing_study(tmp_path / "study", runs))
