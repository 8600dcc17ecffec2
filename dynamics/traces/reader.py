"""Reads runs.

Rows that a resumed run has replaced are left out, so each (epoch, sample, occurrence) is read once.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.traces.cost import cost_table
from dynamics.traces.errors import CorruptTraceError, TraceError
from dynamics.traces.layout import RUN_FILE, read_json
from dynamics.traces.parts import (
    Part,
    PartGoneError,
    Verified,
    any_within,
    list_parts,
    open_part,
    read_part,
)
from dynamics.traces.query import MEMORY_LIMIT, query_runs
from dynamics.traces.resume import Attempt, fences_over, read_attempts
from dynamics.traces.row_groups import THREADS, Footer, Selection, block_columns, read_footers
from dynamics.traces.scan import check_columns, complete, scan, scan_epochs
from dynamics.traces.schema import BLOCK_PREFIX, TABLES, Table, check_schema_version
from dynamics.traces.vectors import VectorFile, list_vectors, read_vector


class Run:
    """One recorded run. Opening it reads `run.json` and lists the parts; rows are read on demand.

    Args:
        path: Folder of the run.

    Attributes:
        path: Folder of the run.
        location: Where the run was opened: that folder, or the URL of a run on an object store.
        name: Name of that folder.
        info: Content of `run.json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)
        self.name = path.resolve().name
        self.info: dict[str, Any] = read_json(path / RUN_FILE)
        check_schema_version(self.info.get("schema_version"), str(path / RUN_FILE))
        self._verified: Verified = {}
        self._footers: dict[Part, Footer] = {}

    def __repr__(self) -> str:
        return f"Run({self.location!r})"

    @property
    def config(self) -> dict[str, Any]:
        """Configuration that the recorder was given; empty if none."""
        config = self.info.get("config")
        return dict(config) if isinstance(config, dict) else {}

    @cached_property
    def attempts(self) -> list[Attempt]:
        """Every start of the run, oldest first."""
        return read_attempts(self.path)

    @property
    def ended_cleanly(self) -> bool:
        """Whether every rank of the latest attempt closed its recorder after training's end."""
        if not self.attempts:
            return False
        last = self.attempts[-1]
        ends = (
            self.path / "end" / f"attempt-{last.attempt:04d}-rank-{rank:05d}.json"
            for rank in range(last.world_size)
        )
        return all(end.is_file() and not end.is_symlink() for end in ends)

    def samples(
        self,
        *,
        sample_id: int | np.integer | Iterable[int] | None = None,
        columns: Sequence[str] | None = None,
        epochs: Iterable[int] | None = None,
        repeats: bool = False,
    ) -> pd.DataFrame:
        """Per-sample rows, one per (epoch, sample), ordered by epoch and sample.

        Only row groups that may hold the rows wanted are read: the trajectory of one sample in
        102 M rows takes 0.1 s, after the first read of a run, which hashes every part (0.4 s a GB).

        Args:
            sample_id: Keep these samples only; all by default.
            columns: Columns to read beside `epoch` and `sample_id`; all by default.
            epochs: Keep these epochs only; all by default.
            repeats: Also return a sample's second and later rows of an epoch.

        Returns:
            Table with columns as in docs/trace-format.md. Missing values are NaN, and an integer
            column with missing values is returned as float.

        Raises:
            SchemaError: If a column is not one of the trace.
        """
        ids = [int(sample_id)] if isinstance(sample_id, int | np.integer) else sample_id
        kept = {"sample_ids": None if ids is None else list(ids)}
        kept |= {"epochs": None if epochs is None else list(epochs)}
        tables = _read_again_if_compacted(
            lambda: list(self.sample_tables(columns, repeats=repeats, **kept))
        )
        keys = ["epoch", "sample_id", "occurrence"]
        rows = pa.concat_tables(tables, promote_options="default").sort_by(
            [(key, "ascending") for key in keys]
        )
        wanted = None if columns is None else [*dict.fromkeys(["epoch", "sample_id", *columns])]
        return (rows if wanted is None else rows.select(wanted)).to_pandas()

    def iter_samples(
        self, columns: Sequence[str] | None = None, *, repeats: bool = False
    ) -> Iterator[pd.DataFrame]:
        """Per-sample rows about a million at a time, for passes over traces larger than memory.

        Args:
            columns: Columns to read beside the keys and `step`; all by default.
            repeats: Also return a sample's second and later rows of an epoch.

        Yields:
            Tables whose rows, for each sample, are in the order in which they were recorded.

        Raises:
            TraceError: If the run is compacted while it is read; open it again.
        """
        tables = self.sample_tables(columns, repeats=repeats)
        names = next(tables).column_names
        for table in tables:
            yield complete(table, names).to_pandas()

    def scalars(self, name: str | None = None) -> pd.DataFrame:
        """Values measured on the network: Fisher traces, accuracies and others.

        Args:
            name: Keep values of this name only; all by default.

        Returns:
            Columns `step, epoch, name, block, value, stderr, n, estimator, label_source, mode`.
        """
        table = self.read_rows(TABLES["scalars"])
        if name is not None:
            table = table.filter(pc.field("name") == name)
        return table.to_pandas()

    def cost(self) -> pd.DataFrame:
        """What recording took of the time, where the recorder was given a `budget`.

        Returns:
            One row for each epoch and block (`observe`, and each probe with passes of its own),
            cumulative within an attempt: `epoch, block, seconds, wall_seconds, share`, the share
            of the wall time. Empty where nothing was timed.
        """
        return cost_table(self.scalars())

    def events(self) -> pd.DataFrame:
        """What happened, in order: `step, epoch, name, subject, detail`."""
        return self.read_rows(TABLES["events"]).to_pandas()

    def roster(self) -> pd.DataFrame:
        """One row per sample, index `sample_id`: `label`, `true_label`, `group`, `key`.

        `key` is what the sample is called outside the trace, and there if any sample has one.
        """
        table = self.read_rows(TABLES["roster"]).to_pandas()
        if table["key"].isna().all():
            table = table.drop(columns="key")
        return table.drop_duplicates("sample_id", keep="first").set_index("sample_id").sort_index()

    def vectors(self) -> pd.DataFrame:
        """Vectors of the run, in order: `name, step, epoch`. Read one with `vector`."""
        files = self._live_vectors()
        rows = [{"name": f.name, "step": f.step, "epoch": f.epoch} for f in files]
        return pd.DataFrame(rows, columns=["name", "step", "epoch"])

    def vector(self, name: str, *, epoch: int | None = None) -> dict[str, np.ndarray]:
        """A vector over the parameters, such as the diagonal of the Fisher.

        Args:
            name: Which, such as fisher_diagonal.
            epoch: The last one taken in or after this epoch; the last of all by default.

        Returns:
            One array for each parameter, shaped like it.

        Raises:
            TraceError: If the run has no such vector.
            CorruptTraceError: If its file is damaged.
        """
        files = self._live_vectors()
        wanted = [f for f in files if f.name == name and epoch in (None, f.epoch)]
        if not wanted:
            there = ", ".join(f"{f.name} of epoch {f.epoch}" for f in files) or "none at all"
            raise TraceError(
                f"{self.path} has no vector {name!r}{'' if epoch is None else f' of epoch {epoch}'}"
                f"; it has {there}. Record it with FisherTrace(..., diagonal=every(epochs=k))."
            )
        return self._read_vector(wanted[-1])

    def _live_vectors(self) -> list[VectorFile]:
        return [
            file
            for file in self._list_vectors()
            if all(
                (file.step, file.epoch) < fence
                for fence in fences_over(file.attempt, self.attempts)
            )
        ]

    def _list_vectors(self) -> list[VectorFile]:
        return list_vectors(self.path)

    def _read_vector(self, file: VectorFile) -> dict[str, np.ndarray]:
        return read_vector(file)

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        tables: Mapping[str, pd.DataFrame] | None = None,
        memory_limit: int = MEMORY_LIMIT,
        threads: int | None = None,
    ) -> pd.DataFrame:
        """Answer a SELECT over `samples`, `scalars`, `events` and `roster`, by DuckDB.

        Rows that a resumed run has replaced are not there. `samples` also has `rank` (-1 once
        compacted) and `attempt`, and a sample's second rows of an epoch: `occurrence` above 0.

        Args:
            query: One SELECT in DuckDB's dialect; `"grad_norm/0"` needs its quotes.
            parameters: Values for `?` or `$name` in the query.
            tables: Further tables by name.
            memory_limit: Bytes that DuckDB may use; past them it writes to a temporary folder.
            threads: Threads; as many as there are cores by default.

        Returns:
            The answer.

        Raises:
            ValueError: If the query is not one SELECT, or DuckDB refuses it.
            MemoryError: If it needs more than the limit and cannot do it by parts.
            CorruptTraceError: If a part is damaged: every part is hashed before DuckDB reads it.
        """
        return query_runs(
            query,
            {None: self},
            parameters=parameters,
            tables=tables,
            memory_limit=memory_limit,
            threads=threads,
        )

    def parts(self, table: str) -> list[Part]:
        """Files of a table that count: buckets by sample, then parts as they were recorded."""
        return list_parts(self.path, table)

    def column_names(self, table: str = "samples") -> list[str]:
        """Columns of a table that any of its parts holds."""
        names = dict.fromkeys(TABLES[table].column_names)
        if table == "samples":  # the only one with columns of its own
            names |= dict.fromkeys(block_columns(self.footers()))
        return list(names)

    def footers(self, sample_ids: np.ndarray | None = None) -> list[Footer]:
        """What the footers of the parts of `samples` say; a part's first time, it is hashed.

        Args:
            sample_ids: If given, ascending, buckets that hold none of these samples are left out.

        Returns:
            The footers, in the order of `parts`.
        """
        parts = [
            part
            for part in self.parts("samples")
            if sample_ids is None
            or part.sample_range is None
            or any_within(sample_ids, *part.sample_range)
        ]
        for part in parts:
            self._check_attempt(part)
        return self.footers_of(parts)

    def footers_of(self, parts: Sequence[Part], *, threads: int = THREADS) -> list[Footer]:
        """Footers of some parts of `samples`; a part's first time, it is hashed.

        Args:
            parts: Parts as `parts` has listed them.
            threads: Parts that are hashed at a time.

        Returns:
            The footers, in order.

        Raises:
            CorruptTraceError: If a part is damaged.
            PartGoneError: If a part is not there any more.
        """
        return read_footers(parts, self._footers, self._verified, threads=threads)

    def adopt(self, footers: Iterable[Footer]) -> None:
        """Take footers of parts that another process has hashed, so that this one need not."""
        self._footers |= {footer.part: footer for footer in footers}

    def sample_tables(
        self,
        columns: Sequence[str] | None,
        *,
        repeats: bool,
        sample_ids: list[int] | None = None,
        epochs: list[int] | None = None,
    ) -> Iterator[pa.Table]:
        """Rows of `samples` that count, as Arrow tables, about a million at a time.

        Args:
            columns: Columns to read beside the keys and `step`; all by default.
            repeats: Also return a sample's second and later rows of an epoch.
            sample_ids: Keep these samples only; all by default.
            epochs: Keep these epochs only; all by default.

        Yields:
            First an empty table that has the columns, then the rows, with those of the columns that
            hold any value in their part.

        Raises:
            SchemaError: If a column is not one of the trace.
        """
        check_columns(columns or ())
        keys = ["step", "epoch", "sample_id", "occurrence"]
        wanted = None if columns is None else [*dict.fromkeys([*keys, *columns])]
        selection = Selection(_ascending(epochs), _ascending(sample_ids), is_first=not repeats)
        footers, attempts = self.footers(selection.sample_ids), self.attempts
        names = wanted or [*TABLES["samples"].column_names, *block_columns(footers)]
        yield _empty(TABLES["samples"], names)
        if any(attempt.world_size > 1 for attempt in attempts):
            yield from (rows for _, rows in scan_epochs(footers, attempts, names, selection))
        else:
            yield from scan(footers, attempts, wanted, selection)

    def read_rows(self, spec: Table) -> pa.Table:
        """All rows of a table that count, in the order of recording; for the small tables."""
        tables = _read_again_if_compacted(
            lambda: [self._live_rows(part, spec) for part in self.parts(spec.name)]
        )
        table = pa.concat_tables([spec.schema().empty_table(), *tables], promote_options="default")
        if "step" not in spec.column_names:
            return table
        return table.sort_by([("step", "ascending"), ("epoch", "ascending")])

    def _live_rows(self, part: Part, spec: Table) -> pa.Table:
        self._check_attempt(part)
        table = read_part(open_part(part, spec.name, verified=self._verified), spec, part.path)
        step, epoch = pc.field("step"), pc.field("epoch")
        for from_step, from_epoch in fences_over(part.name.attempt, self.attempts):
            if "step" in spec.column_names:
                at_fence = (step == from_step) & (epoch < from_epoch)
                table = table.filter((step < from_step) | at_fence)
        return table

    def _check_attempt(self, part: Part) -> None:
        """Without the record of its attempt, nobody knows which older rows a part replaces."""
        if part.name.attempt not in {attempt.attempt for attempt in self.attempts}:
            self.__dict__.pop("attempts", None)  # the run may have been resumed since
        if part.name.attempt not in {attempt.attempt for attempt in self.attempts}:
            raise CorruptTraceError(
                f"{self.path} holds {part.path.name}, but no record of attempt "
                f"{part.name.attempt}, which says where training restarted. Restore attempts/ from "
                f"a copy, or let `dynamics repair {self.path}` rebuild it as far as it can be."
            )


def _read_again_if_compacted(read: Callable[[], list[pa.Table]]) -> list[pa.Table]:
    for _ in range(3):
        with contextlib.suppress(PartGoneError):
            return read()
    return read()


def _ascending(values: Iterable[int] | None) -> np.ndarray | None:
    return None if values is None else np.unique(np.array([*values], dtype=np.int64))


def _empty(spec: Table, columns: Sequence[str]) -> pa.Table:
    blocks = [column for column in columns if column.startswith(BLOCK_PREFIX)]
    return spec.schema(blocks).empty_table().select(columns)
