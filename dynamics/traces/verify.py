"""Proves that a run is what was recorded: `verify`.

Every byte is compared with the hash in its file's name, every page with its checksum, every row
with the schema; then the files with each other: sequence numbers without gaps, counts as the clean
end recorded them, no key twice, and which samples an epoch lacks. Nothing is changed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dynamics.traces.completeness import Gap, SeenKeys
from dynamics.traces.errors import TraceError
from dynamics.traces.file_counts import check_ends, check_sequences
from dynamics.traces.findings import Finding, Severity, findings_table
from dynamics.traces.inventory import take_stock
from dynamics.traces.layout import RUN_FILE, STUDY_FILE, nothing_there
from dynamics.traces.manifest import Manifest, read_manifest
from dynamics.traces.part_checks import CheckedPart, check_part
from dynamics.traces.parts import list_parts, replaced_path, stored_parts
from dynamics.traces.reader import Run
from dynamics.traces.record_checks import (
    REPAIR,
    check_attempts,
    check_run_file,
    check_vectors,
    readable_attempts,
)
from dynamics.traces.resume import Attempt, fences_over
from dynamics.traces.schema import TABLES
from dynamics.traces.study import Study

Progress = Callable[[Iterable[Any]], Iterable[Any]]


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
        tables = [_verify_study_file(path)]
        folders = sorted({p.parent for p in path.glob(f"*/{RUN_FILE}")})
        return pd.concat(tables + [verify_run(folder, progress) for folder in folders])
    if not _looks_like_run(path):
        raise TraceError(nothing_there(path, RUN_FILE, "run"))
    return verify_run(path, progress)


def _looks_like_run(path: Path) -> bool:
    """Also with its `run.json` gone, which is a damage to name."""
    return (path / RUN_FILE).exists() or (path / "attempts").is_dir()


def _verify_study_file(path: Path) -> pd.DataFrame:
    try:
        Study(path)
    except TraceError as error:
        return findings_table(path, [Finding(Severity.damage, path / STUDY_FILE, str(error))])
    return findings_table(path, [])


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
    checked = []
    for table, part in progress(sorted(listed, key=lambda item: item[1].path.parent.name)):
        done = check_part(part, table)
        checked.append(_forget_dead_keys(done, attempts))
        yield from done.findings
    rows = {done.part.path: done.n_rows for done in checked}
    yield from check_sequences(run)
    yield from check_ends(run, rows)
    yield from _check_attempts_of_parts(checked, attempts)
    yield from _check_keys(run, checked, attempts)
    yield from check_vectors(run)
    yield from _check_leftovers(run, manifest)


def _manifest_or_finding(run: Path) -> tuple[Manifest | None, list[Finding]]:
    try:
        return read_manifest(run), []
    except TraceError as error:
        return None, [Finding(Severity.damage, run / "compacted", str(error), REPAIR)]


def _forget_dead_keys(checked: CheckedPart, attempts: list[Attempt]) -> CheckedPart:
    if checked.table == "samples" and checked.keys:
        alive = np.ones(len(checked.keys["step"]), dtype=bool)
        for from_step, _ in fences_over(checked.part.name.attempt, attempts):
            alive &= checked.keys["step"] < from_step
        checked.keys = {name: values[alive] for name, values in checked.keys.items()}
    return checked


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


def _check_keys(
    run: Path, checked: list[CheckedPart], attempts: list[Attempt]
) -> Iterator[Finding]:
    roster = [done.keys["sample_id"] for done in checked if done.table == "roster" and done.keys]
    seen = SeenKeys(np.concatenate([np.empty(0, np.int64), *roster]))
    alone = all(attempt.world_size == 1 for attempt in attempts)  # or readers number repeats anew
    by_rank = defaultdict(list)
    for done in checked:
        if done.table == "samples" and done.keys:
            by_rank["" if alone else done.part.path.parent.name].append(done)
    for parts in by_rank.values():
        for done in parts:
            keys = [done.keys[name] for name in ("epoch", "sample_id", "occurrence")]
            for what in seen.add(*keys):
                mend = "Two writers may have been at work, or a restart read its data otherwise."
                yield Finding(Severity.finding, done.part.path, what, mend)
            done.keys = {}
        for what in seen.end_rank():
            yield Finding(Severity.finding, run / "samples", what)
    yield from _name_gaps(run, seen)


def _name_gaps(run: Path, seen: SeenKeys) -> Iterator[Finding]:
    gaps = list(seen.gaps())
    last, ended = max(seen.epochs, default=0), _ended_cleanly(run)
    sizes = {len(gap.sample_ids) for gap in gaps if gap.epoch != last}
    as_drop_last = len(sizes) == 1 and len(gaps) >= len(seen.epochs) - 1 > 1
    for gap in gaps:
        severity, why = Severity.finding, "Parts may be missing, or a restart skipped data."
        if gap.epoch == last:
            why = "Training ended" if ended else "The run was interrupted, or goes on,"
            severity, why = Severity.note, f"{why} in this epoch."
        elif gap.n_repeats >= len(gap.sample_ids) or as_drop_last:
            severity, why = Severity.note, _why(gap)
        yield Finding(severity, run / "samples", f"{gap}.", why)
    never = seen.never_seen()
    if len(never) and seen.epochs:
        what = f"{len(never):,} samples of the roster have no row in any epoch."
        yield Finding(Severity.note, run / "roster", what)


def _why(gap: Gap) -> str:
    if gap.n_repeats:
        return "As many were seen more than once, as in sampling with replacement."
    return "Every epoch leaves out as many, as a loader with drop_last does."


def _ended_cleanly(run: Path) -> bool:
    try:
        return Run(run).ended_cleanly
    except TraceError:
        return False


def _check_leftovers(run: Path, manifest: Manifest | None) -> Iterator[Finding]:
    if manifest is None:
        return
    for table in TABLES:
        for part in stored_parts(run, table):
            if replaced_path(run, part) in manifest.replaces:
                what = "replaced by a bucket, and not read; the compaction did not finish."
                mend = "`dynamics compact` removes it once it has checked the buckets."
                yield Finding(Severity.note, part.path, what, mend)
    for bucket in manifest.lost:
        where = manifest.folder / bucket.table / bucket.name
        what = f"a damaged bucket was set aside, with {bucket.rows:,} rows."
        yield Finding(Severity.note, where, what)
