"""What a reader of a foreign format hands on, and the limits that all of them keep."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dynamics.traces.rows import Columns
from dynamics.traces.schema import TABLES

CHUNK_ROWS = 65_536
"""Rows that a reader holds at a time."""

VALUES = tuple(
    name
    for name in TABLES["samples"].column_names
    if name not in {"step", "epoch", "sample_id", "occurrence", "status"}
)
"""Columns of `samples` that hold something measured."""

ROSTER_VALUES = tuple(name for name in TABLES["roster"].column_names if name != "sample_id")
"""Columns of `roster` beside the id."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a source is to be read.

    Attributes:
        columns: Foreign column of each trace column; the empty string leaves a column away.
        steps_per_epoch: Steps of the source's counter that make an epoch, if it has no epochs.
        one_of_several: Whether `columns` may name some that only another source has.
    """

    columns: dict[str, str] = field(default_factory=dict)
    steps_per_epoch: int | None = None
    one_of_several: bool = False


@dataclass(slots=True)
class Log:
    """One source, opened.

    Attributes:
        format: Name of its format.
        files: The files that hold it.
        chunks: Names of tables and rows for them, each at most some CHUNK_ROWS. Rows of `samples`
            may also hold the columns of `roster`, and may lack `step` and `epoch`; `sample_id` may
            be text.
        mapped: For each trace column, what it was made from; complete when the chunks are read.
        ignored: Parts of the source that were not read, by name; complete likewise.
        notes: What a person should know about the reading; complete likewise.
    """

    format: str
    files: list[Path]
    chunks: Iterator[tuple[str, Columns]]
    mapped: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Opener = Callable[[Path, Options], Log]
"""Opens a source of one format."""
