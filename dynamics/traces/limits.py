"""What is checked before a byte of a trace is decoded, so that a foreign file cannot hurt.

A trace may come from anywhere. A file is read only if it is a regular one (never a link), of a size
that a run can have; JSON only if it is small and shallow; Parquet only if its footer promises
known columns of fixed width, and no more rows and bytes than a part can hold. Whatever the decoder
says after that becomes a `CorruptTraceError`.
"""

import contextlib
import functools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.traces.errors import CorruptTraceError, SchemaError, TraceError
from dynamics.traces.schema import (
    BLOCK_PREFIX,
    SCHEMA_VERSION,
    Table,
    check_schema_version,
    unknown_column,
)

MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 64
MAX_FILE_BYTES = 2 << 30
MAX_FOOTER_BYTES = 16 << 20
MAX_ROWS = 1 << 24
"""Rows of one file; a writer cuts a part long before."""
MAX_ROW_GROUPS = 4096
MAX_COLUMNS = 4096
MAX_NAME_LENGTH = 512
MAX_DECODED_BYTES = 4 << 30
MAX_TEXT_BYTES = 1 << 20
"""Bytes of one text in `scalars` or `events`."""


def open_regular(path: Path, max_bytes: int = MAX_FILE_BYTES) -> BinaryIO:
    """Open a file for reading, unless it is a link, a pipe, a device or too large.

    Args:
        path: The file.
        max_bytes: The most it may hold.

    Returns:
        The open file.

    Raises:
        FileNotFoundError: If there is none.
        TraceError: If it is no regular file, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:  # O_NOFOLLOW says ELOOP at a link
        raise TraceError(f"{path} cannot be opened as a file of a trace: {error}.") from None
    state = os.fstat(descriptor)
    if stat.S_ISREG(state.st_mode) and state.st_size <= max_bytes:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    what = f"holds {state.st_size} bytes" if stat.S_ISREG(state.st_mode) else "is no regular file"
    raise TraceError(f"{path} {what}; a file of its kind in a trace holds at most {max_bytes}.")


def read_regular(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Bytes of a file, under the conditions of `open_regular`."""
    with open_regular(path, max_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def parse_json(data: bytes, where: object) -> dict[str, Any]:
    """A JSON object from bytes, small, shallow and without NaN or infinities.

    Args:
        data: The bytes.
        where: The file that they are from, for the message.

    Returns:
        The object.

    Raises:
        TraceError: If they are not such an object.
    """
    if len(data) > MAX_JSON_BYTES:
        raise TraceError(f"{where} holds {len(data)} bytes; JSON of a trace has at most 16 MiB.")
    try:
        content = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
        json.dumps(
            content, allow_nan=False, ensure_ascii=False
        ).encode()  # 1e999 and lone surrogates
    except (ValueError, RecursionError, MemoryError) as error:
        raise TraceError(f"{where} is not readable as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise TraceError(
            f"{where} should hold a JSON object, but holds a {type(content).__name__}."
        )
    if _is_deeper(content, MAX_JSON_DEPTH):
        raise TraceError(
            f"{where} nests deeper than {MAX_JSON_DEPTH} levels; a trace's JSON never does."
        )
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_deeper(content: object, levels: int) -> bool:
    layer = [content]
    for _ in range(levels):
        inner: list[object] = []
        for item in layer:
            if isinstance(item, dict | list):
                inner += item.values() if isinstance(item, dict) else item
        layer = inner
    return bool(layer)


_DECODER_ERRORS = (
    pa.ArrowException,
    TraceError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
)


@contextlib.contextmanager
def decoding(path: Path, kind: str = "Parquet file") -> Iterator[None]:
    """Turn whatever a decoder raises over a file into a `CorruptTraceError` that names it.

    Args:
        path: The file.
        kind: What it should be.

    Yields:
        Nothing; decode within.

    Raises:
        CorruptTraceError: In place of what the decoder raised.
    """
    try:
        yield
    except (SchemaError, CorruptTraceError):
        raise
    except MemoryError:
        raise CorruptTraceError(
            f"{path} asks for more memory than there is, so it is not decoded. If this toolkit "
            "wrote it, read it on a machine with more memory; otherwise it is not to be trusted."
        ) from None
    except _DECODER_ERRORS as error:
        raise CorruptTraceError(
            f"{path} is not a {kind}: {type(error).__name__}: {error}."
        ) from None


def open_parquet(source: Any, *, texts: tuple[str, ...] = ()) -> pq.ParquetFile:
    """Open Parquet with checks of every page, no extension types and bounded footers.

    Args:
        source: A seekable binary file, or `pyarrow.BufferReader`.
        texts: Columns of text, which stay dictionaries until they have been measured.

    Returns:
        The opened file; only its footer has been decoded.

    Raises:
        ValueError: If its footer is larger than a trace's. Other errors are the decoder's own; call
            it within `decoding`.
    """
    source.seek(0, os.SEEK_END)
    size = source.tell()
    source.seek(max(0, size - 8))
    length = int.from_bytes(source.read(4), "little")
    if length > min(MAX_FOOTER_BYTES, size):
        raise ValueError(f"it claims a footer of {length} bytes, and has {size} in all")
    limited = functools.partial(
        pq.ParquetFile,
        page_checksum_verification=True,
        arrow_extensions_enabled=False,
        thrift_string_size_limit=MAX_FOOTER_BYTES,
        thrift_container_size_limit=MAX_ROW_GROUPS * MAX_COLUMNS // 16,
        schema_depth_limit=4,
    )
    source.seek(0)
    file = limited(source)
    held = [name for name in texts if name in file.schema_arrow.names]
    if not held:  # columns that an older file lacks cannot be asked for
        return file
    source.seek(0)
    return limited(source, read_dictionary=held)


def check_footer(file: pq.ParquetFile, table: Table, path: Path) -> None:
    """Refuse a part whose footer promises what a part of this table cannot hold.

    Args:
        file: The part, of which nothing has been decoded but the footer.
        table: The table that it belongs to.
        path: Its path, for the message.

    Raises:
        SchemaError: If a column, its type or the schema version is not the trace format's.
        CorruptTraceError: If it promises more rows or bytes than a part can hold.
    """
    check_size(file, path)
    with decoding(path):
        schema, metadata = file.schema_arrow, file.schema_arrow.metadata or {}
    version = metadata.get(b"schema_version", b"").decode(errors="replace")
    check_schema_version(version, str(path))
    written_for = metadata.get(b"table", table.name.encode()).decode(errors="replace")
    if written_for != table.name:
        raise SchemaError(f"{path} holds rows of `{written_for}`, but lies among `{table.name}`.")
    types = {column.name: column for column in table.columns}
    for field in schema:
        if field.name in types:
            wanted, nullable = types[field.name].type, types[field.name].nullable
        elif table.name == "samples" and field.name.startswith(BLOCK_PREFIX):
            wanted, nullable = pa.float32(), True
        elif _is_newer(version) and pa.types.is_primitive(field.type):
            continue  # a later minor version may add columns of fixed width; they are not read
        else:
            raise SchemaError(f"{path}: {unknown_column(field.name[:MAX_NAME_LENGTH], table)}")
        _check_field(field, wanted, nullable, path)
    missing = [c.name for c in table.columns if not c.nullable and c.name not in schema.names]
    if missing or len(set(schema.names)) != len(schema.names):
        raise SchemaError(
            f"{path} lacks {', '.join(missing)}, needed in every row of `{table.name}`."
            if missing
            else f"{path} has two columns of one name."
        )


def check_size(file: pq.ParquetFile, path: Path, *, max_rows: int | None = None) -> None:
    """Refuse a Parquet file whose footer promises more than a file of a trace can hold.

    Args:
        file: The file, of which nothing has been decoded but the footer.
        path: Its path, for the message.
        max_rows: The most rows that a file of its kind holds; those of a part by default.

    Raises:
        CorruptTraceError: If it promises too many rows, row groups, columns or bytes.
    """
    with decoding(path):
        metadata = file.metadata
        n_rows, n_groups = metadata.num_rows, metadata.num_row_groups
        groups = [metadata.row_group(i) for i in range(min(n_groups, MAX_ROW_GROUPS))]
        sizes = [group.total_byte_size for group in groups]
        rows = [group.num_rows for group in groups]
        decoded = n_rows * sum(_width(field.type) for field in file.schema_arrow)
    for count, limit, what in (
        (n_rows, MAX_ROWS if max_rows is None else max_rows, "rows"),
        (n_groups, MAX_ROW_GROUPS, "row groups"),
        (metadata.num_columns, MAX_COLUMNS, "columns"),
        (sum(sizes), MAX_DECODED_BYTES, "bytes once decompressed"),
        (decoded, MAX_DECODED_BYTES, "bytes once decoded"),
    ):
        if not 0 <= count <= limit:
            raise CorruptTraceError(
                f"{path} promises {count} {what}; a file of a trace has at most {limit}. It was "
                "not written by this toolkit, or is damaged."
            )
    if min(sizes + rows, default=0) < 0 or sum(rows) != n_rows:
        raise CorruptTraceError(f"{path} contradicts itself about the number of its rows.")


def _width(kind: pa.DataType) -> int:
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        return 8  # of variable length: measured once its dictionary is decoded


def _check_field(field: pa.Field, wanted: pa.DataType, nullable: bool, path: Path) -> None:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if kind != wanted or (field.nullable and not nullable) or len(field.name) > MAX_NAME_LENGTH:
        raise SchemaError(
            f"{path} holds `{field.name[:MAX_NAME_LENGTH]}` as {field.type}"
            f"{', nullable' if field.nullable else ''}; the trace format has it as {wanted}"
            f"{', nullable' if nullable else ''}."
        )


def _is_newer(version: str) -> bool:
    return int(version.partition(".")[2]) > int(SCHEMA_VERSION.partition(".")[2])


def texts_as_strings(rows: pa.Table, path: Path) -> pa.Table:
    """Rows with texts as strings, after measuring them as dictionaries.

    Args:
        rows: Rows whose texts are dictionaries.
        path: The file that they are from.

    Returns:
        The same rows.

    Raises:
        CorruptTraceError: If a text, or all together, are larger than a trace's can be.
    """
    for at, field in enumerate(rows.schema):
        if not pa.types.is_dictionary(field.type):
            continue
        total = 0
        for chunk in rows.column(at).chunks:
            lengths = pa.compute.binary_length(chunk.dictionary)
            longest = pa.compute.max(lengths).as_py() or 0
            total += pa.compute.sum(lengths.take(chunk.indices)).as_py() or 0
            if longest > MAX_TEXT_BYTES or total > MAX_FILE_BYTES - 1:
                raise CorruptTraceError(
                    f"{path} holds texts of up to {longest} bytes in `{field.name}`, {total} in "
                    f"all; a trace's have at most {MAX_TEXT_BYTES} each."
                )
        strings = pa.field(field.name, pa.string(), nullable=field.nullable)
        rows = rows.set_column(at, strings, rows.column(at).cast(pa.string()))
    return rows
