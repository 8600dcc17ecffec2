"""Data sets: digits, idx folders and npz files, and what is said of one that is damaged."""

import dataclasses
import gzip
import struct

import numpy as np
import pytest

from dynamics.datasets import open_dataset

NAMES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}


def arrays(n=6, size=(3, 2)):
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (n, *size), dtype=np.uint8),
        "y_train": np.arange(n, dtype=np.uint8) % 3,
        "x_test": rng.integers(0, 256, (2, *size), dtype=np.uint8),
        "y_test": np.array([2, 0], np.uint8),
    }


def idx(array, kind=8):
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return head + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    for key, array in arrays().items():
        (tmp_path / NAMES[key]).write_bytes(gzip.compress(idx(array)))
    return tmp_path


@pytest.fixture
def npz(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    return tmp_path / "data.npz"


def test_digits_are_1500_and_297_disjoint_images_by_a_fixed_split():
    data, again = open_dataset("digits"), open_dataset("digits")
    assert (data.x_train.shape, data.y_train.shape) == ((1500, 8, 8), (1500,))
    assert (data.x_test.shape, data.y_test.shape) == ((297, 8, 8), (297,))
    assert (data.peak, data.n_classes, data.source) == (16, 10, "digits")
    assert data.x_train.max() == 16
    np.testing.assert_array_equal(data.x_train, again.x_train)
    np.testing.assert_array_equal(data.y_test, again.y_test)
    assert data.fingerprint() == again.fingerprint()


def test_digits_are_each_in_one_part_with_its_label():
    from sklearn.datasets import load_digits

    def rows(images, labels):
        return sorted(x.tobytes() + bytes([y]) for x, y in zip(images, labels, strict=True))

    data, whole = open_dataset("digits"), load_digits()
    images = np.concatenate([data.x_train, data.x_test])
    labels = np.concatenate([data.y_train, data.y_test])
    assert rows(images, labels) == rows(whole.images.astype(np.uint8), whole.target)
    assert set(data.y_test.tolist()) == set(range(10))


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_arrays_come_back_from_a_file(kind, request):
    path = request.getfixturevalue(kind)
    data = open_dataset(path)
    for key, array in arrays().items():
        np.testing.assert_array_equal(getattr(data, key), array)
    assert (data.peak, data.n_classes, data.source) == (255, 3, str(path))
    assert open_dataset(str(path)).fingerprint() == data.fingerprint()


def test_nothing_at_the_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mnist.*Name `digits`"):
        open_dataset(tmp_path / "mnist")


def test_a_missing_file_of_a_folder_is_named(folder):
    (folder / NAMES["y_test"]).unlink()
    with pytest.raises(FileNotFoundError, match=NAMES["y_test"]) as error:
        open_dataset(folder)
    assert NAMES["x_train"] not in str(error.value)


WHOLE = idx(arrays()["x_train"])
DAMAGED = {
    "cut short": gzip.compress(WHOLE[:-1]),
    "too long": gzip.compress(WHOLE + b"\0"),
    "cut in the head": gzip.compress(WHOLE[:9]),
    "empty": gzip.compress(b""),
    "of floats": gzip.compress(idx(arrays()["x_train"], kind=13)),
    "gzip cut short": gzip.compress(WHOLE)[:-10],
    "gzip with a wrong checksum": gzip.compress(WHOLE)[:-8] + bytes(8),
    "gzip with damaged data": gzip.compress(WHOLE)[:10] + b"\xff" * 30,
    "not gzip": WHOLE,
    "no bytes": b"",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_idx_file_is_named(folder, content):
    (folder / NAMES["x_train"]).write_bytes(content)
    with pytest.raises(ValueError, match=NAMES["x_train"]):
        open_dataset(folder)


def test_a_missing_array_of_an_npz_is_named(tmp_path):
    given = arrays()
    del given["y_train"], given["x_test"]
    np.savez(tmp_path / "data.npz", **given)
    with pytest.raises(ValueError, match="y_train, x_test"):
        open_dataset(tmp_path / "data.npz")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle in a data set was loaded",))


def test_an_object_array_is_never_unpickled(tmp_path):
    labels = np.array([Trap()] * 6, dtype=object)
    np.savez(tmp_path / "data.npz", **arrays() | {"y_train": labels})
    with pytest.raises(ValueError, match="bject array"):
        open_dataset(tmp_path / "data.npz")


@pytest.mark.parametrize("length", [0, 3, 100, -1, -30])
def test_a_cut_short_npz_is_named(npz, length):
    npz.write_bytes(npz.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"data\.npz"):
        open_dataset(npz)


def test_a_file_that_is_not_an_npz_is_named(tmp_path):
    (tmp_path / "data.txt").write_text("no array")
    with pytest.raises(ValueError, match=r"data\.txt"):
        open_dataset(tmp_path / "data.txt")
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"data\.npy"):
        open_dataset(tmp_path / "data.npy")


@pytest.mark.parametrize(
    "changed",
    [
        {"y_train": np.zeros(5, np.uint8)},
        {"y_test": np.zeros((2, 1), np.uint8)},
        {"x_train": np.zeros((6, 6), np.uint8)},
        {"x_test": np.zeros((3, 3, 2), np.uint8)},
        {"y_train": np.zeros(6)},
    ],
    ids=["fewer labels", "labels in a column", "flat images", "more images", "float labels"],
)
def test_images_and_labels_that_do_not_fit_are_refused(tmp_path, changed):
    np.savez(tmp_path / "data.npz", **arrays() | changed)
    (key,) = changed
    with pytest.raises(ValueError, match=key.partition("_")[2]):
        open_dataset(tmp_path / "data.npz")


def test_colour_images_are_taken(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays(size=(3, 2, 3)))
    assert open_dataset(tmp_path / "data.npz").x_train.shape == (6, 3, 2, 3)


def test_the_fingerprint_changes_with_one_label_one_pixel_or_the_shape(npz):
    data = open_dataset(npz)
    label, pixel = data.y_train.copy(), data.x_train.copy()
    label[4] += 1
    pixel[0, 0, 0] ^= 1
    changed = [{"y_train": label}, {"x_train": pixel}, {"x_train": data.x_train.reshape(6, 2, 3)}]
    prints = [dataclasses.replace(data, **c).fingerprint() for c in changed]
    assert len({data.fingerprint(), *prints}) == 4
    same = dataclasses.replace(data, y_train=data.y_train.astype(np.int64), source="elsewhere")
    assert same.fingerprint() == data.fingerprint()
