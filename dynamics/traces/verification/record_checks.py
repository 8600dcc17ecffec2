"""Checks of what a run holds beside the rows: `run.json`, the records of attempts, vectors."""

from collections.abc import Iterator
from pathlib import Path

from dynamics.traces.errors import TraceError
from dynamics.traces.layout import RUN_FILE, read_json
from dynamics.traces.resume import ATTEMPT_FILE, Attempt, read_attempt
from dynamics.traces.schema import check_schema_version
from dynamics.traces.vectors import list_vectors, read_vector
from dynamics.traces.verification.findings import Finding, Severity

REPAIR = "`dynamics repair` says what can and cannot be rebuilt; or restore it from a copy."


def check_run_file(run: Path) -> Iterator[Finding]:
    """Check `run.json`.

    Args:
        run: Folder of the run.

    Yields:
        A finding if it cannot be read.
    """
    try:
        info = read_json(run / RUN_FILE)
        check_schema_version(info.get("schema_version"), str(run / RUN_FILE))
    except TraceError as error:
        yield Finding(Severity.damage, run / RUN_FILE, str(error), REPAIR)


def check_attempts(run: Path) -> Iterator[Finding]:
    """Check the records of attempts.

    Args:
        run: Folder of the run.

    Yields:
        A finding for each that is unreadable or missing.
    """
    numbers = set()
    for path in _attempt_files(run):
        numbers.add(int(path.stem.removeprefix("attempt-")))
        try:
            read_attempt(path)
        except TraceError as error:
            yield Finding(Severity.damage, path, str(error), REPAIR)
    for number in sorted({*range(max(numbers, default=0))} - numbers):
        path = run / "attempts" / f"attempt-{number:04d}.json"
        yield Finding(Severity.damage, path, "missing, though later attempts exist.", REPAIR)


def readable_attempts(run: Path) -> list[Attempt]:
    """Attempts of a run whose records can be read, oldest first."""
    attempts = []
    for path in _attempt_files(run):
        try:
            attempts.append(read_attempt(path))
        except TraceError:
            continue  # `check_attempts` names it
    return sorted(attempts, key=lambda attempt: attempt.attempt)


def _attempt_files(run: Path) -> list[Path]:
    folder = run / "attempts"
    files = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return [path for path in files if ATTEMPT_FILE.fullmatch(path.name)]


def check_vectors(run: Path) -> Iterator[Finding]:
    """Check every vector of a run.

    Args:
        run: Folder of the run.

    Yields:
        A finding for each that cannot be read.
    """
    for file in list_vectors(run):
        try:
            read_vector(file)
        except (TraceError, OSError) as error:
            yield Finding(Severity.damage, file.path, str(error), REPAIR)
