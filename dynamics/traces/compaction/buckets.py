"""Sorting the samples of a run into buckets, each with all rows of a range of samples.

Rows are dealt to one temporary file per bucket in a single pass, then each bucket is sorted by
itself. So memory is that of one part and one bucket, whatever the length of the run; the disk holds
the rows twice for a while.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynamics.traces.compaction.manifest import Bucket
from dynamics.traces.errors import CorruptTraceError
from dynamics.traces.layout import PartName, content_hash
from dynamics.traces.parts import Part, open_part, read_part
from dynamics.traces.rows import bounds_of, encode_part
from dynamics.traces.schema import SAMPLES, TABLES

BUCKET_ROWS = 2_000_000
MAX_BUCKETS = 256
ROWS_PER_GROUP = 131_072  # a trajectory reads one or two of them
ORDER = ("sample_id", "epoch", "step", "occurrence")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def bucket_bounds(ids_of_parts: Iterable[np.ndarray]) -> np.ndarray:
    """Sample ids at which a new bucket begins, so that buckets hold about `BUCKET_ROWS` rows each.

    Args:
        ids_of_parts: Sample id of each row, one array per part.

    Returns:
        First id of every bucket but the first, ascending. Buckets are even to within 1/256 of
        `BUCKET_ROWS` for each part; all rows of a sample are in one, however many they are.
    """
    every = max(1, BUCKET_ROWS // 256)
    points, n_rows = [np.empty(0, np.int64)], 0
    for ids in ids_of_parts:
        points.append(np.sort(ids)[every // 2 :: every])
        n_rows += len(ids)
    marks = np.sort(np.concatenate(points))
    n_buckets = -(-n_rows // max(BUCKET_ROWS, n_rows // MAX_BUCKETS)) if n_rows else 0
    cuts = (np.arange(1, n_buckets) * len(marks)) // max(1, n_buckets)
    return np.unique(marks[cuts])


def deal(
    tables: Iterable[pa.Table], bounds: np.ndarray, schema: pa.Schema, folder: Path
) -> tuple[list[Path], int]:
    """Deal rows to one temporary file per bucket.

    Args:
        tables: Rows of `samples`, a part or so at a time.
        bounds: What `bucket_bounds` returned.
        schema: Columns of the buckets; those that a table lacks are missing in its rows.
        folder: Where the temporary files go.

    Returns:
        The files that got rows, and the checksum of all rows.
    """
    paths = [folder / f".tmp-bucket-{i:06d}.arrow" for i in range(len(bounds) + 1)]
    checksum = 0
    for table in tables:
        rows = conform(table, schema)
        checksum += row_checksum(rows)
        ids = rows["sample_id"].to_numpy()
        order = np.argsort(ids, kind="stable")
        rows, cuts = rows.take(order), np.searchsorted(ids[order], bounds, "left")
        for path, piece in zip(paths, _pieces(rows, cuts), strict=True):
            if piece.num_rows:
                with path.open("ab") as file:
                    file.write(_encode_piece(piece))
    return [path for path in paths if path.exists()], checksum % 2**64


def _pieces(rows: pa.Table, cuts: np.ndarray) -> Iterator[pa.Table]:
    edges = [0, *cuts.tolist(), rows.num_rows]
    for first, end in itertools.pairwise(edges):
        yield rows.slice(first, end - first)


def _encode_piece(rows: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, rows.schema, options=options) as stream:
        stream.write_table(rows.combine_chunks())
    return sink.getvalue()


def sort_bucket(path: Path) -> pa.Table:
    """Rows of a bucket's temporary file, by sample, epoch and step."""
    pieces = []
    with pa.OSFile(str(path)) as file:
        while file.tell() < file.size():
            pieces.append(pa.ipc.open_stream(file).read_all())
    return pa.concat_tables(pieces).sort_by([(key, "ascending") for key in ORDER])


def write_bucket(
    folder: Path, rows: pa.Table, table: str, *, attempt: int, number: int
) -> tuple[Bucket, pa.Table]:
    """Write a bucket, and read it back from the disk.

    Args:
        folder: Folder of the compaction.
        rows: At least one row of the table.
        table: Name of the table.
        attempt: Newest attempt whose rows it may hold.
        number: Its number among the buckets of the table.

    Returns:
        What the manifest says of it, and the rows as read back.

    Raises:
        CorruptTraceError: If what was read back has another number of rows.
    """
    data = encode_part(rows, TABLES[table], rows_per_group=ROWS_PER_GROUP)
    first, last = bounds_of(rows, "step")
    name = PartName(attempt, number, first, last, content_hash(data))
    place = folder / table
    place.mkdir(exist_ok=True)
    with (place / str(name)).open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part = Part(name, place / str(name))
    again = read_part(open_part(part, table), TABLES[table], part.path)
    if again.num_rows != rows.num_rows:
        raise CorruptTraceError(
            f"{part.path} was written with {rows.num_rows} rows and reads back with "
            f"{again.num_rows}, so the run is left as it was. Check the disk and the memory."
        )
    return Bucket(table, str(name), rows.num_rows, *bounds_of(rows, "sample_id")), again


def bucket_schema(column_names: Sequence[str]) -> pa.Schema:
    """Schema of buckets that hold every column of the run."""
    return SAMPLES.schema(column_names)


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows with exactly the columns of a schema; those that they lack are missing."""
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def row_checksum(rows: pa.Table) -> int:
    """A sum over rows of a hash of each row, so that the order of rows does not matter.

    Args:
        rows: Rows of numeric columns.

    Returns:
        The sum modulo 2⁶⁴. Any change of one value changes it, but for a chance of 2⁻⁶⁴.
    """
    total, offset = np.zeros(rows.num_rows, dtype=np.uint64), 0
    for at, name in enumerate(rows.column_names):
        salt = (2 * at + 1) * 0xD1B54A32D192ED03 % 2**64
        column = rows[name]
        if column.null_count == rows.num_rows:
            offset += salt
            continue
        values = np.asarray(column.fill_null(0)).astype(_bits(column.type), copy=False)
        hashed = (values.view(f"u{values.itemsize}").astype(np.uint64) + np.uint64(salt)) * _MIX
        hashed ^= hashed >> np.uint64(32)
        hashed *= np.uint64(salt)
        if column.null_count:
            hashed[np.asarray(column.is_null())] = np.uint64(salt)
        total += hashed
    total += np.uint64(offset % 2**64)
    total ^= total >> np.uint64(29)
    total *= _MIX
    return int((total ^ (total >> np.uint64(32))).sum(dtype=np.uint64))


def _bits(kind: pa.DataType) -> np.dtype:
    return np.dtype(kind.to_pandas_dtype())
