"""Forgetting statistics as arrays: whether each sample was right at each presentation.

An .npz file holds `correct`, `loss` or `margin`, each of shape (epochs, samples), and may hold
`sample_id` (samples), `label` (samples) and `epoch` (epochs). It is read without unpickling, an
epoch at a time.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from dynamics.traces.errors import TraceError
from dynamics.traces.foreign.log import CHUNK_ROWS, Log, Options
from dynamics.traces.rows import Columns

MAX_SAMPLES = 2**26
"""Most samples of an array: an epoch of them is held in memory."""

RECIPE = """\
import pickle, sys
import numpy as np

with open(sys.argv[1], "rb") as file:
    stats = pickle.load(file)  # runs whatever the file says: only where you trust it
ids = [key for key in stats if not isinstance(key, str)]
epochs = min(len(stats[key][1]) for key in ids)
loss, correct, margin = (
    np.array([stats[key][i][:epochs] for key in ids], dtype=float).T.copy() for i in range(3)
)
np.savez_compressed(sys.argv[2], sample_id=ids, loss=loss, correct=correct, margin=margin)
"""
"""Turns the `stats_dict.pkl` of github.com/mtoneva/example_forgetting into an .npz file."""

_BY_EPOCH = ("correct", "loss", "margin")
_BY_SAMPLE = ("sample_id", "label")


def refuse_pickle(path: Path) -> TraceError:
    """The error for a pickle, with the recipe that converts it.

    Args:
        path: The file.

    Returns:
        The error, to raise.
    """
    return TraceError(
        f"{path} is a pickle, and reading one runs whatever code it holds, so this toolkit never "
        "does. If you trust it, save the lines below as convert.py, run `python convert.py "
        f"{path.name} forgetting.npz` in an environment of its own, and import the .npz file.\n\n"
        f"{RECIPE}"
    )


def open_forgetting(path: Path, options: Options) -> Log:
    """Open forgetting statistics.

    A presentation at which every array is NaN did not take place, and is a missing row. NaN beside
    a value is a value that was not finite.

    Args:
        path: The .npz file.
        options: Nothing is mapped by hand: the arrays' names say what everything is.

    Returns:
        The log.

    Raises:
        TraceError: If it is not such a file, its arrays' shapes differ, or one holds objects.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        headers = {i.filename: _header(archive, i, path) for i in archive.infolist()}
    known = {name: h for n, h in headers.items() if (name := n.removesuffix(".npy")) in _ALL}
    shape = _check_shapes({name: h[0] for name, h in known.items()}, path)
    log = Log("forgetting", [path], iter(()))
    log.mapped = {name: name for name in known} | {"epoch": "epoch" if "epoch" in known else "row"}
    log.mapped.setdefault("sample_id", "column")
    log.ignored = [n for n in headers if n.removesuffix(".npy") not in _ALL]
    log.chunks = _read(path, known, shape)
    return log


_ALL = (*_BY_EPOCH, *_BY_SAMPLE, "epoch")
_Header = tuple[tuple[int, ...], np.dtype]


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> _Header:
    with archive.open(member) as file:
        return _read_header(file, member, path)


def _read_header(file: IO[bytes], member: zipfile.ZipInfo, path: Path) -> _Header:
    """Shape and type of an array, which the file is left behind the description of."""
    where = f"{path}, array {member.filename.removesuffix('.npy')!r}"
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, in_columns, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise TraceError(f"{where} is not an array of NumPy: {error}.") from None
    if dtype.hasobject:
        raise TraceError(f"{where} holds Python objects, which are pickled: save numbers instead.")
    if dtype.kind not in "biufU":
        raise TraceError(f"{where} holds {dtype}: save numbers, or names as text.")
    if in_columns and len(shape) > 1:
        raise TraceError(f"{where} is stored by columns; save np.ascontiguousarray(array).")
    if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
        raise TraceError(f"{where} says that its shape is {shape}, but has other bytes than that.")
    return shape, dtype


def _check_shapes(shapes: dict[str, tuple[int, ...]], path: Path) -> tuple[int, int]:
    two = {name: shape for name, shape in shapes.items() if name in _BY_EPOCH}
    if not two or any(len(shape) != 2 for shape in two.values()) or len({*two.values()}) > 1:
        raise TraceError(
            f"{path} needs one or more of {', '.join(_BY_EPOCH)}, all of one shape (epochs, "
            f"samples), but has {shapes or 'none of them'}."
        )
    epochs, samples = next(iter(two.values()))
    expected = {"sample_id": (samples,), "label": (samples,), "epoch": (epochs,)}
    wrong = {n: s for n, s in shapes.items() if n in expected and s != expected[n]}
    if wrong or not 0 < samples <= MAX_SAMPLES:
        raise TraceError(
            f"{path}: with {epochs} epochs of {samples:,} samples, expected "
            f"{ {n: expected[n] for n in wrong} or f'1 to {MAX_SAMPLES:,} samples' }, but has "
            f"{wrong or two}."
        )
    return epochs, samples


def _read(
    path: Path, known: dict[str, _Header], shape: tuple[int, int]
) -> Iterator[tuple[str, Columns]]:
    epochs, samples = shape
    with zipfile.ZipFile(path) as archive, ExitStack() as stack:
        files = {}
        for name in known:
            with _readable(path):
                member = archive.getinfo(f"{name}.npy")
                files[name] = stack.enter_context(archive.open(member))
                _read_header(files[name], member, path)
        at_once = {
            name: _take(files[name], known[name][1], known[name][0][0], path)
            for name in (*_BY_SAMPLE, "epoch")
            if name in known
        }
        numbers = at_once.pop("epoch", np.arange(epochs))
        fixed = {"sample_id": np.arange(samples)} | at_once
        for epoch in numbers:
            values = {
                name: _take(files[name], known[name][1], samples, path)
                for name in _BY_EPOCH
                if name in known
            }
            yield from _rows(fixed, values, epoch)


def _take(file: IO[bytes], dtype: np.dtype, n: int, path: Path) -> np.ndarray:
    with _readable(path):
        values = np.frombuffer(file.read(n * dtype.itemsize), dtype=dtype)
        return values.astype(dtype.newbyteorder("="), copy=False)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What `zipfile` and `zlib` raise on bytes that are not as they were written."""
    broken = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)
    try:
        yield
    except broken as error:
        raise TraceError(f"{path} is damaged, or not an .npz file: {error}.") from None


def _rows(
    fixed: dict[str, np.ndarray], values: dict[str, np.ndarray], epoch: object
) -> Iterator[tuple[str, Columns]]:
    took_place = np.zeros(len(fixed["sample_id"]), dtype=bool)
    for array in values.values():
        took_place |= ~np.isnan(array) if array.dtype.kind == "f" else True
    rows = np.flatnonzero(took_place)
    for first in range(0, len(rows), CHUNK_ROWS):
        at = rows[first : first + CHUNK_ROWS]
        columns = {name: pa.array(array[at]) for name, array in {**fixed, **values}.items()}
        yield "samples", {**columns, "epoch": np.full(len(at), epoch)}
