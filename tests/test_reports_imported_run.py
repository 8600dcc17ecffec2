"""The report of an imported run: it works whatever the log lacks, and says what that is."""

import re

import pytest

from dynamics import import_log
from dynamics.traces.foreign.account import read_import
from reports.run_report import build_run_report
from tests import foreign_logs, recorded

KEYS = ("sample_id", "epoch")
COLUMNS = ("loss", "margin", "p_true", "correct", "grad_norm", "label", "true_label")
SCALARS = "epoch,accuracy\n0,0.5\n1,0.75\n"


@pytest.fixture(scope="module")
def rows():
    given, true = recorded.labels(n=60)
    batches = recorded.sample_batches(given, true, epochs=3)
    table = []
    for batch in batches:
        for i, sample in enumerate(batch["sample_id"]):
            row = {name: values[i] for name, values in batch.items()}
            named = {"sample_id": f"<b>{sample}", "label": given[sample]}
            table.append(row | named | {"true_label": true[sample]})
    return table


@pytest.fixture
def report(tmp_path, rows):
    def report(*columns, text=None):
        if text is None:
            kept = [{name: row[name] for name in (*KEYS, *columns)} for row in rows]
            foreign_logs.write_csv(tmp_path / "log.csv", kept)
        else:
            (tmp_path / "log.csv").write_text(text)
        return build_run_report(import_log(tmp_path / "log.csv", tmp_path / "run"))

    return report


def panels(page):
    return {panel.name: panel for section in page.sections for panel in section.panels}


def drawn(page):
    return {name for name, panel in panels(page).items() if panel.draw is not None}


WITH_TRUTH = {"loss", "loss_mixture", "detection_auc", "posterior_calibration", "importance_gain"}


@pytest.mark.parametrize(
    ("columns", "figures"),
    [
        (["loss"], {"loss", "loss_mixture", "importance_gain"}),
        (["correct"], {"score_agreement"}),
        (["margin"], set()),
        (["p_true"], {"data_map", "score_agreement"}),
        (["grad_norm"], {"grad_norm", "importance_gain"}),
        (["loss", "label", "true_label"], WITH_TRUTH),
        (["margin", "label", "true_label"], {"detection_auc"}),
        (["correct", "label", "true_label"], {"score_agreement"}),
        (COLUMNS, WITH_TRUTH | {"data_map", "grad_norm", "score_agreement"}),
    ],
)
def test_what_the_log_holds_is_drawn_and_the_rest_is_named(report, columns, figures):
    page = report(*columns)
    assert drawn(page) == figures
    caveat = next(text for text in page.caveats if text.startswith("Not in the log"))
    lacking = caveat.split(": ", 1)[1]
    for name in COLUMNS:
        assert bool(re.search(rf"\b{name}\b(?! in)", lacking.replace("true_label in", ""))) == (
            name not in columns
        ), name
    for name, box in panels(page).items():
        if box.draw is None and name in ("loss", "grad_norm"):
            assert f"Or import `{name}`." in box.missing
    if not figures:  # those that are drawn are drawn elsewhere too, and slowly
        assert page.to_html().count("<figure") == len(panels(page))


def test_scalars_alone_are_drawn(report):
    page = report(text=SCALARS)
    assert drawn(page) == {"accuracy"}
    assert "best at epoch 1 with 75.0%" in page.verdict[0]
    assert page.tables == []


def test_a_roster_alone_has_a_page_that_names_everything(report):
    page = report(text="sample_id,label\n0,1\n")
    assert drawn(page) == set()
    assert "nothing that a verdict could rest on" in page.verdict[0]
    assert page.to_html()


def test_without_losses_the_hardest_samples_are_named_by_their_keys(report):
    page = report("correct")
    assert page.verdict[0].startswith("Of 60 samples, 18 were never classified as labelled, 42")
    (table,) = page.tables
    assert table.columns == ["sample id", "key", "times right", "forgotten"]
    assert "samples never learned first" in table.note
    assert [row[2].text for row in table.rows[:18]] == ["0"] * 18
    assert all(row[1].text.startswith("<b>") for row in table.rows)
    assert "<b>" not in page.to_html()


def test_with_losses_the_suspects_have_their_keys(report):
    (table,) = report("loss").tables
    assert table.columns[:2] == ["sample id", "key"]


def test_gaps_notes_and_the_source_are_told(tmp_path):
    foreign_logs.write_cartography(tmp_path / "log")
    (tmp_path / "log" / "training_dynamics" / "dynamics_epoch_1.jsonl").unlink()
    page = build_run_report(import_log(tmp_path / "log", tmp_path / "run"))
    caveats = " ".join(page.caveats)
    assert "(cartography): the values are as that log defines them" in caveats
    assert "No file for epoch 1." in caveats
    assert "3 of 40 pairs of sample and epoch have no row" in caveats  # g: epoch 3, h: 0 and 2
    assert "sha256" in page.provenance["Imported"]


@pytest.mark.parametrize("entry", ["x", [], {}, {"missing": []}, {"missing": [], "sources": [{}]}])
def test_an_account_that_is_not_whole_is_passed_over(entry):
    assert read_import({"imported": entry}) is None
