"""Vectors of a run: one value for each entry of each parameter, such as a diagonal of the Fisher.

Each is a file of its own, as durable as a part: one column of values, all parameters one after
another, and in the footer their names and shapes. The name says when it was taken, and its hash.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.traces.errors import CorruptTraceError, SchemaError
from dynamics.traces.layout import content_hash
from dynamics.traces.limits import (
    MAX_DECODED_BYTES,
    check_size,
    decoding,
    open_parquet,
    parse_json,
    read_regular,
)
from dynamics.traces.parts import files_of_ranks
from dynamics.traces.schema import SCHEMA_VERSION, check_schema_version

VECTORS = "vectors"
"""Folder of a run that holds its vectors."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FILE_NAME = re.compile(
    r"([a-z][a-z0-9_]{0,63})-(\d{4,9})-(\d{1,18})-epoch(-?\d{1,9})-([0-9a-f]{16})\.parquet"
)


@dataclass(frozen=True, slots=True)
class VectorFile:
    """A vector's file, and what its name says about it."""

    name: str
    attempt: int
    step: int
    epoch: int
    content_hash: str
    path: Path


def encode_vector(values: Mapping[str, np.ndarray]) -> bytes:
    """A vector as the bytes of a Parquet file.

    Args:
        values: One array for each parameter.

    Returns:
        The file's content: column `value`, float32; non-finite values are missing.
    """
    arrays = {name: np.asarray(array, dtype=np.float32) for name, array in values.items()}
    flat = np.concatenate([a.reshape(-1) for a in arrays.values()] or [np.empty(0, np.float32)])
    column = pa.array(flat, mask=~np.isfinite(flat))
    shapes = [[name, list(array.shape)] for name, array in arrays.items()]
    metadata = {"schema_version": SCHEMA_VERSION, "parameters": json.dumps(shapes)}
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"value": column}).replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"value": "BYTE_STREAM_SPLIT"},
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def vector_file_name(name: str, data: bytes, *, attempt: int, step: int, epoch: int) -> str:
    """The file name of an encoded vector.

    Args:
        name: What it is: lower-case letters, digits and `_`.
        data: What `encode_vector` returned.
        attempt: Attempt that writes.
        step: Optimiser updates so far.
        epoch: Epoch in progress or just ended.

    Returns:
        The name, within the folder of the writer's rank.

    Raises:
        SchemaError: If the vector's name is not of that form.
    """
    if not _NAME.fullmatch(name):
        raise SchemaError(
            f"{name!r} cannot be the name of a vector: use lower-case letters, digits and '_', "
            "starting with a letter, at most 64."
        )
    return f"{name}-{attempt:04d}-{step}-epoch{epoch}-{content_hash(data)}.parquet"


def list_vectors(folder: Path) -> list[VectorFile]:
    """Vectors of a run, replaced ones included, in the order in which they were taken.

    Args:
        folder: Folder of the run.

    Returns:
        The files.
    """
    return vectors_among(files_of_ranks(folder / VECTORS))


def vectors_among(paths: Iterable[Path]) -> list[VectorFile]:
    """Those of some files that are vectors by their names, in the order of taking."""
    known = [file for path in paths if (file := parse_vector_name(path)) is not None]
    return sorted(known, key=lambda file: (file.step, file.epoch, file.attempt, file.name))


def parse_vector_name(path: Path) -> VectorFile | None:
    """What the file name of a vector says, or None if it is not a vector's."""
    match = _FILE_NAME.fullmatch(path.name)
    if match is None:
        return None
    name, attempt, step, epoch, digest = match.groups()
    return VectorFile(name, int(attempt), int(step), int(epoch), digest, path)


def read_vector(file: VectorFile) -> dict[str, np.ndarray]:
    """Read a vector after comparing its bytes with the hash in its name.

    Args:
        file: Which.

    Returns:
        One array for each parameter, shaped like it; missing values are NaN.

    Raises:
        CorruptTraceError: If the file is damaged.
    """
    with decoding(file.path, "vector's file"):
        data = read_regular(file.path)
    if content_hash(data) != file.content_hash:
        raise CorruptTraceError(
            f"{file.path} is damaged: its bytes do not hash to {file.content_hash}. Restore the "
            "file from a copy, or delete it; the rest of the run does not need it."
        )
    with decoding(file.path, "vector's file"):
        opened = open_parquet(pa.BufferReader(data))
        check_size(opened, file.path, max_rows=MAX_DECODED_BYTES // 4)
        metadata = opened.schema_arrow.metadata or {}
        check_schema_version(metadata[b"schema_version"].decode(), str(file.path))
        if opened.schema_arrow.names != ["value"] or opened.schema_arrow.types != [pa.float32()]:
            raise ValueError(f"expected one column, value (float), got {opened.schema_arrow.names}")
        parameters = parse_json(b'{"parameters": %b}' % metadata[b"parameters"], file.path)
        values = opened.read()["value"].to_numpy().astype(np.float32, copy=False)
        return _split(values, parameters["parameters"])


def _split(values: np.ndarray, shapes: Sequence[Any]) -> dict[str, np.ndarray]:
    sizes = [math.prod(shape) for _, shape in shapes]
    if sum(sizes) != len(values) or min(sizes, default=0) < 0:
        raise ValueError(f"shapes hold {sum(sizes)} values, the column {len(values)}")
    parts = np.split(values, np.cumsum(sizes)[:-1]) if shapes else []
    return {
        str(name): part.reshape(shape) for (name, shape), part in zip(shapes, parts, strict=True)
    }
