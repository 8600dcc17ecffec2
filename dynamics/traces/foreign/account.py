"""What an import found: counted while its rows are written, told to the person who asked for it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.traces.errors import TraceError

GIVES = {
    "loss": "SampleLoss()",
    "weight": "weights given to observe",
    "margin": "SampleLoss(), with logits and labels given to observe",
    "p_true": "SampleLoss(), with logits and labels given to observe",
    "el2n": "SampleLoss(), with logits and labels given to observe",
    "predicted": "SampleLoss(), with logits and labels given to observe",
    "correct": "SampleLoss(), with logits and labels given to observe",
    "grad_norm": "GradNorm()",
    "output_grad_norm": "OutputGradNorm()",
    "label": "labels given to observe",
    "true_label": "true_label in the recorder's roster",
}
"""What in a recording gives each column that an import may lack."""


class Account:
    """Counts the rows of an import, which must come in the order in which a run holds them."""

    def __init__(self) -> None:
        self.n_samples = 0
        self._n_rows: Counter[str] = Counter()
        self._known: Counter[str] = Counter()
        self._non_finite: Counter[str] = Counter()
        self._epochs: list[int] = []
        self._n_epochs = 0
        self._n_repeats = 0
        self._last = (-1, -1)
        self._last_step = -1
        self._step_before = -1

    def add(self, table: str, rows: pa.Table) -> pa.Table:
        """Count rows.

        Args:
            table: Name of their table.
            rows: The rows, in order of epoch and sample if they are of `samples`.

        Returns:
            The rows to write: of `roster`, those that say anything.

        Raises:
            TraceError: If steps of an epoch lie before those of an earlier one.
        """
        if table == "roster":
            self.n_samples += rows.num_rows
            rows = _telling(rows)
        if table == "samples" and rows.num_rows:
            self._follow(rows)
        self._n_rows[table] += rows.num_rows
        for name, column in zip(rows.column_names, rows.columns, strict=True):
            if pa.types.is_floating(column.type):
                finite = pc.sum(pc.is_finite(column)).as_py() or 0
                odd = len(column) - column.null_count - finite
                if odd:
                    self._non_finite[name] += odd
            if table != "events":
                self._known[name] += len(column) - column.null_count
        return rows

    def _follow(self, rows: pa.Table) -> None:
        epochs, ids, steps = (rows[n].to_numpy() for n in ("epoch", "sample_id", "step"))
        before = np.r_[self._last[0], epochs[:-1]], np.r_[self._last[1], ids[:-1]]
        repeated = (epochs == before[0]) & (ids == before[1])
        if self._n_rows["samples"] == 0:
            repeated[0] = False
        self._n_repeats += int(repeated.sum())
        for epoch in np.unique(epochs).tolist():
            within = steps[epochs == epoch]
            if self._n_epochs == 0 or epoch != self._epochs[-1]:
                self._n_epochs += 1
                self._epochs = [*self._epochs[:1], epoch]
                self._step_before, self._last_step = self._last_step, -1
            if int(within.min()) < self._step_before:
                raise TraceError(
                    f"Steps of epoch {epoch} begin at {int(within.min())}, before those of an "
                    f"earlier epoch, which reach {self._step_before}. `step` counts updates over "
                    "the whole training; if the log's counter restarts with each epoch, leave it "
                    "away: --column step=."
                )
            self._last_step = max(self._last_step, int(within.max()))
        self._last = int(epochs[-1]), int(ids[-1])

    def check(self) -> None:
        """Refuse a log that held nothing.

        Raises:
            TraceError: If no row of any table was counted.
        """
        if not self._n_rows.total():
            raise TraceError("The source holds no rows, so there is nothing to import.")

    def describe(self) -> dict[str, Any]:
        """The counts, as JSON-able values by name."""
        n = self._n_rows
        described: dict[str, Any] = {"rows": {t: n[t] for t in n if n[t]}}
        if n["samples"]:
            expected = self.n_samples * self._n_epochs
            described |= {
                "samples": self.n_samples,
                "epochs": self._n_epochs,
                "first_epoch": self._epochs[0],
                "last_epoch": self._epochs[-1],
                "repeats": self._n_repeats,
                "missing_rows": expected - (n["samples"] - self._n_repeats),
            }
        described["not_finite"] = dict(sorted(self._non_finite.items()))
        described["missing"] = [name for name in GIVES if not self._known[name]]
        if not n["scalars"]:
            described["missing"].append("scalars")
        return described


def _telling(roster: pa.Table) -> pa.Table:
    says = np.zeros(roster.num_rows, dtype=bool)
    for name in roster.column_names:
        if name != "sample_id":
            says |= roster[name].is_valid().to_numpy()
    return roster.filter(pa.array(says))


def read_import(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `imported` entry of a run's run.json, if it is whole.

    Args:
        info: Content of run.json.

    Returns:
        The entry, or None for a run that was recorded.
    """
    imported = info.get("imported")
    if not isinstance(imported, dict) or not isinstance(imported.get("missing"), list):
        return None
    sources = imported.get("sources")
    needed = {"path", "format", "files", "bytes", "mapped", "ignored", "notes"}
    whole = isinstance(sources, list) and all(
        isinstance(source, dict) and needed <= {*source} for source in sources
    )
    return imported if whole else None


def describe_import(imported: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an import read, mapped, ignored and lacks, as lines for a person.

    Args:
        imported: The `imported` entry of a run's run.json.

    Returns:
        Pairs of a word and a text.
    """
    lines = []
    for source in imported["sources"]:
        files = f"{source['files']} files, " if source["files"] > 1 else ""
        size = f"{files}{source['bytes']:,} bytes"
        lines.append(("read", f"{source['path']} ({source['format']}; {size})"))
        same = [name for name, origin in source["mapped"].items() if name == origin]
        made: dict[str, list[str]] = {}
        for name, origin in source["mapped"].items():
            if name != origin:
                made.setdefault(origin, []).append(name)
        mapped = [", ".join(same)] if same else []
        mapped += [f"{', '.join(names)} from {origin}" for origin, names in made.items()]
        lines.append(("mapped", "; ".join(mapped)))
        lines.append(("ignored", ", ".join(source["ignored"]) or "nothing"))
        lines += [("note", note) for note in source["notes"]]
    counts = ", ".join(f"{n:,} of {table}" for table, n in imported["rows"].items())
    lines.append(("rows", counts))
    if "epochs" in imported:
        lines.append(("samples", _tell_samples(imported)))
    if imported["not_finite"]:
        odd = ", ".join(f"{n:,} of {name}" for name, n in imported["not_finite"].items())
        lines.append(("not finite", f"{odd}; stored as missing"))
    lines.append(("missing", tell_missing(imported)))
    return lines


def _tell_samples(imported: Mapping[str, Any]) -> str:
    text = f"{imported['samples']:,} in {imported['epochs']:,} epochs, "
    text += f"{imported['first_epoch']} to {imported['last_epoch']}"
    if imported["missing_rows"]:
        text += f"; {imported['missing_rows']:,} samples' epochs have no row"
    if imported["repeats"]:
        text += f"; {imported['repeats']:,} rows repeat a sample within an epoch"
    return text


def tell_missing(imported: Mapping[str, Any]) -> str:
    """What an import lacks, and what would give it.

    Args:
        imported: The `imported` entry of a run's run.json.

    Returns:
        One line.
    """
    givers: dict[str, list[str]] = {}
    for name in imported["missing"]:
        giver = GIVES.get(name, "recorder.record(name, value), and probes of the network")
        givers.setdefault(giver, []).append(name)
    told = [f"{', '.join(names)} ({giver})" for giver, names in givers.items()]
    return "; ".join(told) or "nothing"
