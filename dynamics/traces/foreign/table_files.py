"""Files of plain tables, read a chunk at a time: CSV, Parquet and JSON lines."""

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dynamics.traces.errors import TraceError
from dynamics.traces.foreign.json_lines import iter_json_lines
from dynamics.traces.foreign.log import CHUNK_ROWS

Chunk = dict[str, pa.Array]
"""Some rows of a file, as arrays by the file's own column names."""

_BLOCK_BYTES = 2**22
_LOOK_AHEAD = 1000
_ESCAPED = r"^'('*[=+\-@\t\r])"
_NOT_CONVERTED = re.compile(
    r"(?s)In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to \w+: (.*)"
)


def separator_of(path: Path) -> str:
    """What separates the cells of a CSV file: a tab if its name ends in .tsv."""
    return "\t" if path.suffix == ".tsv" else ","


def csv_header(path: Path) -> list[str]:
    """Names of the columns of a CSV file with a header, in UTF-8.

    Args:
        path: The file.

    Returns:
        The names, as they stand in its first line.

    Raises:
        TraceError: If it has no first line, that is not text in UTF-8, or two names are the same.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_BLOCK_BYTES).decode("utf-8-sig")
        header = next(csv.reader([line], delimiter=separator_of(path)), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}, line 1 is not a header of CSV in UTF-8: {error}.") from None
    if not header:
        raise TraceError(f"{path} is empty: expected a first line with the names of columns.")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise TraceError(f"{path} has two columns called {twice[0]!r}. Rename one of them.")
    return header


def csv_chunks(path: Path, numbers: Sequence[str], texts: Sequence[str]) -> Iterator[Chunk]:
    """Rows of a CSV file.

    An empty cell is a missing value; `nan` and `inf` are values that were not finite. Text that
    begins with `'` before a sign that starts a formula loses it: an export has put it there.

    Args:
        path: The file.
        numbers: Columns to read as numbers.
        texts: Columns to read as text.

    Yields:
        Chunks of at most some 4 MB.

    Raises:
        TraceError: If a line has too few or many cells, or a cell is not a number where one is
            needed; the message names the row.
    """
    types = dict.fromkeys(numbers, pa.float64()) | dict.fromkeys(texts, pa.string())
    try:
        reader = pyarrow.csv.open_csv(
            path,
            pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            pyarrow.csv.ParseOptions(delimiter=separator_of(path), newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=["", "NULL", "null"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            chunk = dict(zip(batch.schema.names, batch.columns, strict=True))
            for name in texts:
                chunk[name] = pa.compute.replace_substring_regex(chunk[name], _ESCAPED, r"\1")
            yield chunk
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {_explained(str(error), csv_header(path))}") from None


def _explained(message: str, names: list[str]) -> str:
    found = _NOT_CONVERTED.fullmatch(message)
    if found is None:
        return message.removeprefix("CSV parse error: ")
    column, row, problem = found.groups()
    problem = problem.replace("invalid value", "expected a number, but got")
    return f"{f'row {row}, ' if row else ''}column `{names[int(column)]}`: {problem}."


def parquet_header(path: Path) -> list[str]:
    """Names of the columns of a Parquet file.

    Args:
        path: The file.

    Returns:
        The names.

    Raises:
        TraceError: If it is not a Parquet file.
    """
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceError(f"{path} is not a Parquet file: {error}.") from None


def parquet_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    """Rows of a Parquet file.

    Args:
        path: The file.
        columns: Columns to read.

    Yields:
        Chunks of at most CHUNK_ROWS rows.

    Raises:
        TraceError: If the file is damaged.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(CHUNK_ROWS, columns=list(columns)):
                yield dict(zip(batch.schema.names, batch.columns, strict=True))
    except (pa.ArrowInvalid, OSError) as error:
        raise TraceError(f"{path} is not readable as Parquet: {error}.") from None


def json_header(path: Path) -> list[str]:
    """Names in the first thousand lines of a file of JSON objects.

    Args:
        path: The file.

    Returns:
        The names, in order of appearance.

    Raises:
        TraceError: If the file holds no object, or one of those lines is not one.
    """
    header: dict[str, None] = {}
    for count, (_, record) in enumerate(iter_json_lines(path)):
        header.update(dict.fromkeys(record))
        if count == _LOOK_AHEAD:
            break
    if not header:
        raise TraceError(f"{path} is empty: expected one JSON object a line.")
    return list(header)


def json_chunks(
    path: Path, columns: Sequence[str], ignored: Collection[str], late: list[str]
) -> Iterator[Chunk]:
    """Rows of a file of flat JSON objects; a name that a line lacks is missing there.

    Args:
        path: The file.
        columns: Names to read.
        ignored: Names that need not be told of.
        late: Gathers other names, as they turn up.

    Yields:
        Chunks of at most CHUNK_ROWS rows.

    Raises:
        TraceError: If a line is not an object, or values of a name are not of one kind.
    """
    known = {*columns, *ignored}
    rows: dict[str, list[object]] = {name: [] for name in columns}
    first = n = 0
    for number, record in iter_json_lines(path):
        first, n = first or number, n + 1
        for name in columns:
            rows[name].append(record.get(name))
        if new := [name for name in record if name not in known]:
            known.update(new)
            late.extend(new)
        if n == CHUNK_ROWS:
            yield _arrays(rows, path, first)
            rows, first, n = {name: [] for name in columns}, 0, 0
    if n:
        yield _arrays(rows, path, first)


def _arrays(rows: dict[str, list[object]], path: Path, first: int) -> Chunk:
    return {name: _array(name, values, path, first) for name, values in rows.items()}


def _array(name: str, values: list[object], path: Path, first: int) -> pa.Array:
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {int, float, bool} and len(kinds) > 1:
        values = [None if v is None else float(v) for v in values]  # type: ignore[arg-type]
    elif name_kinds := kinds - {int, float, bool, str}:
        kind = sorted(k.__name__ for k in name_kinds)[0]
        at = first + next(i for i, v in enumerate(values) if type(v) in name_kinds)
        raise TraceError(
            f"{path}, near line {at}: {name!r} should be a number or text, but is a {kind}."
        )
    elif str in kinds:
        values = [None if v is None else str(v) for v in values]
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, UnicodeEncodeError, OverflowError) as error:
        raise TraceError(
            f"{path}, after line {first}: {name!r} does not convert: {error}."
        ) from None
