"""Plain tables with named columns: which table of a trace they are, and how their rows go in it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.traces.errors import TraceError
from dynamics.traces.foreign.log import ROSTER_VALUES, VALUES, Log, Options
from dynamics.traces.foreign.table_files import (
    Chunk,
    csv_chunks,
    csv_header,
    json_chunks,
    json_header,
    parquet_chunks,
    parquet_header,
)
from dynamics.traces.foreign.values import as_stored
from dynamics.traces.rows import Columns
from dynamics.traces.schema import BLOCK_PREFIX, TABLES

_TEXTS = {c.name for table in TABLES.values() for c in table.columns if c.type == pa.string()}
_AS_TEXT = {*_TEXTS, "sample_id", "correct"}  # ids may be text, and truth may be `true`
_TIME = {"epoch", "step"}


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows of one table become rows of a trace.

    Attributes:
        table: `samples`, `roster`, `scalars`, `events`, or `wide`: one scalar a column.
        columns: Foreign column of each trace column; in a wide table, of each scalar.
        steps_per_epoch: Steps of an epoch, where the table has steps and no epochs.
        path: The file, for messages.
    """

    table: str
    columns: dict[str, str]
    steps_per_epoch: int | None
    path: Path

    def rows(self, chunks: Iterable[Chunk]) -> Iterator[tuple[str, Columns]]:
        """Make rows of the trace.

        Args:
            chunks: The file's rows.

        Yields:
            Names of tables and rows for them.
        """
        first = 1
        for chunk in chunks:
            columns = {name: chunk[source] for name, source in self.columns.items()}
            n = len(next(iter(columns.values())))
            if self.table != "roster":
                columns |= self._time(columns, first)
            if self.table == "scalars" and "block" not in columns:
                columns["block"] = pa.repeat("total", n)
            if self.table == "wide":
                yield from self._wide(columns, first)
            else:
                yield self.table, columns
            first += n

    def _time(self, columns: Chunk, first: int) -> Chunk:
        """Epochs and steps, made from each other where one was not given."""
        fields, where = TABLES["scalars"].schema(), str(self.path)
        time = {
            name: as_stored(columns[name], fields.field(name), where, first)
            for name in sorted(_TIME & {*columns})
        }
        if "epoch" not in time and self.steps_per_epoch:
            time["epoch"] = pc.divide(time["step"], self.steps_per_epoch)
        if "step" not in time and self.table != "samples":  # those are given steps when sorted
            time["step"] = pc.max_element_wise(time["epoch"].cast(pa.int64()), 0)
        return time

    def _wide(self, columns: Chunk, first: int) -> Iterator[tuple[str, Columns]]:
        for full in sorted({*columns} - _TIME):
            name, _, block = full.partition(":")
            value = TABLES["scalars"].schema().field("value").with_name(full)
            values = as_stored(columns[full], value, str(self.path), first)
            known = values.is_valid()
            n = pc.sum(known).as_py() or 0
            texts = {"name": pa.repeat(name, n), "block": pa.repeat(block or "total", n)}
            time = {key: columns[key].filter(known) for key in sorted(_TIME)}
            yield "scalars", {**time, **texts, "value": values.filter(known)}


def open_csv(path: Path, options: Options) -> Log:
    """Open a CSV file, see `csv_chunks`."""
    return _open("csv", path, csv_header(path), options, _read_csv)


def open_parquet(path: Path, options: Options) -> Log:
    """Open a Parquet file of numbers and text."""
    return _open("parquet", path, parquet_header(path), options, _read_parquet)


def open_json_lines(path: Path, options: Options) -> Log:
    """Open a file of flat JSON objects, one a line."""
    return _open("jsonl", path, json_header(path), options, _read_json_lines)


def _read_csv(plan: Plan, log: Log) -> Iterator[Chunk]:
    is_text = {source: name in _AS_TEXT for name, source in plan.columns.items()}
    texts = [source for source, text in is_text.items() if text and plan.table != "wide"]
    return csv_chunks(plan.path, [s for s in is_text if s not in texts], texts)


def _read_parquet(plan: Plan, log: Log) -> Iterator[Chunk]:
    return parquet_chunks(plan.path, [*dict.fromkeys(plan.columns.values())])


def _read_json_lines(plan: Plan, log: Log) -> Iterator[Chunk]:
    wanted = [*dict.fromkeys(plan.columns.values())]
    return json_chunks(plan.path, wanted, {*log.ignored}, log.ignored)


def _open(
    kind: str,
    path: Path,
    header: list[str],
    options: Options,
    read: Callable[[Plan, Log], Iterator[Chunk]],
) -> Log:
    plan = _plan(path, header, options)
    ignored = [name for name in header if name not in plan.columns.values()]
    log = Log(kind, [path], iter(()), dict(plan.columns), ignored)
    if plan.table == "samples" and {"predicted", "label"} <= {*plan.columns}:
        log.mapped.setdefault("correct", "predicted = label")
    if not _TIME & {*plan.columns} and plan.table == "samples":
        log.notes.append("No epochs: a sample's k-th row is taken as its epoch k − 1.")
    if options.steps_per_epoch and "epoch" in plan.columns:
        log.notes.append("It has epochs of its own, so the steps of an epoch were not needed.")
    log.chunks = plan.rows(read(plan, log))
    return log


def _plan(path: Path, header: list[str], options: Options) -> Plan:
    wanted = options.columns
    absent = {source for source in wanted.values() if source and source not in header}
    if absent and not options.one_of_several:
        raise TraceError(f"{path} has no column {listed(sorted(absent))}; it has {listed(header)}.")
    wanted = {name: source for name, source in wanted.items() if source not in absent}
    chosen = {name: source for name, source in wanted.items() if source}
    free = [n for n in header if n not in wanted and n not in wanted.values()]
    table = _table_of({*chosen, *free}, path, header)
    chosen |= {name: name for name in free if _belongs(name, table)}
    if unknown := sorted(name for name in chosen if not _belongs(name, table)):
        known = ["sample_id", "epoch", "step", "status", *VALUES, *ROSTER_VALUES]
        known = known if table == "samples" else TABLES[table].column_names
        raise TraceError(
            f"The trace's `{table}` has no column {listed(unknown)} to map a column of {path} to. "
            f"It has {listed(known)}."
        )
    if table == "samples" and not any(n in VALUES or n.startswith(BLOCK_PREFIX) for n in chosen):
        table = "roster"
        chosen = {n: s for n, s in chosen.items() if n in ("sample_id", *ROSTER_VALUES)}
    plan = Plan(table, chosen, options.steps_per_epoch, path)
    _check(plan, header)
    return plan


def _table_of(names: set[str], path: Path, header: list[str]) -> str:
    if "sample_id" in names:
        return "samples"
    if "name" in names and names & {"value", "subject", "detail"}:
        return "scalars" if "value" in names else "events"
    if names & _TIME:
        return "wide"
    raise TraceError(
        f"{path} has the columns {listed(header)}. None of them is called `sample_id` (a table of "
        "samples), `name` and `value` (of scalars), or `epoch` or `step` (one scalar a column). "
        "Say which is which: --column sample_id=<column>, or columns={'sample_id': '<column>'}."
    )


def _belongs(name: str, table: str) -> bool:
    if table == "wide":
        return True
    if table != "samples":
        return name in TABLES[table].column_names
    is_block = name.startswith(BLOCK_PREFIX) and len(name) > len(BLOCK_PREFIX)
    return is_block or name in ("sample_id", "epoch", "step", "status", *VALUES, *ROSTER_VALUES)


def _check(plan: Plan, header: list[str]) -> None:
    if plan.table == "roster" and len(plan.columns) == 1:
        raise TraceError(
            f"{plan.path} has ids of samples and nothing about them: none of its columns "
            f"{listed(header)} is called {listed(VALUES)}. Map one: --column loss=<column>."
        )
    needed = {"scalars": {"name", "value"}, "events": {"name"}}.get(plan.table, set())
    if lacking := sorted(needed - {*plan.columns}):
        raise TraceError(f"{plan.path}: nothing is mapped to {listed(lacking)}.")
    if plan.table == "wide" and not {*plan.columns} - _TIME:
        raise TraceError(f"{plan.path} has no column of values beside {listed(plan.columns)}.")
    has_epoch = "epoch" in plan.columns or plan.steps_per_epoch
    if plan.table in ("scalars", "events", "wide") and not has_epoch:
        raise TraceError(
            f"{plan.path} numbers its values by `step` and has no `epoch`. Say how many of its "
            "steps make an epoch: --steps-per-epoch K, with 1 if its steps are epochs."
        )


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message."""
    return ", ".join(f"`{name}`" for name in names)
