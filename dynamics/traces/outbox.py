"""Files that are encoded and wait to be written.

A file keeps its name and bytes however often writing it fails, so a second try can never store a
row twice.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dynamics.traces.layout import PartName, content_hash, make_folder, write_durably
from dynamics.traces.rows import bounds_of, encode_part
from dynamics.traces.schema import Table


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """The content of a file of a run, and where it belongs."""

    table: str
    folder: Path
    name: str
    data: bytes
    n_rows: int


def encode_rows(
    rows: pa.Table, table: Table, folder: Path, *, attempt: int, rank: int, sequence: int
) -> EncodedFile:
    """Rows as the next part of a table.

    Args:
        rows: The rows, in the order that the table is sorted by.
        table: The table.
        folder: Folder of the run.
        attempt: Attempt that writes.
        rank: Rank that writes.
        sequence: Number of the part among those of this table, attempt and rank.

    Returns:
        The part, not yet written.
    """
    data = encode_part(rows, table)
    first, last = bounds_of(rows, "step")
    name = PartName(attempt, sequence, first, last, content_hash(data))
    place = folder / table.name / f"rank-{rank:05d}"
    return EncodedFile(table.name, place, str(name), data, rows.num_rows)


class Outbox:
    """Encoded files in the order in which they came."""

    def __init__(self) -> None:
        self._files: list[EncodedFile] = []

    @property
    def nbytes(self) -> int:
        """Bytes that wait."""
        return sum(len(file.data) for file in self._files)

    @property
    def n_rows(self) -> int:
        """Rows that wait."""
        return sum(file.n_rows for file in self._files)

    def holds(self, table: str) -> bool:
        """Whether a file of this table waits."""
        return any(file.table == table for file in self._files)

    def add(self, file: EncodedFile) -> None:
        """Let a file wait for the next `write`."""
        self._files.append(file)

    def write(self) -> None:
        """Write every file that waits; where one fails, a smaller one may still find room.

        Raises:
            OSError: The first error, if any file could not be written; those files still wait.
        """
        failed: list[EncodedFile] = []
        errors: list[OSError] = []
        for file in self._files:
            try:
                make_folder(file.folder)
                write_durably(file.folder, file.name, file.data)
            except OSError as error:
                failed.append(file)
                errors.append(error)
        self._files = failed
        if errors:
            raise errors[0]
