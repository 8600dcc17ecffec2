"""Forgetting statistics: arrays are read an epoch at a time, and nothing is ever unpickled."""

import contextlib
import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from dynamics import import_log
from dynamics.traces import Status, TraceError
from dynamics.traces.foreign.forgetting import RECIPE


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def refusal(source):
    with pytest.raises(TraceError) as caught:
        import_log(source, source.parent / "run")
    assert str(source) in str(caught.value)
    assert not (source.parent / "run").exists()
    return str(caught.value)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float16, ">i4"])
def test_correct_alone_is_enough(tmp_path, dtype):
    correct = np.array([[0, 1], [1, 0], [1, 1]], dtype=dtype)
    run = import_log(saved(tmp_path / "f.npz", correct=correct), tmp_path / "run")
    rows = run.samples()
    assert rows["epoch"].tolist() == [0, 0, 1, 1, 2, 2]
    assert rows["sample_id"].tolist() == [0, 1, 0, 1, 0, 1]
    assert rows["correct"].tolist() == [0, 1, 1, 0, 1, 1]


def test_ids_labels_and_epochs_are_taken_and_other_arrays_named(tmp_path):
    arrays = {"loss": [[0.5, 1.5]], "sample_id": [7, 3], "label": [1, 2], "epoch": [4]}
    run = import_log(saved(tmp_path / "f.npz", **arrays, seed=[1]), tmp_path / "run")
    assert run.samples()[["epoch", "sample_id", "loss"]].to_numpy().tolist() == [
        [4, 3, 1.5],
        [4, 7, 0.5],
    ]
    assert run.roster()["label"].to_dict() == {3: 2, 7: 1}
    assert run.info["imported"]["sources"][0]["ignored"] == ["seed.npy"]


def test_nan_throughout_is_no_presentation_and_nan_beside_a_value_is_not_finite(tmp_path):
    correct = np.array([[1.0, np.nan, 0]])
    loss = np.array([[np.nan, np.nan, 0.5]])
    run = import_log(saved(tmp_path / "f.npz", correct=correct, loss=loss), tmp_path / "run")
    rows = run.samples()
    assert rows["sample_id"].tolist() == [0, 2]
    assert rows["status"].tolist() == [Status.NON_FINITE_LOSS, 0]


def test_compressed_arrays_and_more_samples_than_a_chunk_are_read(tmp_path):
    correct = np.arange(2 * 70_000).reshape(2, -1) % 3 == 0
    np.savez_compressed(tmp_path / "f.npz", correct=correct)
    rows = import_log(tmp_path / "f.npz", tmp_path / "run").samples(columns=["correct"])
    np.testing.assert_array_equal(rows["correct"], correct.reshape(-1))


class Planted:
    def __reduce__(self):
        return (open, ("planted", "w"))


def test_objects_in_an_array_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = saved(tmp_path / "f.npz", correct=np.array([[Planted()]], dtype=object))
    assert "holds Python objects" in refusal(source)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["stats.pkl", "stats.pickle", "model.pt", "stats.npz", "stats"])
def test_a_pickle_is_refused_with_the_recipe_whatever_it_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Planted()))
    assert RECIPE in refusal(tmp_path / name)
    assert not (tmp_path / "planted").exists()


def test_the_recipe_converts_what_the_authors_code_writes(tmp_path):
    """As run_cifar.py gathers it: three lists for each index, and lists under 'train', 'test'."""
    stats = {4: [[0.5, 0.25], [1, 1], [0.1, 2.0]], 2: [[3.0, 2.0], [0, 1], [-1.0, 0.5]]}
    stats |= {"train": [[], [50.0, 75.0]], "test": [[], [40.0]]}
    (tmp_path / "stats_dict.pkl").write_bytes(pickle.dumps(stats))
    (tmp_path / "convert.py").write_text(RECIPE)
    command = [sys.executable, "convert.py", "stats_dict.pkl", "forgetting.npz"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    rows = import_log(tmp_path / "forgetting.npz", tmp_path / "run").samples()
    assert rows["sample_id"].tolist() == [2, 4, 2, 4]
    assert rows["correct"].tolist() == [0, 1, 1, 1]
    assert rows["loss"].tolist() == [3.0, 0.5, 2.0, 0.25]
    np.testing.assert_array_equal(rows["margin"], np.float32([-1.0, 0.1, 0.5, 2.0]))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"accuracy": [[1]]}, "needs one or more of correct, loss, margin"),
        ({"correct": [1, 0]}, "all of one shape (epochs, samples)"),
        ({"correct": [[1, 0]], "loss": [[1.0]]}, "all of one shape"),
        ({"correct": [[1, 0]], "sample_id": [1]}, "'sample_id': (2,)"),
        ({"correct": [[1, 0]], "epoch": [1, 2]}, "'epoch': (1,)"),
        ({"correct": np.zeros((3, 0))}, "1 to 67,108,864 samples"),
        ({"correct": np.zeros((3, 2)).T}, "np.ascontiguousarray"),
        ({"correct": [[2]]}, "`correct` should be a whole number from 0 to 1"),
        ({"correct": [["x"]]}, "`correct` should be a number"),
        ({"correct": [[1j]]}, "holds complex128"),
        ({"correct": [[1, 1]], "sample_id": [1.5, 2]}, "`sample_id` should be a whole number"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, told):
    assert told in refusal(saved(tmp_path / "f.npz", **arrays))


def test_an_array_that_lies_about_its_shape_is_refused(tmp_path):
    """A small file whose header promises a petabyte must not be believed."""
    buffer = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**7)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("correct.npy", buffer.getvalue() + b"\0" * 80)
    assert "has other bytes than that" in refusal(tmp_path / "f.npz")


def test_what_is_not_a_zip_or_not_arrays_is_refused(tmp_path):
    (tmp_path / "f.npz").write_bytes(b"no zip file at all")
    assert "not an .npz file" in refusal(tmp_path / "f.npz")
    with zipfile.ZipFile(tmp_path / "g.npz", "w") as archive:
        archive.writestr("correct.npy", b"no array")
    assert "is not an array of NumPy" in refusal(tmp_path / "g.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_byte_gives_a_run_or_our_error(tmp_path, save):
    save(tmp_path / "whole.npz", correct=np.eye(3, dtype=np.int8), loss=np.ones((3, 3)))
    data = (tmp_path / "whole.npz").read_bytes()
    for at in range(0, len(data), 61):
        changed = bytearray(data)
        changed[at] ^= 0x55
        (tmp_path / "f.npz").write_bytes(changed)
        with contextlib.suppress(TraceError):
            import_log(tmp_path / "f.npz", tmp_path / f"run-{at}")


def test_damage_inside_an_array_is_found(tmp_path):
    source = saved(tmp_path / "f.npz", correct=np.zeros((4, 5000), dtype=np.int8))
    data = bytearray(source.read_bytes())
    data[9000] ^= 1
    source.write_bytes(data)
    assert "is damaged" in refusal(source)
