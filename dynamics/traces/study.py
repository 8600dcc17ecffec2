"""Reads studies."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dynamics.traces.errors import SchemaError, TraceError
from dynamics.traces.layout import RUN_FILE, STUDY_FILE, read_json
from dynamics.traces.query import MEMORY_LIMIT, factor_columns, query_runs
from dynamics.traces.reader import Run
from dynamics.traces.schema import check_schema_version


class Study:
    """A folder of runs that differ in stated factors.

    Args:
        path: Folder that holds `study.json`.

    Attributes:
        path: Folder of the study.
        location: Where the study was opened: that folder, or its URL on an object store.
        info: Content of `study.json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)
        self.info: dict[str, Any] = read_json(path / STUDY_FILE)
        check_schema_version(self.info.get("schema_version"), str(path / STUDY_FILE))
        if not isinstance(self.info.get("factors"), dict):
            raise SchemaError(f"{path / STUDY_FILE} has no `factors` (factor name to levels).")

    def __repr__(self) -> str:
        return f"Study({self.location!r})"

    @property
    def name(self) -> str:
        """Name of the study, such as noise-ratio."""
        return str(self.info.get("name", self.path.name))

    @property
    def factors(self) -> dict[str, list[Any]]:
        """Levels of each factor."""
        return dict(self.info["factors"])

    @cached_property
    def runs(self) -> list[Run]:
        """The runs of the study, ordered by folder name."""
        return [Run(folder) for folder in self.folders()]

    def folders(self) -> list[Path]:
        """Folders of the runs, ordered by name.

        Returns:
            The folders.

        Raises:
            TraceError: If one is a symbolic link.
        """
        folders = sorted(path.parent for path in self.path.glob(f"*/{RUN_FILE}"))
        for folder in folders:
            if folder.is_symlink():
                raise TraceError(
                    f"{folder} is a symbolic link, and a study's runs are never read through one. "
                    "Put the folder of the run itself in its place."
                )
        return folders

    def table(self) -> pd.DataFrame:
        """One row per run: its name, its level of each factor, and whether it ended cleanly."""
        rows = []
        for run in self.runs:
            levels = {factor: run.config.get(factor) for factor in self.factors}
            rows.append({"run": run.name, **levels, "ended_cleanly": run.ended_cleanly})
        return pd.DataFrame(rows, columns=["run", *self.factors, "ended_cleanly"])

    def sql(
        self,
        query: str,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        memory_limit: int = MEMORY_LIMIT,
        threads: int | None = None,
    ) -> pd.DataFrame:
        """Answer a SELECT over all runs at once; tables as in `Run.sql`.

        Each table has a column `run` and one for each factor, and the table `runs` has these alone.
        A factor called like a column of a table is `factor_<name>`; a level that is neither number
        nor text is JSON.

        Args:
            query: One SELECT in DuckDB's dialect.
            parameters: Values for `?` or `$name` in the query.
            memory_limit: Bytes that DuckDB may use; past them it writes to a temporary folder.
            threads: Threads; as many as there are cores by default.

        Returns:
            The answer.

        Raises:
            ValueError: If the query is not one SELECT, or DuckDB refuses it.
            MemoryError: If it needs more than the limit and cannot do it by parts.
            CorruptTraceError: If a part is damaged.
        """
        return query_runs(
            query,
            {run.name: run for run in self.runs},
            factor_columns(self.table().drop(columns="ended_cleanly")),
            parameters=parameters,
            memory_limit=memory_limit,
            threads=threads,
        )
