"""Proves that a run is what was recorded: `verify`.

Every byte is compared with the hash in its file's name, every page with its checksum, every row
with the schema; then the files with each other: sequence numbers without gaps, counts as the clean
end recorded them, no key twice, and which samples an epoch lacks. Nothing is changed.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dynamics.traces.completeness import Gap, SeenKeys
from dynamics.traces.errors import TraceError
from dynamics.traces.findings import Finding, Severity, findings_table
from dynamics.traces.inventory import ATTEMPT_FILE, END_FILE, take_stock
from dynamics.traces.layout import RUN_FILE, STUDY_FILE, PartName, nothing_there, read_json
from dynamics.traces.manifest import Manifest, read_manifest
from dynamics.traces.part_checks import CheckedPart, check_part
from dynamics.traces.parts import list_parts, replaced_path, stored_parts
from dynamics.traces.reader import Run
from dynamics.traces.resume import Attempt, fences_over, read_attempt
from dynamics.traces.schema import TABLES, check_schema_version
from dynamics.traces.study import Study
from dynamics.traces.vectors import list_vectors, read_vector

Progress = Callable[[Iterable[Any]], Iterable[Any]]
_REPAIR = "`dynamics repair` says what can and cannot be rebuilt; or restore it from a copy."


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
    yield from _check_run_file(run)
    attempts = yield from check_attempts(run)
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
    yield from _check_sequences(run, checked, manifest)
    yield from _check_ends(run, checked, manifest)
    yield from _check_attempts_of_parts(checked, attempts)
    yield from _check_keys(run, checked, attempts)
    yield from _check_vectors(run)
    yield from _check_leftovers(run, manifest)


def _check_run_file(run: Path) -> Iterator[Finding]:
    try:
        info = read_json(run / RUN_FILE)
        check_schema_version(info.get("schema_version"), str(run / RUN_FILE))
    except TraceError as error:
        yield Finding(Severity.damage, run / RUN_FILE, str(error), _REPAIR)


def check_attempts(run: Path) -> Generator[Finding, None, list[Attempt]]:
    """Check the records of attempts.

    Args:
        run: Folder of the run.

    Yields:
        A finding for each that is unreadable or missing.

    Returns:
        Those that are readable, oldest first.
    """
    attempts: dict[int, Attempt] = {}
    folder = run / "attempts"
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    numbers = [int(m[1]) for m in map(ATTEMPT_FILE.fullmatch, names) if m]
    for number in numbers:
        path = folder / f"attempt-{number:04d}.json"
        try:
            attempts[number] = read_attempt(path)
        except TraceError as error:
            yield Finding(Severity.damage, path, str(error), _REPAIR)
    for number in sorted({*range(max(numbers, default=0))} - {*numbers}):
        path = folder / f"attempt-{number:04d}.json"
        yield Finding(Severity.damage, path, "missing, though later attempts exist.", _REPAIR)
    return [attempts[number] for number in sorted(attempts)]


def _manifest_or_finding(run: Path) -> tuple[Manifest | None, list[Finding]]:
    try:
        return read_manifest(run), []
    except TraceError as error:
        return None, [Finding(Severity.damage, run / "compacted", str(error), _REPAIR)]


def _forget_dead_keys(checked: CheckedPart, attempts: list[Attempt]) -> CheckedPart:
    if checked.table == "samples" and checked.keys:
        alive = np.ones(len(checked.keys["step"]), dtype=bool)
        for from_step, _ in fences_over(checked.part.name.attempt, attempts):
            alive &= checked.keys["step"] < from_step
        checked.keys = {name: values[alive] for name, values in checked.keys.items()}
    return checked


def _rank(path: str | Path) -> str:
    return Path(path).parent.name


def _files(run: Path, checked: list[CheckedPart], manifest: Manifest | None) -> dict[str, int]:
    """Rows of every part that was ever committed, by path; −1 where they cannot be read."""
    files = dict(manifest.replaces) if manifest else {}
    for done in checked:
        if _rank(done.part.path).startswith("rank-"):
            files[replaced_path(run, done.part)] = done.n_rows
    return files


def _check_sequences(
    run: Path, checked: list[CheckedPart], manifest: Manifest | None
) -> Iterator[Finding]:
    sequences = defaultdict(list)
    for path in _files(run, checked, manifest):
        name = PartName.parse(Path(path).name)
        if name:
            sequences[(run / path).parent, name.attempt].append(name.sequence)
    for (folder, attempt), found in sorted(sequences.items()):
        missing = sorted({*range(max(found))} - {*found})
        if missing:
            what = f"attempt {attempt} lacks its parts {', '.join(map(str, missing[:8]))}" + (
                f" and {len(missing) - 8} more." if len(missing) > 8 else "."
            )
            yield Finding(Severity.damage, folder, what, "Restore them from a copy.")
        if len(found) != len(set(found)):
            what = f"attempt {attempt} has two parts of one sequence number."
            yield Finding(Severity.finding, folder, what, "Two writers may have been at work.")


def _check_ends(
    run: Path, checked: list[CheckedPart], manifest: Manifest | None
) -> Iterator[Finding]:
    counts: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for file, n in _files(run, checked, manifest).items():
        name = PartName.parse(Path(file).name)
        if name:
            counts[name.attempt, _rank(file), file.partition("/")[0]].append(n)
    folder = run / "end"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = END_FILE.fullmatch(path.name)
        if match is None or path.is_symlink():
            continue
        try:
            tables = read_json(path)["tables"]
            promised = {t: (tables[t]["parts"], tables[t]["rows"]) for t in TABLES if t in tables}
        except (TraceError, KeyError, TypeError) as error:
            what = f"not the record of a clean end: {error}"
            yield Finding(Severity.damage, path, what, _REPAIR)
            continue
        for table, (n_parts, n_rows) in promised.items():
            rows = counts[int(match[1]), f"rank-{match[2]}", table]
            if n_parts != len(rows) or (n_rows != sum(rows) and min(rows, default=0) >= 0):
                what = (
                    f"says {n_parts} parts with {n_rows} rows of `{table}`, and there are "
                    f"{len(rows)} with {sum(rows)}."
                )
                yield Finding(Severity.damage, path, what, "Restore the missing parts from a copy.")


def _check_attempts_of_parts(
    checked: list[CheckedPart], attempts: list[Attempt]
) -> Iterator[Finding]:
    known = {attempt.attempt: attempt for attempt in attempts}
    for done in checked:
        name = done.part.name
        if name.attempt not in known:
            what = f"there is no readable record of attempt {name.attempt}, which wrote it."
            yield Finding(Severity.damage, done.part.path, what, _REPAIR)
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
            by_rank["" if alone else _rank(done.part.path)].append(done)
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


def _check_vectors(run: Path) -> Iterator[Finding]:
    for file in list_vectors(run):
        try:
            read_vector(file)
        except (TraceError, OSError) as error:
            yield Finding(Severity.damage, file.path, str(error), _REPAIR)


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
