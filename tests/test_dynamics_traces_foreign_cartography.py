"""Logs of dataset cartography: found where they lie, and refused where a line is not one."""

import json

import pytest

from dynamics import import_log
from dynamics.traces import Status, TraceError
from tests import foreign_logs


def line(epoch=0, guid=1, logits=(0.0, 1.0), gold=0, **more):
    return json.dumps({"guid": guid, f"logits_epoch_{epoch}": logits, "gold": gold} | more)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


WITHIN = "training_dynamics"


@pytest.mark.parametrize("where", ["", WITHIN, f"{WITHIN}/dynamics_epoch_1.jsonl"])
def test_a_log_is_found_from_above_from_within_and_by_file(tmp_path, where):
    foreign_logs.write_cartography(tmp_path / "log")
    run = import_log(tmp_path / "log" / where, tmp_path / "run")
    epochs = {1} if where.endswith("jsonl") else {0, 1, 2, 3, 4}
    assert set(run.samples()["epoch"]) == epochs
    assert run.info["imported"]["sources"][0]["files"] == len(epochs)


def test_the_older_ending_is_read_too(tmp_path):
    source = write(tmp_path / "dynamics_epoch_0.json", line())
    assert len(import_log(source, tmp_path / "run").samples()) == 1


def test_an_epoch_whose_file_is_gone_is_told(tmp_path):
    for epoch in (0, 3, 10):
        write(tmp_path / "log" / f"dynamics_epoch_{epoch}.jsonl", line(epoch))
    run = import_log(tmp_path / "log", tmp_path / "run")
    assert run.samples()["epoch"].tolist() == [0, 3, 10]  # in order of number, not of name
    notes = run.info["imported"]["sources"][0]["notes"]
    assert notes == ["No file for epoch 1, 2, 4, 5, 6, 7, 8, 9."]


def test_a_logit_that_is_not_finite_is_flagged_and_other_fields_are_named(tmp_path):
    logits = '{"guid": 2, "logits_epoch_0": [NaN, 1], "gold": 0, "device": 1}'
    source = write(tmp_path / "dynamics_epoch_0.jsonl", line(logits=[None, 1.0]), logits)
    run = import_log(source, tmp_path / "run")
    rows = run.samples()
    both = Status.NON_FINITE_LOSS | Status.NON_FINITE_OUTPUT
    assert rows["status"].tolist() == [both, both]
    assert rows[["loss", "margin", "p_true", "el2n"]].isna().all(axis=None)
    assert run.info["imported"]["sources"][0]["ignored"] == ["device"]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (line(epoch=1), "lacks 'logits_epoch_0'"),
        ('{"guid": 1}', "lacks 'logits_epoch_0', 'gold'"),
        (line(logits=[0.0, 1.0, 2.0]), "has 3 logits, where 2 were expected"),
        (line(gold=2), "'gold' is 2, but there are 2 classes"),
        (line(gold=-1), "'gold' is -1"),
        (line(gold=True), "'gold' should be the number of a class"),
        (line(gold="0"), "'gold' should be the number of a class"),
        (line(guid=1.5), "'guid' should be a whole number or text"),
        (line(guid=True), "'guid' should be"),
        (line(logits=["0", 1]), "should be a list of numbers"),
        (line(logits=5), "should be a list of numbers"),
        ("not json", "is not one JSON object"),
    ],
)
def test_a_line_that_is_not_one_is_named(tmp_path, bad, told):
    source = write(tmp_path / "dynamics_epoch_0.jsonl", line(), bad)
    with pytest.raises(TraceError) as caught:
        import_log(source, tmp_path / "run")
    assert f"{source}, line 2" in str(caught.value)
    assert told in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_class_or_a_number_too_large_is_refused(tmp_path):
    source = write(tmp_path / "dynamics_epoch_0.jsonl", line(logits=[1.0]))
    with pytest.raises(TraceError, match="1 logits, where 2 were expected"):
        import_log(source, tmp_path / "run")
    write(source, '{"guid": 1, "logits_epoch_0": [1' + "0" * 400 + ', 1], "gold": 0}')
    with pytest.raises(TraceError, match="beyond the range"):
        import_log(source, tmp_path / "run")


def test_a_gold_label_that_changes_is_refused(tmp_path):
    write(tmp_path / "log" / "dynamics_epoch_0.jsonl", line(0, gold=0))
    write(tmp_path / "log" / "dynamics_epoch_1.jsonl", line(1, gold=1))
    with pytest.raises(TraceError, match="Sample 1 has `label` 0 in one row and 1 in another"):
        import_log(tmp_path / "log", tmp_path / "run")


def test_more_rows_than_a_chunk_are_all_read(tmp_path, monkeypatch):
    monkeypatch.setattr("dynamics.traces.foreign.cartography._CHUNK_LOGITS", 6)
    foreign_logs.write_cartography(tmp_path / "log")
    run = import_log(tmp_path / "log", tmp_path / "run")
    assert len(run.samples(repeats=True)) == len(list(foreign_logs.presentations()))
