"""Where an import gathers rows until all of them are known to be good: temporary Parquet files.

A log may come in any order and in several files; a trace is written in order of epochs. DuckDB
sorts what was gathered, in the memory it is given and otherwise on disk.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dynamics.traces.errors import TraceError
from dynamics.traces.foreign.ids import number_samples
from dynamics.traces.foreign.log import CHUNK_ROWS, ROSTER_VALUES
from dynamics.traces.foreign.values import as_stored
from dynamics.traces.rows import Columns
from dynamics.traces.schema import TABLES

MEMORY_LIMIT = "1GB"
"""What DuckDB may use before it goes to disk."""

_FILES = "read_parquet(?, union_by_name = true)"


class Stage:
    """Rows of all tables, typed as they will be stored.

    Args:
        folder: Empty folder for temporary files.
        ids_are_text: Whether samples are named by text, see `number_samples`.
    """

    def __init__(self, folder: Path, *, ids_are_text: bool) -> None:
        self._folder = folder
        self._ids_are_text = ids_are_text
        self._files: dict[str, list[str]] = {name: [] for name in TABLES}
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._n_rows = 0
        import duckdb  # those who import nothing need not wait for it

        self._connection = duckdb.connect()
        for setting, value in (
            ("threads", 2),
            ("memory_limit", MEMORY_LIMIT),
            ("temp_directory", str(folder / "spill")),
            ("preserve_insertion_order", False),
        ):
            self._connection.execute(f"SET {setting} = ?", [value])

    def close(self) -> None:
        """Let go of files and memory."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        self._connection.close()

    def add(self, table: str, columns: Columns, *, where: str, first_row: int) -> int:
        """Take rows.

        Args:
            table: Name of their table.
            columns: Arrays of one length; those of `samples` may hold columns of `roster` too.
            where: The source, for messages.
            first_row: Number of the first row in it, from 1.

        Returns:
            How many rows there were.

        Raises:
            TextIds: If samples turn out to be named by text.
            TraceError: If a value is not what its column needs.
        """
        arrays = {name: _as_array(name, values, where) for name, values in columns.items()}
        typed: dict[str, pa.Array] = {}
        if "sample_id" in arrays:
            named = as_named(arrays.pop("sample_id"), where, first_row)
            as_text = self._ids_are_text
            typed["sample_id"], names = number_samples(named, as_text=as_text, where=where)
            typed |= {"key": names} if as_text else {}
        spec = TABLES[table].schema([n for n in arrays if n not in ROSTER_VALUES])
        fields = {field.name: field for field in (*TABLES["roster"].schema(), *spec)}
        for name, values in arrays.items():
            if name != "key" or not self._ids_are_text:
                typed[name] = as_stored(values, fields[name], where, first_row)
        if "correct" not in typed and table == "samples" and {"predicted", "label"} <= {*typed}:
            typed["correct"] = pc.equal(typed["predicted"], typed["label"]).cast(pa.int8())
        n = len(next(iter(typed.values())))
        typed["row"] = pa.array(range(self._n_rows, self._n_rows + n), pa.int64())
        self._n_rows += n
        self._write(table, pa.table(typed))
        return n

    def _write(self, table: str, rows: pa.Table) -> None:
        writer = self._writers.get(table)
        if writer is None or writer.schema != rows.schema:
            if writer is not None:
                writer.close()
            path = str(self._folder / f"{table}-{len(self._files[table])}.parquet")
            self._files[table].append(path)
            writer = self._writers[table] = pq.ParquetWriter(path, rows.schema)
        writer.write_table(rows)

    def finish(self) -> None:
        """No more rows will come."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def ordered_samples(self) -> Iterator[pa.Table]:
        """Rows of `samples` by epoch and sample, in order of step within them.

        Where the log has no epochs, a sample's k-th row, in order of step if there are steps and
        otherwise of the log, is of epoch k − 1. Where it has no steps, the epoch stands in.

        Yields:
            Tables of some 65,536 rows.

        Raises:
            TraceError: If some rows have an epoch or step and others have none.
        """
        files = self._files["samples"]
        if not files:
            return
        present = self._columns_of(files)
        has_epoch, has_step = (self._wholly(files, name, present) for name in ("epoch", "step"))
        time = "step, row" if has_step else "row"
        turn = f"(row_number() OVER (PARTITION BY sample_id ORDER BY {time}) - 1)::INTEGER"
        kept = sorted(present - {"epoch", "step", "row", *ROSTER_VALUES})
        inner = [*map(_quoted, kept), "row", f"{'epoch' if has_epoch else turn} AS epoch"]
        outer = [*map(_quoted, kept), "epoch"]
        inner += ["step"] if has_step else []
        outer += ["step" if has_step else "greatest(epoch, 0)::BIGINT AS step"]
        yield from self._query(
            f"SELECT {', '.join(outer)} FROM (SELECT {', '.join(inner)} FROM {_FILES}) "  # noqa: S608
            f"ORDER BY epoch, sample_id, {time}",
            files,
        )

    def ordered(self, table: str) -> Iterator[pa.Table]:
        """Rows of `scalars` or `events` in order of step and then of the log.

        Args:
            table: Which.

        Yields:
            Tables of some 65,536 rows.
        """
        if self._files[table]:
            yield from self._query(
                f"SELECT * EXCLUDE (row) FROM {_FILES} ORDER BY step, row",  # noqa: S608
                self._files[table],
            )

    def roster(self) -> Iterator[pa.Table]:
        """One row per sample, in order of id: what the log says of it, missing where nothing.

        Yields:
            Tables of some 65,536 rows.

        Raises:
            TraceError: If the log contradicts itself about a sample.
        """
        files = self._files["samples"] + self._files["roster"]
        if not files:
            return
        known = [name for name in ROSTER_VALUES if name in self._columns_of(files)]
        bounds = [(f"min({_quoted(name)})", f"max({_quoted(name)})") for name in known]
        grouped = f"FROM {_FILES} GROUP BY sample_id"
        if known:
            both = ", ".join(f"{least}, {most}" for least, most in bounds)
            differ = " OR ".join(f"{least} <> {most}" for least, most in bounds)
            odd = self._fetch(
                f"SELECT sample_id, {both} {grouped} HAVING {differ} ORDER BY sample_id LIMIT 1",
                files,
            )
            if odd:
                raise TraceError(_contradiction(odd[0][0], known, odd[0][1:]))
        chosen = [f"{a} AS {_quoted(n)}" for n, (a, _) in zip(known, bounds, strict=True)]
        yield from self._query(
            f"SELECT {', '.join(['sample_id', *chosen])} {grouped} ORDER BY sample_id",
            files,
        )

    def _query(self, sql: str, files: list[str]) -> Iterator[pa.Table]:
        relation = self._connection.sql(sql, params=[files])
        reader: pa.RecordBatchReader = relation.to_arrow_reader(CHUNK_ROWS)
        for batch in reader:
            yield pa.Table.from_batches([batch])

    def _fetch(self, sql: str, files: list[str]) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, [files]).fetchall()

    def _columns_of(self, files: list[str]) -> set[str]:
        return {name for path in files for name in pq.read_schema(path).names}

    def _wholly(self, files: list[str], name: str, present: set[str]) -> bool:
        if name not in present:
            return False
        sql = f"SELECT count(*), count({name}) FROM {_FILES}"  # noqa: S608
        ((n, known),) = self._fetch(sql, files)
        if n != known:
            raise TraceError(
                f"{known:,} rows have a value of `{name}` and {n - known:,} have none. Sources "
                f"that are imported together must agree: all with `{name}`, or all without."
            )
        return True


def as_named(values: pa.Array, where: str, first_row: int) -> pa.Array:
    """How samples are named, with whole floating numbers taken for whole numbers.

    Args:
        values: Names as the log gives them.
        where: The source, for messages.
        first_row: Number of the first row, from 1, for messages.

    Returns:
        Whole numbers or text.

    Raises:
        TraceError: If a name is missing, or a number that is not whole.
    """
    if pa.types.is_floating(values.type):
        whole = pa.field("sample_id", pa.int64(), nullable=False)
        return as_stored(values, whole, where, first_row)
    if values.null_count:
        row = first_row + int(values.is_null().to_numpy(zero_copy_only=False).argmax())
        raise TraceError(f"{where}, row {row}: `sample_id` is missing, and every row needs it.")
    return values


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as_array(name: str, values: object, where: str) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    try:
        return values if isinstance(values, pa.Array) else pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise TraceError(f"{where}: the values of `{name}` are not of one kind: {error}.") from None


def _contradiction(sample_id: int, names: list[str], bounds: tuple[object, ...]) -> str:
    pairs = {n: (bounds[2 * i], bounds[2 * i + 1]) for i, n in enumerate(names)}
    name, (one, other) = next((n, p) for n, p in pairs.items() if p[0] != p[1])
    if name == "key":
        return (
            f"Two samples have the same id {sample_id}: {one!r} and {other!r}. Name samples by "
            "whole numbers instead."
        )
    return (
        f"Sample {sample_id} has `{name}` {one} in one row and {other} in another. A trace holds "
        f"it once per sample; leave it away with columns={{'{name}': ''}} (--column {name}=) if it "
        "is not a property of the sample."
    )
