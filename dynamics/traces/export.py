"""Rows of a run for other tools: as they are stored, in files of formats that every tool reads."""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dynamics.traces.reader import Run
from dynamics.traces.rows import drop_non_finite, to_arrow
from dynamics.traces.schema import TABLES

_FORMULA = r"^('*[=+\-@\t\r])"
_BATCH_ROWS = 65_536


def iter_stored(run: Run, table: str) -> Iterator[pa.Table]:
    """Rows of a table of the trace, typed as they are stored, a part at a time.

    Args:
        run: The run.
        table: Name of the table. Of `samples`, repeats come too, and the `key` of each sample
            after its id where the run has keys.

    Yields:
        Tables of the same columns; the first has no rows.
    """
    if table != "samples":
        rows = {"scalars": run.scalars, "events": run.events}.get(
            table, lambda: run.roster().reset_index()
        )()
        names = [*rows]
        yield _stored(rows[:0], table, names)
        yield _stored(rows, table, names)
        return
    names, keys = run.column_names("samples"), run.roster().get("key")
    yield _with_keys(_stored(pd.DataFrame(columns=names), table, names), keys)
    for rows in run.iter_samples(repeats=True):
        yield _with_keys(_stored(rows, table, names), keys)


def iter_frame(frame: pd.DataFrame) -> Iterator[pa.Table]:
    """A frame with a named index as one table; NaN is missing.

    Args:
        frame: The frame.

    Yields:
        The table, the index as its first column.
    """
    yield pa.Table.from_pandas(frame.reset_index(), preserve_index=False)


def _stored(rows: pd.DataFrame, table: str, names: Sequence[str]) -> pa.Table:
    arrays = {name: rows[name].to_numpy() if name in rows else None for name in names}
    return drop_non_finite(to_arrow(TABLES[table], arrays))


def _with_keys(samples: pa.Table, keys: "pd.Series[str] | None") -> pa.Table:
    if keys is None:
        return samples
    named = keys.reindex(samples["sample_id"].to_numpy())
    column = pa.array(named.to_numpy(), pa.string(), from_pandas=True)
    return samples.add_column(samples.column_names.index("sample_id") + 1, "key", column)


def write_rows(tables: Iterable[pa.Table], out: Path) -> int:
    """Write rows as CSV, Parquet or JSON lines.

    Missing values are empty cells in CSV and null elsewhere. In CSV, text that a spreadsheet would
    run as a formula is put behind a `'`: text that begins with = + - @, a tab or a carriage return,
    or with `'` before one of these.

    Args:
        tables: Tables of the same columns.
        out: File to write, ending in .csv, .parquet or .jsonl; replaced when all is written.

    Returns:
        Number of rows.

    Raises:
        ValueError: If the ending is none of these.
    """
    if out.suffix not in _WRITERS:
        raise ValueError(
            f"{out} should end in {', '.join(_WRITERS)}: the ending says the format to write."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    try:
        n = _WRITERS[out.suffix](tables, temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return n


def _write_csv(tables: Iterable[pa.Table], path: Path) -> int:
    n, writer = 0, None
    with path.open("xb") as file:
        for table in tables:
            harmless = _without_formulas(table)
            writer = writer or pyarrow.csv.CSVWriter(file, harmless.schema)
            writer.write_table(harmless)
            n += table.num_rows
        if writer is not None:
            writer.close()
    return n


def _without_formulas(table: pa.Table) -> pa.Table:
    for at, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            safe = pc.replace_substring_regex(table[field.name], _FORMULA, r"'\1")
            table = table.set_column(at, field, safe)
    return table


def _write_parquet(tables: Iterable[pa.Table], path: Path) -> int:
    n, writer = 0, None
    for table in tables:
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=_BATCH_ROWS)
        n += table.num_rows
    if writer is not None:
        writer.close()
    return n


def _write_json_lines(tables: Iterable[pa.Table], path: Path) -> int:
    n = 0
    with path.open("x", encoding="utf-8") as file:
        for table in tables:
            for batch in table.to_batches(_BATCH_ROWS):
                file.writelines(
                    json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
                    for row in batch.to_pylist()
                )
            n += table.num_rows
    return n


_WRITERS: dict[str, Callable[[Iterable[pa.Table], Path], int]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".jsonl": _write_json_lines,
}
