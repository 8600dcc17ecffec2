"""Records of the `aum` package: both releases' columns, and the summary that holds no dynamics."""

import numpy as np
import pytest

from dynamics import import_log
from dynamics.traces import TraceError
from tests import foreign_logs

RECORDS = "full_aum_records.csv"


def record(k=1, target=(1, 0.5), other=(0, 0.25), sample_id=3, margin=None):
    margin = target[1] - other[1] if margin is None else margin
    values = {"target_logit": target[0], "target_val": target[1], "other_logit": other[0]}
    row = {"sample_id": sample_id, "num_measurements": k, **values, "other_val": other[1]}
    return row | {"margin": margin, "aum": margin}


def imported(tmp_path, rows):
    return import_log(foreign_logs.write_csv(tmp_path / RECORDS, rows), tmp_path / "run")


@pytest.mark.parametrize("swapped", [False, True])
def test_margins_labels_and_predictions_are_those_recorded(tmp_path, swapped):
    run = imported(tmp_path, foreign_logs.aum_records(swapped=swapped))
    keys = run.roster()["key"]
    rows = run.samples()
    expected = {}
    for _, name, kind in foreign_logs.presentations():
        own, other = foreign_logs.POWERS[kind]
        turn = sum(key[0] == name for key in expected)
        value = (own - other) * foreign_logs.LN2, foreign_logs.predicted(name, kind)
        expected[name, turn] = pytest.approx(value, abs=1e-6)
    found = {
        (keys[row.sample_id], row.epoch): (row.margin, row.predicted) for row in rows.itertuples()
    }
    assert found == expected
    assert run.roster().set_index("key")["label"].to_dict() == foreign_logs.LABELS
    classes = "target_val" if swapped else "target_logit"
    assert run.info["imported"]["sources"][0]["mapped"]["label"] == classes


def test_logits_that_are_whole_numbers_are_told_by_the_margin(tmp_path):
    rows = [record(1, target=(1, 5.0), other=(2, 3.0)), record(2, target=(1, 1.0), other=(0, 7.0))]
    run = imported(tmp_path, rows)
    assert run.roster()["label"].tolist() == [1]
    assert run.samples()["predicted"].tolist() == [1, 0]


def test_where_the_classes_cannot_be_told_the_sign_of_the_margin_is_kept(tmp_path):
    # class 1 against 2 and logit 2 against 3: both differ by the margin −1
    rows = [record(1, target=(1, 2.0), other=(2, 3.0)), record(2, (1, 0.0), (1, 0.0), margin=0)]
    run = imported(tmp_path, rows)
    assert run.roster().empty
    assert run.samples()["correct"].tolist() == pytest.approx([0, np.nan], nan_ok=True)
    assert "could each be the class" in run.info["imported"]["sources"][0]["notes"][0]


def test_columns_that_hold_no_class_are_refused(tmp_path):
    with pytest.raises(TraceError, match="neither pair holds classes"):
        imported(tmp_path, [record(target=(1.5, 0.5))])


def test_a_margin_that_is_not_finite_is_flagged(tmp_path):
    run = imported(tmp_path, [record(), record(2, target=(1, float("nan")))])
    rows = run.samples()
    assert rows["margin"].isna().tolist() == [False, True]
    assert rows["status"].tolist() == [0, 4]
    assert rows[["correct", "predicted"]].isna().any(axis=1).tolist() == [False, True]


def test_the_summary_alone_is_refused_with_what_is_needed(tmp_path):
    rows = [{"sample_id": 1, "aum": 0.5}]
    foreign_logs.write_csv(tmp_path / "aum_values.csv", rows)
    for source in (tmp_path / "aum_values.csv", tmp_path):
        with pytest.raises(TraceError, match="compressed=False"):
            import_log(source, tmp_path / "run")


def test_of_a_folder_with_both_the_records_are_read(tmp_path):
    foreign_logs.write_csv(tmp_path / "log.csv", [record()]).rename(tmp_path / RECORDS)
    foreign_logs.write_csv(tmp_path / "aum_values.csv", [{"sample_id": 1, "aum": 0.5}])
    run = import_log(tmp_path, tmp_path / "run")
    assert "aum_values.csv" in run.info["imported"]["sources"][0]["ignored"]
