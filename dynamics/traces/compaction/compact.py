"""Rewrites a run into fewer, sorted files: `compact`.

A bucket holds all rows of a range of samples, so one sample's trajectory is in one file. Rows that
a resumed run replaced are left out, and the small tables become one file each; vectors stay.

Everything is written into a temporary folder, read back and compared; the rename of that folder to
`compacted/v0001` is the commit, and only after it are the parts removed that it replaces. Whenever
it is interrupted, a reader finds each row once.
"""

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dynamics.traces.compaction.buckets import (
    bucket_bounds,
    bucket_schema,
    conform,
    deal,
    row_checksum,
    sort_bucket,
    write_bucket,
)
from dynamics.traces.compaction.manifest import (
    COMPACTED,
    Bucket,
    Manifest,
    list_versions,
    read_manifest,
    write_manifest,
)
from dynamics.traces.errors import CorruptTraceError, TraceError
from dynamics.traces.layout import Progress, sync_folder
from dynamics.traces.open import open_run
from dynamics.traces.parts import (
    Part,
    bucket_parts,
    open_part,
    read_part,
    replaced_path,
    verify_part,
)
from dynamics.traces.reader import Run
from dynamics.traces.schema import SAMPLES, TABLES


def compact(path: str | Path, *, force: bool = False, progress: Progress = iter) -> Manifest | None:
    """Rewrite a run into sample-range buckets, check them, and remove the parts they replace.

    Memory is that of a part and of a bucket of two million rows; the disk holds the rows three
    times for a while. The run can be resumed afterwards, and compacted again.

    Args:
        path: Folder of the run.
        force: Also compact a run whose latest attempt has no clean end; its writer must be dead.
        progress: Wraps what is worked through, part by part and bucket by bucket.

    Returns:
        The manifest that counts now; None if the run holds no rows.

    Raises:
        TraceError: If the run may still be written to, or another compaction came first.
        CorruptTraceError: If a part is damaged, or what was written reads back differently. The
            run is then as it was before.
    """
    run = open_run(Path(path))
    _refuse_if_live(run, force)
    _clear_leftovers(run.path)
    number = 1 + max((number for number, _ in list_versions(run.path)), default=0)
    manifest = read_manifest(run.path)
    parts = {table: run.parts(table) for table in TABLES}
    buckets = {bucket.name for bucket in manifest.buckets} if manifest else set()
    if all(str(part.name) in buckets for table in TABLES for part in parts[table]):
        return manifest
    folder = run.path / COMPACTED / f".tmp-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        made = _build(run, parts, folder, manifest, progress)
        if any(run.parts(table) != parts[table] for table in TABLES):
            raise TraceError(f"{path} was written to while it was compacted. Compact it again.")
        _commit(run.path, folder, number)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _retire(run.path)
    return read_manifest(run.path) or made


def _refuse_if_live(run: Run, force: bool) -> None:
    if run.ended_cleanly or force:
        return
    who = "It has no attempts at all."
    if run.attempts:
        last = run.attempts[-1]
        who = (
            f"Attempt {last.attempt} began {last.created_utc} on {last.host} as process "
            f"{last.pid}, and has left no record of a clean end."
        )
    raise TraceError(
        f"{run.path} may still be written to. {who} If that process is dead, compact with "
        "force=True, or `dynamics compact --force`."
    )


def _clear_leftovers(run: Path) -> None:
    """Finish what an interrupted compaction left: its temporary folder, or parts to remove."""
    for path in (run / COMPACTED).glob(".tmp-*"):
        shutil.rmtree(path)
    manifest = read_manifest(run)
    if manifest and any((run / path).exists() for path in manifest.replaces):
        for table in TABLES:
            for part in bucket_parts(manifest, table):
                verify_part(part)  # the parts are the only other copy
        _retire(run)


def _build(
    run: Run,
    parts: dict[str, list[Part]],
    folder: Path,
    before: Manifest | None,
    progress: Progress,
) -> Manifest:
    attempt = max([a.attempt for a in run.attempts])
    replaces = dict(before.replaces) if before else {}
    for table, files in parts.items():
        for part in files:
            if part.path.is_relative_to(run.path / table):
                replaces[replaced_path(run.path, part)] = open_part(part, table).metadata.num_rows
    made = _small_tables(run, folder, attempt) + _sample_buckets(run, folder, attempt, progress)
    manifest = Manifest(folder, attempt, tuple(made), replaces, before.lost if before else ())
    write_manifest(manifest)
    return manifest


def _small_tables(run: Run, folder: Path, attempt: int) -> list[Bucket]:
    made = []
    for table in TABLES.values():
        if table is SAMPLES:
            continue
        rows = conform(run.read_rows(table), table.schema())
        if rows.num_rows:
            bucket, again = write_bucket(folder, rows, table.name, attempt=attempt, number=0)
            _compare(conform(again, table.schema()).equals(rows), run, table.name)
            made.append(bucket)
    return made


def _sample_buckets(run: Run, folder: Path, attempt: int, progress: Progress) -> list[Bucket]:
    bounds = bucket_bounds(_ids(run, progress))
    schema = bucket_schema(run.column_names("samples"))
    tables = run.sample_tables(None, repeats=True)
    spilled, expected = deal(progress(tables), bounds, schema, folder)
    made, found = [], 0
    for number, path in enumerate(progress(spilled)):
        rows = sort_bucket(path)
        path.unlink()
        bucket, again = write_bucket(folder, rows, "samples", attempt=attempt, number=number)
        found += row_checksum(conform(again, schema))
        made.append(bucket)
    _compare(found % 2**64 == expected, run, "samples")
    return made


def _ids(run: Run, progress: Progress) -> Iterator[np.ndarray]:
    for part in progress(run.parts("samples")):
        file = open_part(part)
        yield read_part(file, SAMPLES, part.path, ["sample_id"])["sample_id"].to_numpy()


def _compare(same: bool, run: Run, table: str) -> None:
    if not same:
        raise CorruptTraceError(
            f"What was written of `{table}` of {run.path} does not read back as what its parts "
            "hold, so the run is left as it was. Check the disk and the memory."
        )


def _commit(run: Path, folder: Path, number: int) -> None:
    """Give the folder its name; fails if another compaction has taken that number meanwhile."""
    for table in TABLES:
        if (folder / table).is_dir():
            sync_folder(folder / table)
    sync_folder(folder)
    sync_folder(run)
    try:
        folder.rename(folder.parent / f"v{number:04d}")
    except OSError as error:
        raise TraceError(
            f"{run} could not be compacted ({error}). If another compaction was at work, its "
            "result stands; no row is lost."
        ) from None
    sync_folder(folder.parent)


def _retire(run: Path) -> None:
    """Remove what the newest version replaces: its parts, and older versions."""
    manifest = read_manifest(run)
    if manifest is None:
        return
    folders = set()
    for replaced in manifest.replaces:
        path = run / replaced
        if path.parent.is_dir() and not path.parent.is_symlink():
            path.unlink(missing_ok=True)
            folders.add(path.parent)
    for _, version in list_versions(run)[:-1]:
        shutil.rmtree(version)
    for folder in folders:
        sync_folder(folder)
