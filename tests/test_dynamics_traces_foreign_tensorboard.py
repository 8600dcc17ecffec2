"""Scalars of event files: names, epochs, and files that are cut short or damaged."""

import struct
import sys

import numpy as np
import pytest

from dynamics import import_log
from dynamics.traces import CorruptTraceError, TraceError

FILE = "events.out.tfevents.1700000000.host"


def crc32c(data):
    """Bit by bit, as the polynomial says: independent of the tables of the package."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(record):
    length = struct.pack("<Q", len(record))
    return length + masked(length) + record + masked(record)


@pytest.fixture
def proto():
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto import event_pb2

    return event_pb2


@pytest.fixture
def write(tmp_path, proto):
    def write(*scalars, name=FILE, extra=()):
        """An event file of (step, tag, value), old-style values and tensors in turn."""
        from tensorboard.util import tensor_util

        records = [proto.Event(file_version="brain.Event:2").SerializeToString()]
        for i, (step, tag, value) in enumerate(scalars):
            event = proto.Event(step=step, wall_time=1.7e9)
            summary = event.summary.value.add(tag=tag)
            if i % 2:
                summary.metadata.plugin_data.plugin_name = "scalars"
                tensor = tensor_util.make_tensor_proto(np.float32(value))
                summary.tensor.CopyFrom(tensor)
            else:
                summary.simple_value = value
            records.append(event.SerializeToString())
        path = tmp_path / "log" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(map(frame, [*records, *extra])))
        return path

    return write


def test_tags_become_names_and_steps_epochs(tmp_path, write):
    source = write((0, "loss", 0.5), (0, "val/acc", 0.25), (10, "loss", 0.125), (10, "lr", 1))
    columns = {"accuracy:test": "val/acc", "lr": ""}
    run = import_log(source, tmp_path / "run", columns=columns, steps_per_epoch=5)
    rows = run.scalars()[["step", "epoch", "name", "block", "value"]].to_numpy().tolist()
    assert rows == [
        [0, 0, "accuracy", "test", 0.25],
        [0, 0, "loss", "total", 0.5],
        [10, 2, "loss", "total", 0.125],
    ]
    source = run.info["imported"]["sources"][0]
    assert source["ignored"] == ["lr"]
    assert source["mapped"]["accuracy:test"] == "val/acc"


def test_files_below_a_folder_have_its_name_as_block(tmp_path, write):
    write((1, "acc", 0.5), name=f"train/{FILE}")
    write((1, "acc", 0.25), name=f"val/{FILE}")
    scalars = import_log(tmp_path / "log", tmp_path / "run", steps_per_epoch=1).scalars()
    assert dict(zip(scalars["block"], scalars["value"], strict=True)) == {"train": 0.5, "val": 0.25}


def test_other_summaries_are_ignored_by_name(tmp_path, write, proto):
    event = proto.Event(step=1)
    event.summary.value.add(tag="weights").histo.num = 3
    event.summary.value.add(tag="picture").image.height = 1
    source = write((1, "acc", 0.5), extra=[event.SerializeToString()])
    run = import_log(source, tmp_path / "run", steps_per_epoch=1)
    assert run.info["imported"]["sources"][0]["ignored"] == ["weights", "picture"]
    assert run.scalars()["name"].tolist() == ["acc"]


def test_a_value_that_is_not_finite_is_missing_and_told(tmp_path, write):
    source = write((1, "loss", float("nan")), (2, "loss", 0.5))
    run = import_log(source, tmp_path / "run", steps_per_epoch=1)
    assert run.scalars()["value"].isna().tolist() == [True, False]
    assert run.info["imported"]["not_finite"] == {"value": 1}


def test_a_file_that_is_cut_short_is_read_to_its_last_whole_record(tmp_path, write):
    source = write((1, "acc", 0.5), (2, "acc", 0.75))
    source.write_bytes(source.read_bytes()[:-3])
    run = import_log(source, tmp_path / "run", steps_per_epoch=1)
    assert run.scalars()["value"].tolist() == [0.5]
    assert "ends in the middle of a record" in run.info["imported"]["sources"][0]["notes"][0]


def test_every_byte_that_is_changed_is_found(tmp_path, write):
    source = write((1, "acc", 0.5))
    data = source.read_bytes()
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 4
        source.write_bytes(changed)
        with pytest.raises(CorruptTraceError, match="checksum"):
            import_log(source, tmp_path / "run", steps_per_epoch=1)


def test_a_record_that_is_no_event_is_damage(tmp_path, write):
    source = write((1, "acc", 0.5), extra=[b"\xff\xff\xff"])
    with pytest.raises(CorruptTraceError, match="no event"):
        import_log(source, tmp_path / "run", steps_per_epoch=1)


def test_a_tag_that_is_not_there_is_named_beside_those_that_are(tmp_path, write):
    source = write((1, "acc", 0.5))
    with pytest.raises(TraceError, match=r"tag 'accuracy'; it has 'acc'"):
        import_log(source, tmp_path / "run", columns={"a": "accuracy"}, steps_per_epoch=1)


def test_scalars_join_a_table_of_samples(tmp_path, write):
    (tmp_path / "log.csv").write_text("guid,epoch,loss\n4,0,0.5\n")
    columns = {"sample_id": "guid", "accuracy:test": "acc"}
    sources = [tmp_path / "log.csv", write((0, "acc", 0.5))]
    run = import_log(sources, tmp_path / "run", columns=columns, steps_per_epoch=1)
    assert run.samples()["sample_id"].tolist() == [4]
    assert run.scalars()[["name", "block"]].to_numpy().tolist() == [["accuracy", "test"]]


def test_what_steps_count_must_be_said(tmp_path, write):
    with pytest.raises(TraceError, match="--steps-per-epoch"):
        import_log(write((1, "acc", 0.5)), tmp_path / "run")


def test_without_the_package_the_way_to_install_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(TraceError, match=r"pip install 'training-dynamics\[tensorboard\]'"):
        import_log(tmp_path / FILE, tmp_path / "run", steps_per_epoch=1)
