"""Which rows are gone with the files that a run has lost."""

from pathlib import Path

import numpy as np
import pandas as pd

from dynamics.traces.compaction.manifest import read_manifest
from dynamics.traces.layout import PartName
from dynamics.traces.mending.set_aside import read_records
from dynamics.traces.parts import Part, list_parts, open_part, read_part
from dynamics.traces.reader import Run
from dynamics.traces.resume import NEVER, sample_fence
from dynamics.traces.schema import TABLES
from dynamics.traces.verification.completeness import SeenKeys
from dynamics.traces.verification.record_checks import readable_attempts


def lost_with(run: Path, table: str, part: Part) -> str:
    """What is gone with a part, as its name tells.

    Args:
        run: Folder of the run.
        table: The part's table.
        part: The part.

    Returns:
        A sentence.
    """
    name = part.name
    if table == "roster":
        return "labels and groups of samples."
    what = (
        f"rows of `{table}` of steps {name.first_step} to {name.last_step}, recorded by "
        f"{part.path.parent.name} in attempt {name.attempt}"
    )
    fence = sample_fence(name.attempt, readable_attempts(run))
    if table == "samples" and fence <= name.first_step:
        return f"nothing that counts: {what}, all of which a later attempt replaced."
    if table == "samples" and fence <= name.last_step:
        what += f"; those from step {fence} on had been replaced anyway"
    return f"{what}."


def find_gone(run: Path) -> pd.DataFrame:
    """Each (epoch, sample) that a run lacks since parts of it were set aside or went missing.

    A sample belongs to the run if the roster, or more than half of the epochs, hold it. Only epochs
    are looked at that the lost parts can have held rows of: those between the epochs of the rows
    before and after them.

    Args:
        run: Folder of the run, readable again.

    Returns:
        Columns `epoch, sample_id`, sorted.
    """
    names = _lost_names(run)
    manifest = read_manifest(run)
    buckets = [b for b in manifest.lost if b.table == "samples"] if manifest else []
    if not names and not buckets:
        return pd.DataFrame({"epoch": [], "sample_id": []}, dtype=np.int64)
    roster = Run(run).roster().index.to_numpy(dtype=np.int64)
    seen, spans = _look_through(run, roster)
    bounds = [_epochs_between(spans, *steps) for steps in names]
    gaps = [g for g in seen.gaps() if any(low <= g.epoch <= high for low, high in bounds)]
    pairs = [(gap.epoch, sample_id) for gap in gaps for sample_id in gap.sample_ids.tolist()]
    for bucket in buckets:
        never = seen.never_seen()
        inside = never[(never >= bucket.first_sample) & (never <= bucket.last_sample)]
        pairs += [(e, i) for e in seen.epochs for i in inside.tolist()]
    return pd.DataFrame(sorted({*pairs}), columns=["epoch", "sample_id"], dtype=np.int64)


def _epochs_between(
    spans: list[tuple[int, int]], first_step: int, last_step: int
) -> tuple[int, int]:
    """Least and largest epoch that rows of these steps can be of, by the rows around them."""
    low = max((epoch for step, epoch in spans if step < first_step), default=-1)
    return low, min((epoch for step, epoch in spans if step > last_step), default=2**31)


def _lost_names(run: Path) -> list[tuple[int, int]]:
    """First and last step of each lost part of `samples`; a missing one may be of any step."""
    steps = []
    for record in read_records(run):
        if record["file"].startswith("samples/rank-"):
            name = PartName.parse(Path(record["file"]).name)
            steps.append((name.first_step, name.last_step) if name else (0, NEVER))
    return steps


def _look_through(run: Path, roster: np.ndarray) -> tuple[SeenKeys, list[tuple[int, int]]]:
    """The keys that a run holds, and the epoch at the first and last step of each part."""
    seen, spans = SeenKeys(roster), []
    columns = ["step", "epoch", "sample_id", "occurrence"]
    attempts = readable_attempts(run)
    for part in list_parts(run, "samples"):
        rows = read_part(open_part(part), TABLES["samples"], part.path, columns)
        step, epoch, ids, occurrence = (rows[column].to_numpy() for column in columns)
        alive = step < sample_fence(part.name.attempt, attempts)
        if alive.any():
            list(seen.add(epoch[alive], ids[alive], occurrence[alive]))
            for at in (np.argmin(step[alive]), np.argmax(step[alive])):
                spans.append((int(step[alive][at]), int(epoch[alive][at])))
    return seen, spans
