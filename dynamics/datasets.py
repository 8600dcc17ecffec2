"""The arrays that a run was trained on: studies train on them, reports show pictures of them."""

import gzip
import hashlib
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
_IDX_UBYTE = 8  # third byte of the magic number: unsigned bytes
_NOT_NPZ = (  # what numpy, zipfile and zlib raise for a file that is damaged or of another format
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    TypeError,
    ValueError,
    RuntimeError,
)


@dataclass(frozen=True)
class Dataset:
    """Training and test images with their labels.

    Attributes:
        source: What it was opened with: `digits` or a path.
        x_train: Images, shape (N, H, W) or (N, H, W, 3); a sample's id is its index here.
        y_train: Labels, shape (N,).
        x_test: Test images.
        y_test: Test labels.
        peak: Largest pixel value of the format, 16 for digits and 255 otherwise.
    """

    source: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    peak: int

    @property
    def n_classes(self) -> int:
        """Number of classes, from the largest label."""
        return int(self.y_train.max()) + 1

    def fingerprint(self) -> str:
        """SHA-256 of the training images and labels, so that a report shows the right pictures."""
        digest = hashlib.sha256(repr(self.x_train.shape).encode())
        digest.update(self.x_train.tobytes())
        digest.update(self.y_train.astype(np.int64).tobytes())
        return digest.hexdigest()


def open_dataset(source: str | Path) -> Dataset:
    """Open a data set.

    Args:
        source: `digits` (scikit-learn's, always there: 1,500 training and 297 test images by a
            fixed split); a folder with the four idx `.gz` files of MNIST or Fashion-MNIST; or an
            `.npz` with arrays `x_train`, `y_train`, `x_test`, `y_test`.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If there is nothing at the path, or a file of the folder is missing.
        ValueError: If a file is not of its format, or images and labels do not fit.
    """
    if str(source) == "digits":
        return _digits()
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no data set at {path}. Name `digits`, a folder of idx .gz files, or an .npz."
        )
    arrays = _read_idx_folder(path) if path.is_dir() else _read_npz(path)
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim not in (3, 4) or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: x_{part} of shape {x.shape} and y_{part} of shape {y.shape}, {y.dtype}, "
                "are not images (N, H, W[, 3]) with one integer label each."
            )
    return Dataset(source=str(source), peak=255, **arrays)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # 0.3 s to import, needed here only

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1500], order[1500:]
    labels = digits.target.astype(np.int64)
    return Dataset("digits", images[train], labels[train], images[test], labels[test], peak=16)


def _read_idx_folder(folder: Path) -> dict[str, np.ndarray]:
    missing = [name for name in _IDX_FILES.values() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}.")
    return {key: _read_idx(folder / name) for key, name in _IDX_FILES.items()}


def _read_idx(path: Path) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, n_axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{n_axes}I", content[4 : 4 + 4 * n_axes])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} is not a gzipped idx file: {error}.") from None
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes)
    if zeros != 0 or kind != _IDX_UBYTE or data.size != np.prod(shape):
        raise ValueError(f"{path} is not an idx file of unsigned bytes, or is cut short.")
    return data.reshape(shape)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in _IDX_FILES if key in file}
    except _NOT_NPZ as error:
        raise ValueError(f"{path} is not an .npz of plain arrays: {error}.") from None
    missing = [key for key in _IDX_FILES if key not in arrays]
    if missing:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}.")
    return arrays
