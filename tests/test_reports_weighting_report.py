"""The report of an example-weighting study: what it claims, and what it refuses to."""

import numpy as np
import pytest
from made_weighting import made_run, write_weighting_study

from dynamics.traces import TraceError
from reports import write_report
from reports.write_report import build_study_report


def noise_runs(seeds=3, drop=0.02, saves="dm"):
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(seeds):
        jitter = 0.002 * rng.standard_normal(3)
        runs.append(made_run("uniform", seed=seed, test=[0.9, 0.6 + jitter[0]]))
        runs.append(made_run("random", seed=seed, test=[0.9, 0.6 + jitter[1]]))
        runs.append(made_run(saves, seed=seed, test=[0.9, 0.9 - drop + jitter[2]], seconds=2.0))
    return runs


def rare_runs(error=0.03, levels=(200,), seeds=3):
    errors = {"uniform": 0.49, "random": 0.48, "reweight": error}
    return [
        made_run(scheme, task="imbalance", level=level, seed=seed, test=[0.5, 1 - e - 0.002 * seed])
        for level in levels
        for scheme, e in errors.items()
        for seed in range(seeds)
    ]


def page_of(path, runs):
    return build_study_report(write_weighting_study(path, runs))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "both"
    selfie = [made_run("selfie", seed=s, test=[0.9, 0.89], corrected=(0.8, 0.95)) for s in range(3)]
    return page_of(path, [*noise_runs(), *rare_runs(levels=(10, 200)), *selfie])


def test_the_verdict_has_the_errors_with_intervals_the_largest_imbalance_first(page):
    first, second = page.verdict[:2]
    assert first.startswith("At 200:1 learning to reweight ends with error 0.032 [0.027, 0.037]")
    assert "plain training with 0.492" in first
    assert "random weights with 0.482" in first
    assert "is within the 5%" in first
    assert second.startswith("At 10:1")
    assert "within the 5%" not in second


def test_an_error_above_the_claim_is_said_to_be(tmp_path):
    verdict = page_of(tmp_path / "s", rare_runs(error=0.08, seeds=1)).verdict
    assert "is not within the 5%" in verdict[0]


def test_schemes_that_save_plain_trainings_fall_are_named(page, tmp_path):
    (sentence,) = [text for text in page.verdict if text.startswith("With 40%")]
    assert "falls from 0.900 to 0.6" in sentence
    assert "excludes 0: selfie, dm." in sentence
    assert "Best at the end is selfie" in sentence
    same = page_of(tmp_path / "s", noise_runs(drop=0.3, seeds=2)).verdict
    assert "No scheme falls less" in same[0]


def test_corrected_labels_have_a_sentence(page):
    assert "Labels corrected by selfie at 40% noise are right in 95.0%" in page.verdict[-1]


def test_few_seeds_unfinished_runs_and_plain_training_that_has_not_fitted_are_caveats(tmp_path):
    runs = [*noise_runs(seeds=2), *rare_runs(seeds=1), made_run("gce", clean=False)]
    caveats = page_of(tmp_path / "s", runs).caveats
    assert caveats[0].startswith("Fewer than three seeds: dm (noise 0.4)")
    assert any("noise-0.4-gce-seed0" in caveat for caveat in caveats)
    assert any("At 200:1 plain training has not fitted" in caveat for caveat in caveats)
    fitted = [run | {"fit": 1.0} for run in rare_runs(seeds=3)[:6]]
    caveats = page_of(tmp_path / "fitted", fitted).caveats
    assert not any("has not fitted" in c or "Fewer" in c for c in caveats)


def test_the_table_has_every_scheme_with_intervals(page):
    noise = next(table for table in page.tables if table.title.endswith("noise"))
    rows = {row[1].text: [cell.text for cell in row] for row in noise.rows}
    assert set(rows) == {"uniform", "random", "dm", "selfie"}
    assert rows["dm"][2] == "3"
    assert rows["dm"][noise.columns.index("cost")].startswith("2.000 [")
    assert rows["uniform"][noise.columns.index("final − plain")].startswith("0.000")


@pytest.mark.parametrize("runs", [noise_runs(seeds=1), rare_runs(seeds=1, levels=(200,))])
def test_one_task_or_one_seed_has_a_page_all_the_same(tmp_path, runs):
    page = page_of(tmp_path / "s", runs)
    html = page.to_html()
    assert "nan" not in html.split("<svg")[0]
    assert "nan" not in " ".join(page.verdict)


def test_the_page_is_written_with_its_figures(tmp_path):
    study = write_weighting_study(tmp_path / "s", [*noise_runs(seeds=1), *rare_runs(seeds=1)])
    html = write_report(study, tmp_path / "r.html", figures=tmp_path / "f").read_text("utf-8")
    names = {path.name for path in (tmp_path / "f").iterdir()}
    for name in ("best_and_final_key", "pull_share_wrong_label_key", "imbalance_error"):
        assert {f"{name}.png", f"{name}.csv"} <= names
    assert html.index('class="verdict"') < html.index("<figure")
    assert len(html) < 2_000_000


def test_a_study_without_an_ended_run_is_refused(tmp_path):
    with pytest.raises(TraceError, match="come to its end"):
        page_of(tmp_path / "s", [made_run("uniform", clean=False)])
