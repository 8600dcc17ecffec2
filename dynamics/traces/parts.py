"""The files of a table: listing them, opening one, and reading its rows.

No byte reaches a decoder before its hash has been compared with the one in the file's name. Which
files have been compared is remembered, with what would change if one were written again.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.traces.compaction.manifest import Manifest, list_versions, read_manifest
from dynamics.traces.errors import CorruptTraceError, TraceError
from dynamics.traces.layout import PartName, content_hash
from dynamics.traces.limits import (
    check_footer,
    decoding,
    open_parquet,
    open_regular,
    texts_as_strings,
)
from dynamics.traces.schema import BLOCK_PREFIX, TABLES, Table

Verified = dict[Path, tuple[int, int, int]]
"""Size, modification time (ns) and inode of each file when its hash was compared."""


class PartGoneError(TraceError):
    """A listed file has since been compacted or set aside; the run must be listed again."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a table.

    Attributes:
        name: What its file name says.
        path: The file.
        sample_range: First and last sample id in it, where that is known (a bucket's is).
    """

    name: PartName
    path: Path
    sample_range: tuple[int, int] | None = None


def list_parts(folder: Path, table: str) -> list[Part]:
    """Files of a table that count: buckets by sample, then parts in the order of recording.

    Args:
        folder: Folder of the run.
        table: Name of the table.

    Returns:
        Buckets of the newest compaction, and parts that it does not replace. Anything else in the
        table's folders, links above all, is passed over; `verify` names it.

    Raises:
        CorruptTraceError: If the run is compacted and its manifest is damaged.
    """
    while True:
        newest = list_versions(folder)[-1:]
        manifest = read_manifest(folder)
        parts = [
            part
            for part in stored_parts(folder, table)
            if manifest is None or replaced_path(folder, part) not in manifest.replaces
        ]
        if list_versions(folder)[-1:] == newest:  # or parts may have gone while we looked
            return bucket_parts(manifest, table) + parts


def stored_parts(folder: Path, table: str) -> list[Part]:
    """Part files of a table as they lie in its folders, replaced ones included."""
    return parts_among(files_of_ranks(folder / table))


def parts_among(paths: Iterable[Path]) -> list[Part]:
    """Those of some files that are parts by their names, in the order of recording."""
    parts = [Part(name, path) for path in paths if (name := PartName.parse(path.name)) is not None]
    return sorted(parts, key=lambda part: (part.name.first_step, part.name, part.path))


def files_of_ranks(folder: Path) -> Iterator[Path]:
    """Regular files in the `rank-…` folders of a table.

    Args:
        folder: Folder of the table.

    Yields:
        The files, none of them reached through a link.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for rank in folder.iterdir():
        if rank.name.startswith("rank-") and rank.is_dir() and not rank.is_symlink():
            with os.scandir(rank) as entries:
                yield from (Path(e.path) for e in entries if e.is_file(follow_symlinks=False))


def replaced_path(folder: Path, part: Part) -> str:
    """Path of a part within its run, as a manifest writes it."""
    return part.path.relative_to(folder).as_posix()


def bucket_parts(manifest: Manifest | None, table: str) -> list[Part]:
    """Buckets of a table, as parts; none if the run is not compacted."""
    parts = []
    for bucket in manifest.buckets if manifest else ():
        if bucket.table == table and manifest:
            samples = (bucket.first_sample, bucket.last_sample) if table == "samples" else None
            path = manifest.folder / table / bucket.name
            parts.append(Part(bucket.part_name, path, samples))
    return parts


def open_part(
    part: Part, table: str = "samples", *, verified: Verified | None = None
) -> pq.ParquetFile:
    """Open a part, after comparing its bytes with the hash in its name.

    Args:
        part: Which.
        table: The table that it belongs to.
        verified: Files whose hash has been compared; this one joins them.

    Returns:
        The file, with nothing decoded but its footer. Read it with `read_part`.

    Raises:
        CorruptTraceError: If its bytes are not those written, or not a Parquet file's.
        SchemaError: If its columns are not the table's.
        PartGoneError: If it is no longer there.
    """
    spec = TABLES[table]
    texts = tuple(c.name for c in spec.columns if pa.types.is_string(c.type))
    source = _verified_file(part, verified)
    with decoding(part.path):
        file = open_parquet(source, texts=texts)
    check_footer(file, spec, part.path)
    return file


def part_gone(part: Part) -> str:
    """The text of the error for a part that was listed and is no longer there."""
    return (
        f"{part.path} is gone: the run was compacted or repaired while it was read. Open the run "
        "again."
    )


def verify_part(part: Part, *, verified: Verified | None = None) -> Path:
    """Path of a part, for an engine that opens files itself, after comparing its hash.

    Args:
        part: Which.
        verified: Files whose hash has been compared; this one joins them.

    Returns:
        The path.

    Raises:
        CorruptTraceError: If its bytes are not those written.
        PartGoneError: If it is no longer there.
    """
    _verified_file(part, verified).close()
    return part.path


class _ReadOnDemand(io.RawIOBase):
    """A file for a decoder that never closes what it reads; this closes with the last reference."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def _verified_file(part: Part, verified: Verified | None) -> Any:
    try:
        file = open_regular(part.path)
    except FileNotFoundError:
        raise PartGoneError(part_gone(part)) from None
    state = os.fstat(file.fileno())
    stamp = (state.st_size, state.st_mtime_ns, state.st_ino)
    if verified is not None and verified.get(part.path) == stamp:
        return _ReadOnDemand(file)
    with file, decoding(part.path):
        data = file.read()
    found = content_hash(data)
    if found != part.name.content_hash:
        raise CorruptTraceError(
            f"{part.path} is damaged: its bytes hash to {found}, and its name says "
            f"{part.name.content_hash}. Restore the file from a copy, or read the rest without "
            "its rows after `dynamics repair`, which sets it aside and says what is gone."
        )
    if verified is not None:
        verified[part.path] = stamp
    return pa.BufferReader(data)


def read_part(
    file: pq.ParquetFile,
    spec: Table,
    path: Path,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Rows of an opened part.

    Args:
        file: What `open_part` returned.
        spec: The table that it belongs to.
        path: Its path, for messages.
        columns: Columns to read; those that it does not hold are missing in every row.

    Returns:
        The rows, in stored order.

    Raises:
        CorruptTraceError: If they do not decode.
    """
    rows = _read_groups(file, spec, path, list(range(file.num_row_groups)), columns)
    for name in columns or ():
        if name not in rows.column_names:
            kind = pa.float32() if is_block(name, spec) else spec.schema().field(name).type
            rows = rows.append_column(name, pa.nulls(rows.num_rows, kind))
    return rows if columns is None else rows.select(list(columns))


def read_group(file: pq.ParquetFile, spec: Table, path: Path, group: int) -> pa.Table:
    """Rows of one row group of an opened part, as `read_part` returns them."""
    return _read_groups(file, spec, path, [group], None)


def _read_groups(
    file: pq.ParquetFile, spec: Table, path: Path, groups: list[int], columns: Sequence[str] | None
) -> pa.Table:
    known = [n for n in file.schema_arrow.names if n in spec.column_names or is_block(n, spec)]
    wanted = known if columns is None else [name for name in columns if name in known]
    with decoding(path):
        rows = file.read_row_groups(groups, columns=wanted)
        rows = texts_as_strings(rows, path).replace_schema_metadata(None)
        rows.validate(full=True)
    return rows


def is_block(name: str, spec: Table) -> bool:
    """Whether a column is one of `grad_norm/<block>`."""
    return spec.name == "samples" and name.startswith(BLOCK_PREFIX)


def any_within(sample_ids: Iterable[int] | np.ndarray, first: int, last: int) -> bool:
    """Whether any of the sorted ids lies within the bounds, both included."""
    ids = np.asarray(sample_ids, dtype=np.int64)
    return bool(np.searchsorted(ids, first, "left") < np.searchsorted(ids, last, "right"))
