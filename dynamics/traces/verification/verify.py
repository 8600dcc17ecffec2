"""Proves that a run is what was recorded: `verify`.

Every byte is compared with the hash in its file's name, every page with its checksum, every row
with the schema; then the files with each other: sequence numbers without gaps, counts as the clean
end recorded them, no key twice, and which samples an epoch lacks. Nothing is changed.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from dynamics.traces.compaction.manifest import (
    MANIFEST_COPY,
    Manifest,
    copy_is_sound,
    read_manifest,
)
from dynamics.traces.errors import TraceError
from dynamics.traces.layout import (
    RUN_FILE,
    STUDY_FILE,
    Progress,
    looks_like_run,
    nothing_there,
)
from dynamics.traces.parts import list_parts, replaced_path, stored_parts
from dynamics.traces.resume import Attempt
from dynamics.traces.schema import TABLES
from dynamics.traces.study import Study
from dynamics.traces.verification.file_counts import check_ends, check_sequences
from dynamics.traces.verification.findings import Finding, Severity, findings_table
from dynamics.traces.verification.inventory import take_stock
from dynamics.traces.verification.key_checks import KeyCheck
from dynamics.traces.verification.part_checks import CheckedPart, check_part
from dynamics.traces.verification.record_checks import (
    REPAIR,
    check_attempts,
    check_run_file,
    check_vectors,
    readable_attempts,
)


def verify(path: str | Path, *, progress: Progress = iter) -> pd.DataFrame:
    """Check everything about a run, or about each run of a study.

    Memory is that of one file, and of one byte for each sample and epoch.

    Args:
        path: Folder of the run or study.
        progress: Wraps the files as they are worked through, as `tqdm` does.

    Returns:
        Columns `run, severity, file, what, mend`, one row for each finding, worst first. Severity
        is damage (rows are lost or unreadable), finding (unexpected; what is read is what was
        recorded), or note.

    Raises:
        TraceError: If there is neither a run nor a study.
    """
    path = Path(path)
    if (path / STUDY_FILE).exists():
        return _verify_study(path, progress)
    if not looks_like_run(path):
        raise TraceError(nothing_there(path, RUN_FILE, "run"))
    return verify_run(path, progress)


def _verify_study(path: Path, progress: Progress) -> pd.DataFrame:
    tables = []
    try:
        Study(path)
    except TraceError as error:
        tables.append(
            findings_table(path, [Finding(Severity.damage, path / STUDY_FILE, str(error))])
        )
    for folder in sorted(p for p in path.iterdir() if looks_like_run(p)):
        if folder.is_symlink():
            what = "a symbolic link; a study's runs are never read through one."
            tables.append(findings_table(path, [Finding(Severity.finding, folder, what)]))
        else:
            tables.append(verify_run(folder, progress))
    return pd.concat([findings_table(path, []), *tables], ignore_index=True)


def verify_run(run: Path, progress: Progress = iter) -> pd.DataFrame:
    """Check everything about one run, as `verify` does."""
    return findings_table(run, find_in_run(run, progress))


def find_in_run(run: Path, progress: Progress = iter) -> Iterator[Finding]:
    """Everything that is to be said about one run.

    Args:
        run: Folder of the run.
        progress: Wraps the files as they are worked through.

    Yields:
        The findings.
    """
    yield from take_stock(run)
    yield from check_run_file(run)
    yield from check_attempts(run)
    attempts = readable_attempts(run)
    manifest, broken = _manifest_or_finding(run)
    yield from broken
    if broken:
        return
    listed = [(table, part) for table in TABLES for part in list_parts(run, table)]
    checked, keys = [], KeyCheck(run, attempts)
    for table, part in progress(sorted(listed, key=KeyCheck.order)):
        done = check_part(part, table)
        yield from done.findings
        yield from keys.take(done)
        checked.append(done)
    yield from keys.end()
    rows = {done.part.path: done.n_rows for done in checked}
    yield from check_sequences(run)
    yield from check_ends(run, rows)
    yield from _check_attempts_of_parts(checked, attempts)
    yield from check_vectors(run)
    yield from _check_leftovers(run, manifest)


def _manifest_or_finding(run: Path) -> tuple[Manifest | None, list[Finding]]:
    try:
        return read_manifest(run), []
    except TraceError as error:
        return None, [Finding(Severity.damage, run / "compacted", str(error), REPAIR)]


def _check_attempts_of_parts(
    checked: list[CheckedPart], attempts: list[Attempt]
) -> Iterator[Finding]:
    known = {attempt.attempt: attempt for attempt in attempts}
    for done in checked:
        name = done.part.name
        if name.attempt not in known:
            what = f"there is no readable record of attempt {name.attempt}, which wrote it."
            yield Finding(Severity.damage, done.part.path, what, REPAIR)
        elif done.table == "samples" and not done.part.sample_range:
            from_step = known[name.attempt].from_step
            if name.first_step < from_step:
                what = f"holds step {name.first_step}, before its attempt began at {from_step}."
                yield Finding(Severity.finding, done.part.path, what)


def _check_leftovers(run: Path, manifest: Manifest | None) -> Iterator[Finding]:
    if manifest is None:
        return
    for table in TABLES:
        for part in stored_parts(run, table):
            if replaced_path(run, part) in manifest.replaces:
                what = "replaced by a bucket, and not read; the compaction did not finish."
                mend = "`dynamics compact` removes it once it has checked the buckets."
                yield Finding(Severity.note, part.path, what, mend)
    if not copy_is_sound(manifest):
        what = "not the copy of the manifest beside it, which only a repair would need."
        mend = "`dynamics repair` makes it anew."
        yield Finding(Severity.finding, manifest.folder / MANIFEST_COPY, what, mend)
    for bucket in manifest.lost:
        where = manifest.folder / bucket.table / bucket.name
        what = f"a damaged bucket was set aside, with {bucket.rows:,} rows."
        yield Finding(Severity.note, where, what)
