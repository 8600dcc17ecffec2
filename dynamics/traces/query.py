"""SQL over runs: what `Run.sql` and `Study.sql` do.

DuckDB checks no hash and no page checksum, so every part is hashed before DuckDB may open it. It
may then read these files and nothing else: no other file, no network, no extension, and only a
SELECT is run, for COPY could write over a part.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from dynamics.traces.occurrence import rank_of
from dynamics.traces.resume import NEVER, sample_fence
from dynamics.traces.row_groups import Footer
from dynamics.traces.schema import SAMPLES, TABLES, Status

if TYPE_CHECKING:
    import duckdb

    from dynamics.traces.reader import Run

MEMORY_LIMIT = 10**9
_SQL_TYPES = {
    pa.int8(): "TINYINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
}


def query_runs(
    query: str,
    runs: Mapping[str | None, "Run"],
    levels: pd.DataFrame | None = None,
    *,
    parameters: Sequence[Any] | Mapping[str, Any] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    threads: int | None = None,
) -> pd.DataFrame:
    """Answer a SELECT over the tables of one run, or of several at once.

    Args:
        query: One SELECT in DuckDB's dialect, over `samples`, `scalars`, `events` and `roster`.
        runs: Runs by name; {None: run} for one run, whose tables then have no column `run`.
        levels: One row per run, column `run` and one column per factor; joined to every table, and
            a table `runs` of its own.
        parameters: Values for `?` or `$name` in the query.
        tables: Further tables by name.
        memory_limit: Bytes that DuckDB may use; past them it writes to a temporary folder.
        threads: Threads; as many as there are cores by default.

    Returns:
        The answer.

    Raises:
        ValueError: If the query is not one SELECT, or DuckDB refuses it.
        MemoryError: If it needs more than the limit and cannot do it by parts.
    """
    import duckdb  # a quarter of a second, which those who write no SQL need not wait

    footers = {name: run.footers() for name, run in runs.items()}
    paths = [str(f.part.path.resolve()) for found in footers.values() for f in found]
    with _connect(paths, memory_limit, threads) as connection:
        constants = _constants(levels)
        union = [
            branch
            for name, run in runs.items()
            for branch in _sample_queries(run, footers[name], constants.get(name, ""))
        ]
        nothing = _no_rows(next(iter(constants.values()), ""))
        connection.execute(
            "CREATE VIEW samples AS " + "\nUNION ALL BY NAME ".join([nothing, *union])
        )
        for name in ("scalars", "events", "roster"):
            connection.register(name, _small_table(name, runs, levels))
        if levels is not None:
            connection.register("runs", pa.Table.from_pandas(levels, preserve_index=False))
        for name, table in (tables or {}).items():
            connection.register(name, pa.Table.from_pandas(table, preserve_index=False))
        try:
            statements = connection.extract_statements(query)
            if [s.type for s in statements] != [duckdb.StatementType.SELECT]:
                raise ValueError(
                    "`sql` answers one SELECT at a time and changes nothing, but the query has "
                    f"{', '.join(s.type.name for s in statements) or 'no statement'}."
                )
            return connection.execute(statements[0], parameters).df()
        except duckdb.OutOfMemoryException as error:
            raise MemoryError(f"memory_limit of {memory_limit:,} bytes: {error}") from None
        except duckdb.Error as error:
            raise ValueError(f"{error}\n{_describe_tables(connection)}") from None


@contextmanager
def _connect(
    paths: Sequence[str], memory_limit: int, threads: int | None
) -> Iterator["duckdb.DuckDBPyConnection"]:
    """A DuckDB in memory that can open these files only, with a temporary folder of its own.

    Yields:
        The connection.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="dynamics-sql-") as folder:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "threads": threads or os.cpu_count() or 1,
            "memory_limit": f"{memory_limit}B",
            "temp_directory": folder,
            "extension_directory": folder,
            "secret_directory": folder,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "allow_persistent_secrets": False,
            "python_enable_replacements": False,  # variables of the caller are not tables
        }
        with duckdb.connect(":memory:", config=settings) as connection:
            connection.execute("SET allowed_paths = ?", [list(paths)])
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection


def _sample_queries(run: "Run", footers: Sequence[Footer], constants: str) -> list[str]:
    """SELECTs whose union is the rows of a run that count, one for each rank and attempt."""
    paths: dict[tuple[int, int], list[Path]] = {}
    for footer in footers:
        key = rank_of(footer.part), footer.part.name.attempt
        paths.setdefault(key, []).append(footer.part.path.resolve())
    queries = []
    for (rank, attempt), files in paths.items():
        fence = sample_fence(attempt, run.attempts)
        listed = ", ".join(_text(str(path)) for path in files)
        live = f" WHERE step < {fence}" if fence < NEVER else ""
        queries.append(
            f"SELECT *, {rank}::INTEGER AS rank, {attempt}::INTEGER AS attempt{constants} "  # noqa: S608  # paths are quoted
            f"FROM read_parquet([{listed}], union_by_name = true){live}"
        )
    if queries and any(attempt.world_size > 1 for attempt in run.attempts):
        return [_number_occurrences(" UNION ALL BY NAME ".join(queries))]
    return queries


def _number_occurrences(query: str) -> str:
    """As `number_across_ranks`: a rank does not know what the others have seen."""
    number = "row_number() OVER (PARTITION BY epoch, sample_id ORDER BY step, rank, occurrence) - 1"
    numbered = f"SELECT * REPLACE (CAST({number} AS INTEGER) AS occurrence) FROM ({query})"  # noqa: S608
    bit = int(Status.REPEAT)
    return (
        f"SELECT * REPLACE (CASE WHEN occurrence > 0 THEN status | {bit} ELSE status & ~{bit} END "  # noqa: S608
        f"AS status) FROM ({numbered})"
    )


def _no_rows(constants: str) -> str:
    """Every column of `samples` and no row, so that the view has them whatever was recorded."""
    columns = [f"NULL::{_SQL_TYPES[c.type]} AS {c.name}" for c in SAMPLES.columns]
    columns += ["NULL::INTEGER AS rank", "NULL::INTEGER AS attempt"]
    return f"SELECT {', '.join(columns)}{constants} WHERE false"


def _constants(levels: pd.DataFrame | None) -> dict[str | None, str]:
    """By run, the end of a SELECT that adds its name and its level of each factor."""
    if levels is None:
        return {}
    kinds = {"i": "BIGINT", "u": "BIGINT", "f": "DOUBLE", "b": "BOOLEAN"}
    types = {name: kinds.get(levels[name].dtype.kind, "VARCHAR") for name in levels}

    def constant(name: str, value: Any) -> str:
        literal = "NULL" if pd.isna(value) else _text(str(value))
        return f", {literal}::{types[name]} AS {_quote(name)}"

    return {
        row["run"]: "".join(constant(str(name), value) for name, value in row.items())
        for row in levels.to_dict("records")
    }


def _small_table(
    name: str, runs: Mapping[str | None, "Run"], levels: pd.DataFrame | None
) -> pa.Table:
    """A table that is read whole: `scalars`, `events` or `roster`."""
    frames = []
    for run_name, run in runs.items():
        frame = run.roster().reset_index() if name == "roster" else getattr(run, name)()
        frames.append(frame if levels is None else frame.assign(run=run_name))
    rows = pd.concat(frames, ignore_index=True)
    if levels is not None:
        rows = rows.merge(levels, on="run", how="left")
    table = pa.Table.from_pandas(rows, preserve_index=False)
    for column in TABLES[name].columns:  # a column that is missing everywhere has its type too
        if column.name in table.column_names:
            at = table.schema.get_field_index(column.name)
            table = table.set_column(at, column.name, table[column.name].cast(column.type))
        else:
            missing = pa.nulls(table.num_rows, column.type)
            table = table.append_column(column.name, missing)
    return table


def factor_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Levels of factors as SQL can compare them, named so that no column of a table is hidden.

    Args:
        table: One row per run: `run`, and a column per factor.

    Returns:
        The same rows. Numbers stay numbers, anything else becomes text, JSON if it is no text yet;
        a factor called like a column of a table gets the prefix `factor_`.
    """
    taken = {column.lower() for spec in TABLES.values() for column in spec.column_names}
    taken |= {"run", "rank", "attempt"}
    result = table[["run"]].copy()
    for factor in [name for name in table if name != "run"]:
        name = f"factor_{factor}" if str(factor).lower() in taken else factor
        values = table[factor]
        is_plain = values.dtype.kind in "iufb"
        result[name] = values if is_plain else [_as_text(value) for value in values]
    return result


def _as_text(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _describe_tables(connection: "duckdb.DuckDBPyConnection") -> str:
    """The tables of a query and their columns, for the message of an error."""
    found = connection.execute(
        "SELECT table_name, string_agg(column_name, ', ' ORDER BY column_index) "
        "FROM duckdb_columns() WHERE NOT internal GROUP BY table_name ORDER BY table_name"
    ).fetchall()
    return "The tables are " + "; ".join(f"{name} ({columns})" for name, columns in found) + "."
