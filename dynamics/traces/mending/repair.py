"""Makes a damaged run readable again, and says what is gone: `repair`.

A broken file is moved to `set-aside/` with a record of why; what can be rebuilt is. Nothing is
deleted, and a second repair goes on where the first one was interrupted.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from dynamics.traces.compaction.manifest import (
    COMPACTED,
    MANIFEST_FILE,
    copy_is_sound,
    list_versions,
    read_manifest,
    write_manifest,
)
from dynamics.traces.errors import TraceError
from dynamics.traces.layout import (
    RUN_FILE,
    Progress,
    looks_like_run,
    nothing_there,
    write_durably,
)
from dynamics.traces.mending.gone import find_gone, lost_with
from dynamics.traces.mending.rebuild import rebuild_attempt, rebuild_manifest, rebuild_run_file
from dynamics.traces.mending.set_aside import note_lost, read_records, set_aside
from dynamics.traces.parts import Part, list_parts, stored_parts
from dynamics.traces.resume import read_attempts
from dynamics.traces.schema import TABLES
from dynamics.traces.verification.file_counts import check_ends, missing_parts
from dynamics.traces.verification.findings import Finding, Severity
from dynamics.traces.verification.inventory import END_FILE, SET_ASIDE
from dynamics.traces.verification.part_checks import check_part
from dynamics.traces.verification.record_checks import check_attempts, check_run_file, check_vectors

_NO_PROOF = "the proof that an attempt ended cleanly, with every part there."


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did, and what is gone.

    Attributes:
        set_aside: One row for each file moved or found missing: `file, why, lost`. Also those of
            earlier repairs.
        gone: One row for each (epoch, sample_id) that the run lacks, as far as its roster, or the
            other epochs, tell. What no row, roster or name tells of is not in it.
    """

    set_aside: pd.DataFrame
    gone: pd.DataFrame


def repair(path: str | Path, *, progress: Progress = iter) -> Repair:
    """Set broken files of a run aside, rebuild what can be, and say what is gone.

    Afterwards `verify` finds no damage, and the rest of the run reads as ever.

    Args:
        path: Folder of the run.
        progress: Wraps the files as they are worked through, as `tqdm` does.

    Returns:
        What was done, and which (epoch, sample_id) are gone.

    Raises:
        TraceError: If there is no run at the path.
    """
    run = Path(path)
    if not looks_like_run(run):
        raise TraceError(nothing_there(run, RUN_FILE, "run"))
    _mend_run_file(run)
    _mend_attempts(run)
    _mend_manifest(run)
    rows = _mend_parts(run, progress)
    _mend_vectors(run)
    _mend_ends(run, rows)
    gone = find_gone(run)
    if len(gone):
        table = gone.to_csv(index=False).encode()
        write_durably(run / SET_ASIDE, "gone.csv", table)
    return Repair(pd.DataFrame(read_records(run), columns=["file", "why", "lost"]), gone)


def _mend_run_file(run: Path) -> None:
    for found in check_run_file(run):
        lost = (
            "the configuration, the versions, the data's fingerprint and the run's id; it gets a "
            "new id, and cannot be resumed from a checkpoint. No row is lost."
        )
        set_aside(run, found.file, found.what, lost)
    if not (run / RUN_FILE).exists():
        rebuild_run_file(run)


def _mend_attempts(run: Path) -> None:
    for found in check_attempts(run):
        set_aside(run, found.file, found.what, "who made this start, and exactly where from.")
    known = {attempt.attempt for attempt in read_attempts(run)}
    writers = {part.name.attempt for table in TABLES for part in stored_parts(run, table)}
    writers |= {int(m[1]) for p in run.glob("end/*.json") if (m := END_FILE.fullmatch(p.name))}
    for number in sorted({*range(1 + max(known | writers, default=-1))} - known):
        assumed = rebuild_attempt(run, number, read_attempts(run))
        where = run / "attempts" / f"attempt-{number:04d}.json"
        note_lost(run, where, "its record was missing and has been made anew.", assumed)


def _mend_manifest(run: Path) -> None:
    try:
        manifest = read_manifest(run)
        if manifest is not None and not copy_is_sound(manifest):
            write_manifest(manifest)
    except TraceError as error:
        path = list_versions(run)[-1][1] / MANIFEST_FILE
        set_aside(run, path, str(error), "which parts the buckets replaced.")
        lost = rebuild_manifest(run)
        if lost:
            note_lost(run, path, "made anew from the buckets.", lost)
            for end in run.glob("end/*.json"):  # they count parts that nobody knows any more
                set_aside(run, end, "which parts were replaced is not known.", _NO_PROOF)


def _mend_parts(run: Path, progress: Progress) -> dict[Path, int]:
    rows = {}
    listed = [(table, part) for table in TABLES for part in list_parts(run, table)]
    for table, part in progress(listed):
        checked = check_part(part, table)
        damage = [f for f in checked.findings if f.severity is Severity.damage]
        if damage and part.path.is_relative_to(run / COMPACTED):
            if _go_back_to_parts(run, damage[0]):
                return _mend_parts(run, progress)
            _lose_bucket(run, part, damage[0])
        elif damage:
            set_aside(run, part.path, damage[0].what, lost_with(run, table, part))
        else:
            rows[part.path] = checked.n_rows
    return rows


def _go_back_to_parts(run: Path, damage: Finding) -> bool:
    """Set a whole compaction aside if every part that it replaced is still there."""
    manifest = read_manifest(run)
    if manifest is None or not all((run / path).is_file() for path in manifest.replaces):
        return False
    lost = "nothing: the parts that this compaction replaced are still there, and count again."
    set_aside(run, manifest.folder, damage.what, lost)
    return True


def _lose_bucket(run: Path, part: Part, damage: Finding) -> None:
    manifest = read_manifest(run)
    if manifest is None:
        return
    (lost,) = (b for b in manifest.buckets if b.name == part.path.name and b.rows >= 0)
    what = f"{lost.rows:,} rows of `{lost.table}`, steps {part.name.first_step} to "
    what += f"{part.name.last_step}"
    if lost.table == "samples":
        what += f", of samples {lost.first_sample} to {lost.last_sample}"
    kept = tuple(bucket for bucket in manifest.buckets if bucket is not lost)
    without = replace(manifest, buckets=kept, lost=(*manifest.lost, lost))
    # The manifest first: a bucket that it no longer lists can be moved at any time.
    write_manifest(without)
    set_aside(run, part.path, damage.what, f"{what}.")


def _mend_vectors(run: Path) -> None:
    for found in check_vectors(run):
        set_aside(run, found.file, found.what, "this vector; the rest does not need it.")


def _mend_ends(run: Path, rows: dict[Path, int]) -> None:
    """Account for parts that are missing; a record that still disagrees is set aside."""
    for (table, rank, attempt), missing in missing_parts(run).items():
        for sequence in sorted(missing):
            where = run / table / rank / f"part-{attempt:04d}-{sequence:06d}"
            lost = f"the rows of `{table}` in part {sequence} of attempt {attempt}, {rank}."
            note_lost(run, where, "the file is missing, as its sequence number shows.", lost)
    for found in check_ends(run, rows):
        set_aside(run, found.file, found.what, _NO_PROOF)
