"""`export_table`: a table of a run, or its summary, as a file for other tools."""

from pathlib import Path

from dynamics.summary import summarise_samples
from dynamics.traces import TABLES, Run
from dynamics.traces.export import iter_frame, iter_stored, write_rows

EXPORTS = (*TABLES, "summary")
"""What can be exported: the tables of a trace, and what `summarise_samples` makes of it."""


def export_table(run: Run, out: str | Path, *, table: str = "samples") -> int:
    """Write a table of a run as CSV, Parquet or JSON lines, in bounded memory.

    Columns are those of docs/trace-format.md; `samples` holds repeats too, told by `occurrence`,
    and the `key` of each sample where the run has keys. What is exported and imported again with
    `import_log` has the same rows.

    Args:
        run: The run.
        out: File to write; its ending, .csv, .parquet or .jsonl, says the format.
        table: One of EXPORTS.

    Returns:
        Number of rows written.

    Raises:
        ValueError: If there is no such table, or the ending is none of these.
    """
    if table not in EXPORTS:
        raise ValueError(f"There is no table {table!r} to export; there are {', '.join(EXPORTS)}.")
    if table == "summary":
        return write_rows(iter_frame(summarise_samples(run)), Path(out))
    return write_rows(iter_stored(run, table), Path(out))
