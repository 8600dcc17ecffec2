"""The report of a run: what it says first, what it will not say, and what it says is missing."""

import re
from html import unescape

import numpy as np
import pytest
from recorded import (
    EPOCHS,
    LEARNED,
    N_CLASSES,
    N,
    add_attempt,
    full_run,
    labels,
    losses_only,
    roster,
    sample_batches,
    scalar,
    scalar_batches,
    write_run,
)

from dynamics import open_run
from reports.run_report import build_run_report
from reports.sample_tables import N_SUSPECTS


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return build_run_report(full_run(tmp_path_factory.mktemp("full") / "run"))


def recorded(path, share=0.3, true=True, only=None, **tables):
    """A run with samples and a roster."""
    given, right = labels(share=share)
    tables["samples"] = sample_batches(given, right, only=only)
    return write_run(path, {"roster": roster(given, right if true else None), **tables})


def boxes(page):
    """What each panel that was not recorded asks for."""
    panels = [panel for section in page.sections for panel in section.panels]
    return {panel.name: panel.missing for panel in panels if panel.draw is None}


def all_text(page):
    cells = [cell.text for table in page.tables for row in table.rows for cell in row]
    return " ".join([page.title, page.subtitle, *page.verdict, *page.caveats, *cells])


def test_the_verdict_comes_first_then_caveats_then_figures(full):
    html = full.to_html()
    order = ['<section class="verdict"', full.verdict[0], '<section class="caveats"', "<figure"]
    order += ["The most suspect samples", "<h2>Provenance</h2>"]
    places = [html.index(text) for text in order]
    assert places == sorted(places)
    assert html.index("<section") == places[0]


def test_two_groups_of_losses_give_a_noise_rate_with_its_interval(full):
    rate, low, high, epoch = map(
        int,
        re.match(
            r"About (\d+)% of the labels look wrong \(95 % interval (\d+)% to (\d+)%;.*"
            r"up to epoch (\d+), chosen without",
            full.verdict[0],
        ).groups(),
    )
    assert low <= 30 <= high
    assert abs(rate - 30) <= 3
    assert low < rate < high
    assert epoch < LEARNED
    assert full.verdict[1].startswith("In truth 30.0% are wrong.")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_group_of_losses_gives_no_rate(tmp_path, share):
    verdict = build_run_report(recorded(tmp_path / "run", share=share)).verdict
    assert "no rate of wrong labels is given" in verdict[0]
    assert not any("look wrong" in sentence for sentence in verdict)


def test_without_true_labels_nothing_is_said_about_truth(tmp_path):
    page = build_run_report(recorded(tmp_path / "run", true=False))
    assert page.verdict[0].startswith("About ")
    assert not any("In truth" in sentence for sentence in page.verdict)
    assert "true labels" in boxes(page)["detection_auc"]
    assert "true label" not in page.tables[0].columns


def test_curves_are_put_into_words(full):
    accuracy, fisher = full.verdict[2:]
    assert accuracy == "Accuracy on test was best at epoch 3 with 90.0% and ended at 82.0% ± 1.0%."
    assert re.match(r"The Fisher trace rose from 1.07 to a peak of 5 ± 0.05 at epoch 3", fisher)
    assert "no peak" not in fisher


def test_a_curve_that_only_falls_has_no_peak(tmp_path):
    rows = [scalar(e, "fisher_trace", 5.0 - e, stderr=0.01) for e in range(4)]
    (sentence,) = build_run_report(write_run(tmp_path / "run", {"scalars": rows})).verdict
    assert "rose" not in sentence
    assert "to a peak of" not in sentence


def test_accuracy_recorded_without_a_standard_error_is_given_without_one(tmp_path):
    """The line that the report itself proposes, `record('accuracy', value, block=…, n=…)`."""
    rows = [scalar(e, "accuracy", 0.9, "test", stderr=None) for e in range(3)]
    page = build_run_report(write_run(tmp_path / "run", {"scalars": rows}))
    assert "90.0%" in page.verdict[0]
    assert not re.search(r"\bnan\b", all_text(page))


@pytest.mark.parametrize(
    ("name", "block"), [("fisher_trace", "total"), ("accuracy", "test"), ("accuracy", "train")]
)
def test_a_run_whose_measurements_are_all_missing_still_has_a_report(tmp_path, name, block):
    """As after divergence in the first epoch."""
    rows = [scalar(epoch, name, float("nan"), block) for epoch in range(4)]
    page = build_run_report(write_run(tmp_path / "run", {"scalars": rows}))
    assert page.verdict
    assert "<h2>Provenance</h2>" in page.to_html()


def test_non_finite_values_are_a_caveat_with_place_and_count(tmp_path):
    given, true = labels()
    batches = sample_batches(given, true)
    per_epoch = len(batches) // EPOCHS
    batches[2 * per_epoch]["loss"][7] = np.inf
    batches[2 * per_epoch]["loss"][9] = np.nan
    batches[4 * per_epoch]["grad_norm"][3] = np.nan
    run = write_run(tmp_path / "run", {"samples": batches, "roster": roster(given, true)})
    caveats = build_run_report(run).caveats
    assert "2 values of loss are not finite, first at epoch 2, sample 7; they are left out." in (
        caveats
    )
    assert any(c.startswith("1 values of grad_norm") and "epoch 4, sample 3" in c for c in caveats)


def test_a_run_that_diverges_half_way_has_a_report(tmp_path):
    given, true = labels()
    batches = sample_batches(given, true)
    for batch in batches[len(batches) // 2 :]:
        for column in ("loss", "margin", "p_true", "el2n", "grad_norm"):
            batch[column] = np.full_like(batch[column], np.nan)
    run = write_run(tmp_path / "run", {"samples": batches, "roster": roster(given, true)})
    page = build_run_report(run)
    assert any(c.startswith(f"{N * EPOCHS // 2:,} values of loss") for c in page.caveats)
    assert "<svg" in page.to_html()


def test_one_seed_an_interruption_and_a_resume_are_caveats(tmp_path, full):
    assert full.caveats == [
        "One run, one seed: how much would differ with another seed is not known."
    ]
    broken = full_run(tmp_path / "run", clean=False)
    assert any("did not end cleanly" in caveat for caveat in build_run_report(broken).caveats)
    given, true = labels()
    later = [batch for batch in sample_batches(given, true) if batch["epoch"][0] >= 6]
    add_attempt(tmp_path / "run", {"samples": later}, from_step=18, from_epoch=6)
    caveats = build_run_report(open_run(tmp_path / "run")).caveats
    assert any("resumed 1 time" in caveat for caveat in caveats)
    assert not any("did not end cleanly" in caveat for caveat in caveats)


@pytest.mark.parametrize("known", [True, False])
def test_what_was_not_recorded_has_a_box_that_names_what_to_add(tmp_path, known):
    path = tmp_path / "run"
    run = recorded(path, only=["loss"]) if known else losses_only(path)
    page = build_run_report(run)
    missing = boxes(page)
    assert "GradNorm()" in missing["grad_norm"]
    assert "logits" in missing["data_map"]
    assert "recorder.record('accuracy'" in missing["accuracy"]
    assert "FisherTrace(" in missing["fisher_trace"]
    assert "loss" not in missing
    assert page.verdict[0].startswith("About ")
    html = page.to_html()
    assert html.count("not recorded. ") == len(missing)
    assert all(f"not recorded. {text}" in unescape(html) for text in missing.values())


def test_a_run_with_nothing_in_it_has_a_page_that_names_every_probe(tmp_path):
    page = build_run_report(write_run(tmp_path / "run", {}))
    asked = " ".join(boxes(page).values())
    for probe in ("SampleLoss", "GradNorm", "FisherTrace"):
        assert f"{probe}(" in asked
    assert page.verdict == ["This run has recorded nothing that a verdict could rest on."]
    assert page.tables == []
    assert "<figure" in page.to_html()


def test_weight_effect_has_a_box_too_when_it_was_not_recorded(tmp_path):
    page = build_run_report(recorded(tmp_path / "run"))
    assert any("WeightEffect(" in text for text in boxes(page).values())


def test_too_few_samples_for_a_mixture_are_not_called_unrecorded(tmp_path):
    given, true = labels(10)
    tables = {"samples": sample_batches(given, true), "roster": roster(given, true)}
    missing = boxes(build_run_report(write_run(tmp_path / "run", tables)))
    assert "loss" not in missing
    assert "Add SampleLoss()" not in missing["loss_mixture"]


def test_suspects_are_the_wrong_labels_with_their_predictions(full):
    given, true = labels()
    (table,) = full.tables
    assert len(table.rows) == N_SUSPECTS
    for row in table.rows:
        cells = {name: cell.text for name, cell in zip(table.columns, row, strict=True)}
        sample_id = int(cells["sample id"])
        assert given[sample_id] != true[sample_id]
        assert cells["label"] == str(given[sample_id])
        assert cells["predicted"] == cells["true label"] == str(true[sample_id])
    assert "picture" not in table.columns
    assert "--data" in table.note


def test_sets_of_predictions_have_a_panel_each(tmp_path):
    tables = {"scalars": scalar_batches(sets=("test", "random noise"))}
    page = build_run_report(write_run(tmp_path / "run", tables))
    panels = [p for section in page.sections for p in section.panels if p.draw]
    for name in ("test", "random noise"):
        (panel,) = [p for p in panels if p.title == f"Predicted classes: {name}"]
        assert len(panel.tables[panel.name]) == N_CLASSES * EPOCHS
