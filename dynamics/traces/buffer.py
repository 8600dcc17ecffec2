"""Rows between the moment when they are taken and the moment when they are durable."""

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynamics.traces.errors import SchemaError
from dynamics.traces.occurrence import OccurrenceCounter, number_within_rank
from dynamics.traces.outbox import EncodedFile, Outbox, encode_rows
from dynamics.traces.rows import Columns, drop_non_finite, flag_non_finite, to_arrow
from dynamics.traces.schema import TABLES
from dynamics.traces.vectors import VECTORS, encode_vector, vector_file_name

KEPT_BYTES = 2**28
"""What is kept in memory while nothing can be written: 256 MiB."""

REFUSED = "The rows given were refused and are not recorded."


class RowBuffer:
    """Rows of one rank: gathered as Arrow tables, then encoded as parts, then written.

    Args:
        folder: Folder of the run.
        attempt: Attempt that writes.
        rank: Rank that writes.
    """

    def __init__(self, folder: Path, *, attempt: int, rank: int) -> None:
        self._folder = folder
        self._attempt = attempt
        self._rank = rank
        self._tables: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._outbox = Outbox()
        self._occurrences = OccurrenceCounter()
        self._dropped: list[tuple[int, int, int]] = []  # step, epoch, rows
        self.parts = dict.fromkeys(TABLES, 0)
        """Parts encoded so far, by table."""
        self.rows = dict.fromkeys(TABLES, 0)
        """Rows encoded so far, by table."""
        self.n_samples = 0
        """Rows of `samples` that are not encoded yet."""

    @property
    def n_rows(self) -> int:
        """Rows that are not durable."""
        gathered = sum(t.num_rows for tables in self._tables.values() for t in tables)
        return gathered + self._outbox.n_rows

    @property
    def is_full(self) -> bool:
        """Whether more than `KEPT_BYTES` wait."""
        gathered = sum(table.nbytes for table in self._tables["samples"])
        return gathered + self._outbox.nbytes > KEPT_BYTES

    def take(self, rows: Mapping[str, Columns], *, drop: bool = False) -> None:
        """Take rows, all or none.

        Args:
            rows: Columns by table.
            drop: Count rows of `samples` and forget them; their events are taken.

        Raises:
            SchemaError: If they do not fit their table.
        """
        try:  # all tables before anything is counted or kept, so that refused rows leave no trace
            tables = {name: to_arrow(TABLES[name], columns) for name, columns in rows.items()}
        except SchemaError as error:
            raise SchemaError(f"{error} {REFUSED}") from None
        for name, table in tables.items():
            if not table.num_rows:
                continue
            if name == "samples":
                table, events = flag_non_finite(table)
                self._tables["events"] += events
                if drop:
                    first = table.slice(0, 1).to_pylist()[0]
                    self._dropped.append((first["step"], first["epoch"], table.num_rows))
                    continue
                self.n_samples += table.num_rows
            self._tables[name].append(drop_non_finite(table))

    def take_vector(
        self, name: str, values: Mapping[str, np.ndarray], *, step: int, epoch: int, drop: bool
    ) -> None:
        """Take a vector, or count it and forget it.

        Args:
            name: What it is.
            values: One array for each parameter.
            step: Optimiser updates so far.
            epoch: Epoch in progress or just ended.
            drop: Whether to forget it.
        """
        if drop:
            self._dropped.append((step, epoch, 0))
            return
        data = encode_vector(values)
        file = vector_file_name(name, data, attempt=self._attempt, step=step, epoch=epoch)
        folder = self._folder / VECTORS / f"rank-{self._rank:05d}"
        self._outbox.add(EncodedFile(VECTORS, folder, file, data, 0))

    def seen(self, epoch: int, sample_ids: np.ndarray) -> None:
        """Count samples of rows that are durable already.

        Args:
            epoch: Epoch of the rows.
            sample_ids: Sample of each row.
        """
        self._occurrences.count(epoch, sample_ids)

    def write(self) -> None:
        """Encode what has gathered, and write all that waits.

        Raises:
            OSError: If a file could not be written; it waits for the next try.
        """
        self._report_dropped()
        while any(self._tables.values()) or self._outbox.nbytes:
            for name, tables in self._tables.items():
                # One part at a time, so that parts stay large while writing fails.
                if tables and not self._outbox.holds(name):
                    self._encode(name)
            self._outbox.write()

    def _encode(self, name: str) -> None:
        table = TABLES[name]
        rows = pa.concat_tables(self._tables[name], promote_options="default")
        counter = copy.copy(self._occurrences)  # kept only if all goes well: no row counts twice
        if name == "samples":
            rows = number_within_rank(rows, counter)  # sorts them too
        else:
            rows = rows.sort_by([(column, "ascending") for column in table.sorted_by])
        place = {"attempt": self._attempt, "rank": self._rank, "sequence": self.parts[name]}
        self._outbox.add(encode_rows(rows, table, self._folder, **place))
        self._tables[name], self._occurrences = [], counter
        if name == "samples":
            self.n_samples = 0
        self.parts[name] += 1
        self.rows[name] += rows.num_rows

    def _report_dropped(self) -> None:
        if not self._dropped:
            return
        (step, epoch, _), (last, _, _) = self._dropped[0], self._dropped[-1]
        n_rows = sum(n for _, _, n in self._dropped)
        n_vectors = sum(n == 0 for _, _, n in self._dropped)
        event = {"step": [step], "epoch": [epoch], "name": ["rows_dropped"], "subject": ["samples"]}
        event["detail"] = [
            f"{n_rows} rows and {n_vectors} vectors of steps {step} to {last}: nothing could be "
            f"written, and {KEPT_BYTES >> 20} MiB waited already"
        ]
        self._tables["events"].append(to_arrow(TABLES["events"], event))
        self._dropped = []
