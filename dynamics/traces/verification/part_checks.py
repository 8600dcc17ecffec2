"""Checks of one part, row group by row group: what its rows must be, beyond being readable."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.traces.compaction.buckets import ORDER
from dynamics.traces.errors import TraceError
from dynamics.traces.parts import Part, open_part, read_group
from dynamics.traces.schema import TABLES, Status
from dynamics.traces.verification.findings import Finding, Severity

_REPLACE = "`dynamics repair` sets it aside and says what is gone; or restore it from a copy."
_KEYS = ("step", "epoch", "sample_id", "occurrence")


@dataclass(slots=True)
class CheckedPart:
    """What a check has found in a part, and the keys of its rows.

    Attributes:
        part: Which.
        table: Its table.
        findings: What is wrong with it.
        n_rows: Rows that it holds; −1 if it cannot be read.
        keys: For `samples`, the columns step, epoch, sample_id and occurrence; for the roster
            sample_id.
    """

    part: Part
    table: str
    findings: list[Finding] = field(default_factory=list)
    n_rows: int = -1
    keys: dict[str, np.ndarray] = field(default_factory=dict)

    def find(self, severity: Severity, what: str, mend: str = "") -> None:
        """Add a finding about this part."""
        self.findings.append(Finding(severity, self.part.path, what, mend))


def check_part(part: Part, table: str) -> CheckedPart:
    """Check one part: hash, pages, schema, step range, order, and the range of its values.

    Memory is that of the file, one row group, and 28 bytes a row.

    Args:
        part: Which.
        table: Its table.

    Returns:
        What was found, and the keys.
    """
    checked = CheckedPart(part, table)
    try:
        file = open_part(part, table)
        groups = list(_read_groups(checked, file))
    except (TraceError, OSError) as error:
        checked.find(Severity.damage, str(error), _REPLACE)
        return checked
    checked.n_rows = file.metadata.num_rows
    names = [key for key in _KEYS if key in TABLES[table].column_names]
    none = np.empty(0, np.int64)
    keys = {name: np.concatenate([none, *(group[name] for group in groups)]) for name in names}
    _check_steps(checked, keys.get("step"))
    _check_order(checked, keys)
    checked.keys = keys if table in ("samples", "roster") else {}
    return checked


def _read_groups(checked: CheckedPart, file: pq.ParquetFile) -> Iterator[dict[str, np.ndarray]]:
    spec, path = TABLES[checked.table], checked.part.path
    for group in range(file.num_row_groups):
        rows = read_group(file, spec, path, group)
        _check_values(checked, rows)
        if checked.table == "samples":
            _check_flags(checked, rows)
            _check_statistics(checked, file, group, rows)
        yield {key: rows[key].to_numpy() for key in _KEYS if key in rows.column_names}


def _check_values(checked: CheckedPart, rows: pa.Table) -> None:
    for name in rows.column_names:
        column = rows[name]
        if pa.types.is_floating(column.type) and column.null_count < len(column):
            odd = ~np.isfinite(np.asarray(column.fill_null(0)))
            if odd.any():
                what = f"`{name}` holds {odd.sum()} values that are NaN or infinite, not missing."
                checked.find(Severity.damage, what, "It was not written by this toolkit.")


def _check_flags(checked: CheckedPart, rows: pa.Table) -> None:
    status, occurrence = rows["status"].to_numpy(), rows["occurrence"].to_numpy()
    known = sum(Status)
    wrong = {
        "status bits that the trace format does not know": status & ~known != 0,
        "occurrences below 0": occurrence < 0,
        "repeats whose status does not say REPEAT, or the reverse": (occurrence > 0)
        != (status & Status.REPEAT != 0),
        "epochs or steps below 0": (rows["epoch"].to_numpy() < 0) | (rows["step"].to_numpy() < 0),
    }
    if "correct" in rows.column_names:
        correct = rows["correct"].fill_null(0).to_numpy()
        wrong["values of `correct` other than 0 and 1"] = (correct != 0) & (correct != 1)
    for what, rows_ in wrong.items():
        if rows_.any():
            checked.find(Severity.finding, f"{int(rows_.sum())} rows have {what}.")


def _check_statistics(
    checked: CheckedPart, file: pq.ParquetFile, group: int, rows: pa.Table
) -> None:
    """Readers skip row groups by these bounds, so a wrong one would hide rows."""
    for name in ("sample_id", "epoch"):
        at = file.schema_arrow.get_field_index(name)
        statistics = file.metadata.row_group(group).column(at).statistics
        values = rows[name].to_numpy()
        if statistics is None or not statistics.has_min_max or not len(values):
            continue
        if statistics.min > values.min() or statistics.max < values.max():
            what = f"the footer bounds `{name}` of row group {group} more narrowly than its rows."
            checked.find(Severity.damage, what, _REPLACE)


def _check_steps(checked: CheckedPart, steps: np.ndarray | None) -> None:
    name = checked.part.name
    found = (0, 0) if steps is None or not len(steps) else (int(steps.min()), int(steps.max()))
    if found != (name.first_step, name.last_step):
        what = (
            f"its name says steps {name.first_step} to {name.last_step}, and its rows are of "
            f"steps {found[0]} to {found[1]}."
        )
        checked.find(Severity.damage, what, _REPLACE)


def _check_order(checked: CheckedPart, keys: dict[str, np.ndarray]) -> None:
    if checked.table == "samples":
        order = ORDER if checked.part.sample_range else TABLES["samples"].sorted_by
    else:
        order = ("step",) if "step" in keys else ()  # texts may be in any order within a step
    columns = [keys[name] for name in order]
    if not columns or is_sorted(*columns):
        return
    checked.find(Severity.finding, f"its rows are not sorted by {', '.join(order)}.")


def is_sorted(*keys: np.ndarray) -> bool:
    """Whether rows are in ascending order of the first key, then the second, and so on."""
    tied = np.ones(max(0, len(keys[0]) - 1), dtype=bool)
    for key in keys:
        before, after = key[:-1], key[1:]
        if (tied & (before > after)).any():
            return False
        tied &= before == after
    return True
