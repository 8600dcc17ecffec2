"""A log becomes a run, each row once; what was read, mapped, ignored and is missing is told."""

import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics import import_log, open_run
from dynamics.traces import Status, TraceError
from dynamics.traces.foreign.account import describe_import
from dynamics.traces.foreign.ids import hash_key
from dynamics.traces.foreign.scores import score_logits
from dynamics.traces.foreign.values import as_stored
from tests import foreign_logs


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def imported(tmp_path, text, name="log.csv", **options):
    return import_log(write(tmp_path / name, text), tmp_path / "run", **options)


def refusal(tmp_path, text, name="log.csv", **options):
    with pytest.raises(TraceError) as caught:
        imported(tmp_path, text, name, **options)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {name}, "a refused import leaves nothing behind"
    return str(caught.value)


def test_a_table_becomes_an_ordinary_run(tmp_path):
    run = imported(tmp_path, "sample_id,epoch,step,loss\n1,0,0,0.5\n0,0,1,0.25\n0,1,2,0.125\n")
    rows = open_run(tmp_path / "run").samples(columns=["step", "loss"])
    assert rows.to_dict("list") == {
        "epoch": [0, 0, 1],
        "sample_id": [0, 1, 0],
        "step": [1, 0, 2],
        "loss": [0.25, 0.5, 0.125],
    }
    assert run.ended_cleanly
    assert run.info["n_samples"] == 2
    source = run.info["imported"]["sources"][0]
    assert source["path"] == str(tmp_path / "log.csv")
    assert source["format"] == "csv"
    assert source["sha256"] == hashlib.sha256((tmp_path / "log.csv").read_bytes()).hexdigest()


def test_columns_are_mapped_and_the_rest_is_named(tmp_path):
    text = "guid,ep,ce,extra,step\n7,0,0.5,x,9\n"
    columns = {"sample_id": "guid", "epoch": "ep", "loss": "ce", "step": ""}
    run = imported(tmp_path, text, columns=columns)
    told = dict(describe_import(run.info["imported"]))
    assert told["mapped"] == "epoch from ep; loss from ce; sample_id from guid"
    assert told["ignored"] == "extra, step"
    assert "grad_norm (GradNorm())" in told["missing"]
    assert run.samples()["sample_id"].tolist() == [7]


def test_missing_columns_are_named_all_at_once(tmp_path):
    columns = {"sample_id": "guid", "loss": "nll", "epoch": "ep"}
    text = refusal(tmp_path, "id,ep,ce\n1,0,0.5\n", columns=columns)
    assert "has no column `guid`, `nll`" in text
    assert "it has `id`, `ep`, `ce`" in text


def test_a_trace_column_that_does_not_exist_is_refused(tmp_path):
    text = refusal(tmp_path, "sample_id,epoch,ce\n1,0,0.5\n", columns={"losss": "ce"})
    assert "no column `losss`" in text


def test_a_table_that_could_be_anything_is_refused(tmp_path):
    text = refusal(tmp_path, "id,ce\n1,0.5\n")
    assert "--column sample_id=<column>" in text


def test_nothing_to_record_is_refused(tmp_path):
    assert "nothing about them" in refusal(tmp_path, "sample_id,epoch\n1,0\n")
    assert "holds no rows" in refusal(tmp_path, "sample_id,epoch,loss\n")


def test_a_sample_seen_twice_in_an_epoch_is_a_repeat_and_the_earlier_step_counts(tmp_path):
    run = imported(tmp_path, "sample_id,epoch,step,loss\n3,0,5,0.5\n3,0,4,0.25\n3,1,6,1\n")
    assert run.samples(columns=["loss"])["loss"].tolist() == [0.25, 1]
    rows = run.samples(repeats=True)
    assert rows["occurrence"].tolist() == [0, 1, 0]
    assert rows["status"].tolist() == [0, Status.REPEAT, 0]
    assert run.info["imported"]["repeats"] == 1


def test_repeats_are_counted_wherever_they_stand_in_the_log(tmp_path):
    text = "sample_id,epoch,step,loss\n3,0,0,1\n5,0,1,2\n3,0,2,4\n5,1,3,8\n5,1,3,16\n"
    run = imported(tmp_path, text)
    assert run.info["imported"]["repeats"] == 2
    assert run.info["imported"]["missing_rows"] == 1  # sample 3 in epoch 1
    assert run.samples()["loss"].tolist() == [1, 2, 8]


def test_logs_longer_than_a_chunk_are_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dynamics.traces.foreign.table_files.CHUNK_ROWS", 7)
    monkeypatch.setattr("dynamics.traces.foreign.stage.CHUNK_ROWS", 5)
    monkeypatch.setattr("dynamics.traces.foreign.import_log._PART_ROWS", 20)
    rows = [{"sample_id": i % 17, "epoch": i // 17, "loss": i} for i in range(17 * 5)]
    write(tmp_path / "log.jsonl", "\n".join(map(json.dumps, rows)))
    pd.DataFrame(rows).to_parquet(tmp_path / "log.parquet")
    for name in ("log.jsonl", "log.parquet"):
        run = import_log(tmp_path / name, tmp_path / f"run-{name}")
        assert run.samples()["loss"].tolist() == list(range(17 * 5))
        assert run.info["imported"]["repeats"] == run.info["imported"]["missing_rows"] == 0
        assert len(run.parts("samples")) > 1


def test_a_value_that_is_not_finite_is_missing_and_flagged_and_an_empty_one_is_missing(tmp_path):
    text = "sample_id,epoch,loss,margin\n0,0,nan,1\n1,0,,2\n2,0,1,inf\n3,0,1e300,1\n"
    run = imported(tmp_path, text)
    rows = run.samples()
    assert rows["loss"].isna().tolist() == [True, True, False, True]
    flags = [Status.NON_FINITE_LOSS, 0, Status.NON_FINITE_OUTPUT, Status.NON_FINITE_LOSS]
    assert rows["status"].tolist() == flags
    told = dict(describe_import(run.info["imported"]))
    assert told["not finite"].startswith("2 of loss, 1 of margin")


def test_samples_named_by_text_have_hashed_ids_and_keep_their_keys(tmp_path):
    run = imported(tmp_path, "sample_id,epoch,loss\ncat.png,0,1\n17,0,2\ncat.png,1,3\n")
    digest = hashlib.sha256(b"cat.png").digest()
    assert hash_key("cat.png") == int.from_bytes(digest[:8], "big") // 2
    expected = {hash_key("cat.png"): "cat.png", hash_key("17"): "17"}
    assert run.roster()["key"].to_dict() == expected
    one = run.samples(sample_id=hash_key("cat.png"), columns=["loss"])
    assert one["loss"].tolist() == [1, 3]


@pytest.mark.parametrize("ids", [["0", "-5", "9223372036854775807"], ["10", "2"]])
def test_whole_numbers_are_kept_as_ids(tmp_path, ids):
    lines = "".join(f"{i},0,1\n" for i in ids)
    run = imported(tmp_path, "sample_id,epoch,loss\n" + lines)
    assert run.samples()["sample_id"].tolist() == sorted(map(int, ids))
    assert "key" not in run.roster()


@pytest.mark.parametrize("odd", ["007", "9223372036854775808", "1.5", "+1", " 1"])
def test_what_is_not_a_plain_whole_number_is_text(tmp_path, odd):
    run = imported(tmp_path, f"sample_id,epoch,loss\n{odd},0,1\n1,0,2\n")
    assert set(run.roster()["key"]) == {odd, "1"}


def test_the_same_name_has_the_same_id_in_every_run(tmp_path):
    first = imported(tmp_path, "sample_id,epoch,loss\nx,0,1\ny,0,2\n")
    other = write(tmp_path / "b.csv", "sample_id,epoch,loss\nz,0,1\ny,0,2\nx,0,2\n")
    keys = import_log(other, tmp_path / "b").roster()["key"]
    assert first.roster()["key"].to_dict().items() <= keys.to_dict().items()


def test_labels_go_into_the_roster_and_must_not_contradict_each_other(tmp_path):
    text = "sample_id,epoch,loss,label,true_label,predicted\n4,0,1,2,3,2\n4,1,1,2,3,0\n"
    run = imported(tmp_path, text)
    assert run.roster().loc[4, ["label", "true_label"]].tolist() == [2, 3]
    assert run.samples()["correct"].tolist() == [1, 0]  # predicted = label
    with pytest.raises(TraceError, match="Sample 4 has `label` 2 in one row and 9 in another"):
        import_log(
            write(tmp_path / "b.csv", "sample_id,epoch,loss,label\n4,0,1,2\n4,1,1,9\n"),
            tmp_path / "b",
        )


def test_without_epochs_the_k_th_row_of_a_sample_is_its_epoch(tmp_path):
    run = imported(tmp_path, "sample_id,loss\n0,1\n0,2\n1,3\n0,4\n")
    rows = run.samples(columns=["loss"])
    assert rows["epoch"].tolist() == [0, 0, 1, 2]
    assert rows["loss"].tolist() == [1, 3, 2, 4]
    assert "k-th row" in dict(describe_import(run.info["imported"]))["note"]


def test_without_epochs_steps_order_the_rows_or_make_the_epochs(tmp_path):
    text = "sample_id,step,loss\n0,7,2\n0,3,1\n"
    assert imported(tmp_path, text).samples()["loss"].tolist() == [1, 2]
    run = import_log(tmp_path / "log.csv", tmp_path / "other", steps_per_epoch=3)
    assert run.samples()["epoch"].tolist() == [1, 2]


def test_without_steps_the_epoch_stands_in(tmp_path):
    assert imported(tmp_path, "sample_id,epoch,loss\n0,4,1\n").samples()["step"].tolist() == [4]


def test_a_counter_that_restarts_with_each_epoch_is_not_a_step(tmp_path):
    text = "sample_id,epoch,step,loss\n0,0,0,1\n1,0,1,1\n0,1,0,1\n1,1,1,1\n"
    assert "--column step=" in refusal(tmp_path, text)
    assert len(imported(tmp_path, text, columns={"step": ""}).samples()) == 4


def test_rows_come_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([(i, e, i + e / 10) for e in range(7) for i in range(50)])
    rows.columns = ["sample_id", "epoch", "loss"]
    rows.sample(frac=1, random_state=rng).to_csv(tmp_path / "log.csv", index=False)
    got = import_log(tmp_path / "log.csv", tmp_path / "run").samples(columns=["loss"])
    np.testing.assert_array_equal(got["loss"], rows["loss"].astype(np.float32))


def test_a_table_without_samples_holds_one_scalar_a_column(tmp_path):
    text = "epoch,val_acc,lr\n0,0.5,0.1\n1,nan,\n"
    run = imported(tmp_path, text, columns={"accuracy:test": "val_acc"})
    scalars = run.scalars()[["step", "epoch", "name", "block", "value"]]
    assert scalars.iloc[:2].to_numpy().tolist() == [
        [0, 0, "accuracy", "test", 0.5],
        [0, 0, "lr", "total", 0.1],
    ]
    assert len(scalars) == 3  # the empty cell is no measurement; nan is one that was not finite
    assert np.isnan(scalars["value"].iloc[2])


def test_scalars_by_step_need_to_know_how_long_an_epoch_is(tmp_path):
    assert "--steps-per-epoch" in refusal(tmp_path, "step,acc\n10,0.5\n")
    run = imported(tmp_path, "step,acc\n10,0.5\n", steps_per_epoch=4)
    assert run.scalars()[["step", "epoch"]].to_numpy().tolist() == [[10, 2]]


def test_what_was_asked_for_in_vain_is_told(tmp_path):
    foreign_logs.write_cartography(tmp_path / "log")
    with pytest.raises(TraceError, match="says itself what its columns are"):
        import_log(tmp_path / "log", tmp_path / "run", columns={"loss": "ce"})
    run = imported(tmp_path, "sample_id,epoch,loss\n0,3,1\n", steps_per_epoch=2)
    assert "not needed" in run.info["imported"]["sources"][0]["notes"][0]


def test_several_sources_make_one_run(tmp_path):
    samples = write(tmp_path / "a.csv", "id,epoch,loss\n0,0,1\n1,0,2\n")
    labels = write(tmp_path / "b.csv", "id,label\n0,5\n1,6\n2,7\n")
    scalars = write(tmp_path / "c.csv", "epoch,accuracy\n0,0.5\n")
    columns = {"sample_id": "id"}
    run = import_log([samples, labels, scalars], tmp_path / "run", columns=columns)
    assert run.roster()["label"].to_dict() == {0: 5, 1: 6, 2: 7}
    assert run.info["n_samples"] == 3
    assert len(run.samples()) == 2
    assert run.scalars()["value"].tolist() == [0.5]
    with pytest.raises(TraceError, match="None of the sources has a column `nope`"):
        import_log([samples, scalars], tmp_path / "b", columns=columns | {"loss": "nope"})


def test_numbers_and_text_in_different_sources_are_all_text(tmp_path):
    pq.write_table(
        pa.table({"sample_id": [1], "epoch": [0], "loss": [1.0]}), tmp_path / "a.parquet"
    )
    write(tmp_path / "b.csv", "sample_id,epoch,loss\nx,0,2\n1,1,3\n")
    run = import_log([tmp_path / "a.parquet", tmp_path / "b.csv"], tmp_path / "run")
    assert run.samples(sample_id=hash_key("1"))["loss"].tolist() == [1, 3]


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    source = write(tmp_path / "log.csv", "sample_id,epoch,loss\n0,0,1\n")
    (tmp_path / "full").mkdir()
    write(tmp_path / "full" / "x", "")
    with pytest.raises(TraceError, match="not empty"):
        import_log(source, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    assert len(import_log(source, tmp_path / "empty").samples()) == 1
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TraceError, match="not empty"):
        import_log(source, tmp_path / "link")


def test_an_import_that_fails_while_writing_leaves_nothing(tmp_path, monkeypatch):
    source = write(tmp_path / "log.csv", "sample_id,epoch,loss\n0,0,1\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dynamics.traces.outbox.write_durably", full)
    with pytest.raises(TraceError, match="No space left"):
        import_log(source, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_nothing_is_read_that_no_format_fits(tmp_path):
    assert "does not exist" in refusal_of(tmp_path / "nowhere", tmp_path)
    (tmp_path / "folder").mkdir()
    assert "holds none of the logs" in refusal_of(tmp_path / "folder", tmp_path)
    assert "--format" in refusal_of(write(tmp_path / "log.txt", "sample_id\n"), tmp_path)
    run = imported(tmp_path, "sample_id,epoch,loss\n0,0,1\n")
    assert "is a run already" in refusal_of(run.path, tmp_path)
    text = write(tmp_path / "log.txt", "sample_id,epoch,loss\n0,0,1\n")
    assert len(import_log(text, tmp_path / "b", format="csv").samples()) == 1
    with pytest.raises(ValueError, match="no format 'excel'"):
        import_log(text, tmp_path / "c", format="excel")


def refusal_of(source, tmp_path):
    with pytest.raises(TraceError) as caught:
        import_log(source, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    return str(caught.value)


def test_progress_is_told_in_rows(tmp_path):
    told = []
    imported(tmp_path, "sample_id,epoch,loss\n0,0,1\n1,0,1\n", progress=told.append)
    assert told == [2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(-(2**40), 2**40), st.floats(), st.text()), max_size=6)
)
def test_values_are_stored_as_python_would_read_them_or_refused_by_row(values):
    texts = [None if v is None else str(v) for v in values]
    field = pa.field("step", pa.int64())
    try:
        stored = as_stored(pa.array(texts, pa.string()), field, "log", 1).to_pylist()
    except TraceError as error:
        row = int(str(error).split("row ")[1].split(":")[0])
        assert not fits(texts[row - 1])
    else:
        assert all(map(fits, texts))
        expected = [None if t is None or np.isnan(number(t)) else int(number(t)) for t in texts]
        assert stored == expected


def number(text):
    truth = {"true": 1.0, "false": 0.0}
    return truth[text.strip().lower()] if text.strip().lower() in truth else float(text)


def fits(text):
    if text is None:
        return True
    try:
        value = number(text)
    except ValueError:
        return False
    return bool(np.isnan(value) or (value == np.floor(value) and 0 <= value <= 2**53))


def test_scores_are_those_of_the_probe():
    torch = pytest.importorskip("torch")
    from probes.sample_loss import score_logits as probe_scores

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 5)) * 10 ** rng.uniform(-2, 2, size=(200, 1))
    logits[:20] = np.round(logits[:20])  # some ties
    logits[3] = 0
    logits[4, 2], logits[5, 1] = np.inf, np.nan
    labels = rng.integers(0, 5, 200)
    ours = score_logits(logits, labels)
    z, y = torch.tensor(logits), torch.tensor(labels)
    theirs = probe_scores(z, y)
    theirs["loss"] = torch.nn.functional.cross_entropy(z, y, reduction="none")
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        np.testing.assert_allclose(
            values.astype(np.float64), theirs[name].double().numpy(), rtol=1e-9, atol=1e-12
        )


def test_what_was_imported_is_json(tmp_path):
    run = imported(tmp_path, "sample_id,epoch,loss\n0,0,1\n")
    assert json.loads((run.path / "run.json").read_text())["imported"]["rows"] == {"samples": 1}
