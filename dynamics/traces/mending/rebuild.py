"""Makes anew, as far as the rows allow, what a run needs beside them.

`run.json` without its configuration; the record of an attempt from the first rows that it wrote;
the manifest of a compacted run from its buckets.
"""

import contextlib
import uuid
from dataclasses import asdict
from pathlib import Path

import pyarrow.compute as pc

from dynamics.traces.compaction.manifest import (
    MANIFEST_COPY,
    Bucket,
    Manifest,
    decode_manifest,
    list_versions,
    write_manifest,
)
from dynamics.traces.errors import TraceError
from dynamics.traces.layout import RUN_FILE, PartName, write_json_once
from dynamics.traces.limits import MAX_JSON_BYTES, read_regular
from dynamics.traces.parts import Part, open_part, read_part, replaced_path, stored_parts
from dynamics.traces.resume import Attempt
from dynamics.traces.rows import bounds_of
from dynamics.traces.schema import SCHEMA_VERSION, TABLES

REBUILT = "rebuilt by dynamics repair"


def rebuild_run_file(run: Path) -> None:
    """Write a `run.json` that lets the rows be read.

    Args:
        run: Folder of the run, without a `run.json`.
    """
    info = {"schema_version": SCHEMA_VERSION, "run_id": uuid.uuid4().hex, "note": REBUILT}
    write_json_once(run / RUN_FILE, info | {"config": {}, "probes": [], "data": {}})


def rebuild_attempt(run: Path, number: int, attempts: list[Attempt]) -> str:
    """Write the record of an attempt, as its rows and its successors allow.

    Training usually records the step that it restarts from first, so the least step among an
    attempt's rows is where it restarted.

    Args:
        run: Folder of the run.
        number: The attempt, without a record.
        attempts: The attempts whose records are readable.

    Returns:
        What is gone, and what was assumed.
    """
    starts = [start for part in stored_parts(run, "samples") if (start := _start(part, number))]
    later = [(a.from_step, a.from_epoch) for a in attempts if a.attempt > number]
    if number == 0:
        (from_step, from_epoch), assumed = (0, 0), "It is taken to have begun at step 0."
    elif starts:
        from_step, from_epoch = min(starts)
        assumed = f"It is taken to have restarted from step {from_step}, its first row's."
    elif later:
        from_step, from_epoch = min(later)
        assumed = f"It left no rows; it is taken to have restarted from step {from_step}."
    else:
        from_step, from_epoch = 2**61, 2**30
        assumed = "It left no rows, so nothing is taken to have been replaced by it."
    ranks = [p.parent.name for p in run.glob(f"samples/rank-*/part-{number:04d}-*")]
    world_size = max([1, *(1 + int(rank.removeprefix("rank-")) for rank in ranks)])
    record = Attempt(number, from_step, from_epoch, world_size, REBUILT, 0, REBUILT)
    write_json_once(run / "attempts" / f"attempt-{number:04d}.json", asdict(record))
    return f"who started attempt {number}, and exactly where. {assumed}"


def _start(part: Part, number: int) -> tuple[int, int] | None:
    """First step of an attempt's part and the epoch of that step, if the part is readable."""
    if part.name.attempt != number:
        return None
    try:
        rows = read_part(open_part(part), TABLES["samples"], part.path, ["step", "epoch"])
    except (TraceError, OSError):
        return part.name.first_step, 0
    first = rows.filter(pc.field("step") == part.name.first_step)
    return part.name.first_step, pc.min(first["epoch"]).as_py() or 0


def rebuild_manifest(run: Path) -> str:
    """Write the manifest of the newest compaction anew: from its copy, or else from its buckets.

    Args:
        run: Folder of a compacted run whose newest version has no manifest.

    Returns:
        What is gone, and what was assumed; empty if the copy was sound.
    """
    _, folder = list_versions(run)[-1]
    with contextlib.suppress(TraceError, OSError):
        copy = folder / MANIFEST_COPY
        write_manifest(decode_manifest(read_regular(copy, MAX_JSON_BYTES), copy))
        return ""
    buckets = []
    for table in TABLES:
        for path in sorted((folder / table).glob("part-*.parquet")):
            name = PartName.parse(path.name)
            if name is not None and not path.is_symlink():
                buckets.append(_describe(table, Part(name, path)))
    attempt = max((bucket.part_name.attempt for bucket in buckets), default=0)
    replaces = {
        replaced_path(run, part): -1
        for table in TABLES
        for part in stored_parts(run, table)
        if part.name.attempt <= attempt
    }
    manifest = Manifest(folder, attempt, tuple(buckets), replaces)
    write_manifest(manifest)
    kept = f" {len(replaces)} parts beside them are taken to be replaced." if replaces else ""
    return f"which parts the {len(buckets)} buckets replaced, and whether one is missing.{kept}"


def _describe(table: str, part: Part) -> Bucket:
    """A bucket as a manifest has it; one that is unreadable gets bounds that rule nothing out."""
    try:
        rows = read_part(open_part(part, table), TABLES[table], part.path)
    except (TraceError, OSError):
        return Bucket(table, part.path.name, 0, -(2**63), 2**63 - 1)
    return Bucket(table, part.path.name, rows.num_rows, *bounds_of(rows, "sample_id"))
