"""Starting a run, and taking it up again without repeating or losing a row.

Each start is an *attempt*, a small file that is never changed. When training restarts from step S,
the new attempt says so, and from then on readers leave out what earlier attempts recorded past S.
Nothing is rewritten, so a crash while resuming does no harm.
"""

import datetime
import os
import platform
import re
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dynamics.traces.errors import SchemaError, TraceError
from dynamics.traces.layout import (
    RUN_FILE,
    clear_leftovers,
    make_folder,
    read_json,
    write_json_once,
)
from dynamics.traces.schema import SCHEMA_VERSION, TABLES

ATTEMPT_FILE = re.compile(r"attempt-(\d{4,9})\.json")
"""Name of the record of an attempt."""

NEVER = 2**62
"""A step that no training reaches."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run: from where it went on, and who did it."""

    attempt: int
    from_step: int
    from_epoch: int
    world_size: int
    host: str
    pid: int
    created_utc: str
    launch: str = ""
    """Drawn at random when the processes of this attempt started, and the same for all of them."""


def create_run(folder: Path, info: Mapping[str, Any]) -> None:
    """Make the folder of a run and write its `run.json`.

    Args:
        folder: Folder of the run; may exist, but not with a run in it.
        info: What `run.json` holds beside the schema version; JSON-able.

    Raises:
        TraceError: If the folder already holds a run.
    """
    make_folder(folder / "attempts")
    try:
        write_json_once(folder / RUN_FILE, {"schema_version": SCHEMA_VERSION, **info})
    except FileExistsError:
        raise TraceError(_refuse_existing(folder)) from None


def describe_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of packages, None where one is not installed, and that of Python."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | {"python": platform.python_version()}


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a folder that a run must not be recorded into.

    Args:
        folder: Folder of the run; need not exist.
        resume: Whether a run in it is to be taken up again.

    Raises:
        TraceError: If it holds rows and `resume` is False, or no run and `resume` is True.
    """
    exists = (folder / RUN_FILE).exists()
    if resume and not exists:
        raise TraceError(
            f"{folder} holds no run to resume. Leave resume=True away to start a new one."
        )
    if exists and not resume and _has_rows(folder):
        raise TraceError(_refuse_existing(folder))


def _refuse_existing(folder: Path) -> str:
    return (
        f"{folder} already holds a run, and recording into it again would mix two runs. Choose "
        f"another folder, delete this one, or take the run up again with "
        f"Recorder({str(folder)!r}, ..., resume=True) and load_state_dict(...)."
    )


def _has_rows(folder: Path) -> bool:
    return any(
        next(folder.glob(f"{place}/part-*.parquet"), None)
        for table in TABLES
        for place in (f"{table}/rank-*", f"compacted/v*/{table}")
    )


def begin_attempt(
    folder: Path,
    *,
    from_step: int,
    from_epoch: int,
    world_size: int = 1,
    launch: str | None = None,
) -> int:
    """Write the next attempt of a run; from here on it is the only one that may write.

    Processes that record together share one attempt: whichever comes first writes it, and the
    others, known by `launch`, join it.

    Args:
        folder: Folder of the run.
        from_step: Optimiser updates already done when training (re)starts.
        from_epoch: Epoch that training (re)starts with.
        world_size: Number of processes that record, each with a rank of its own.
        launch: Text that these processes share and no other has; drawn here if there is one only.

    Returns:
        The number of the attempt, from 0.

    Raises:
        TraceError: If another process of this launch starts from elsewhere.
    """
    launch = uuid.uuid4().hex if launch is None else launch
    while True:
        number = 1 + latest_attempt(folder)  # first: one that is begun from here on takes this name
        joined = find_attempt(folder, launch)
        if joined is not None:
            _check_agreement(folder, joined, from_step, from_epoch, world_size)
            return joined.attempt
        attempt = Attempt(
            attempt=number,
            from_step=from_step,
            from_epoch=from_epoch,
            world_size=world_size,
            host=socket.gethostname(),
            pid=os.getpid(),
            created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            launch=launch,
        )
        try:
            write_json_once(folder / "attempts" / f"attempt-{number:04d}.json", asdict(attempt))
        except FileExistsError:
            continue  # another process took this number: to be joined if it is of this launch
        clear_leftovers(folder, number)
        return number


def find_attempt(folder: Path, launch: str) -> Attempt | None:
    """The attempt that processes of a launch have begun, or None."""
    return next((a for a in reversed(read_attempts(folder)) if a.launch == launch), None)


def _check_agreement(
    folder: Path, joined: Attempt, from_step: int, from_epoch: int, world_size: int
) -> None:
    ours = (from_step, from_epoch, world_size)
    theirs = (joined.from_step, joined.from_epoch, joined.world_size)
    if ours != theirs:
        names = "step {}, epoch {}, {} processes"
        raise TraceError(
            f"The processes that record into {folder} start from different places: this one from "
            f"{names.format(*ours)}, another from {names.format(*theirs)}. Load the same "
            "checkpoint in every process before the first batch."
        )


def latest_attempt(folder: Path) -> int:
    """Number of the newest attempt, from the file names alone; −1 if there is none."""
    matches = (ATTEMPT_FILE.fullmatch(path.name) for path in (folder / "attempts").iterdir())
    return max((int(match[1]) for match in matches if match), default=-1)


def read_attempts(folder: Path) -> list[Attempt]:
    """All attempts of a run, oldest first.

    Args:
        folder: Folder of the run.

    Returns:
        The attempts, ordered by number.

    Raises:
        TraceError: If the folder of attempts is a link.
        SchemaError: If an attempt's file does not have the fields of an attempt.
    """
    if (folder / "attempts").is_symlink():
        raise TraceError(
            f"{folder / 'attempts'} is a symbolic link, and nothing of a trace is read through one."
        )
    paths = (folder / "attempts").glob("attempt-*.json")
    attempts = [read_attempt(path) for path in paths if ATTEMPT_FILE.fullmatch(path.name)]
    return sorted(attempts, key=lambda attempt: attempt.attempt)


def read_attempt(path: Path) -> Attempt:
    """The record of one attempt.

    Args:
        path: Its file.

    Returns:
        The attempt.

    Raises:
        SchemaError: If the file does not have the fields of an attempt.
    """
    content = read_json(path)
    try:
        attempt = Attempt(**content)
        numbers = (attempt.attempt, attempt.from_step, attempt.from_epoch, attempt.world_size)
        if not all(type(number) is int and abs(number) < NEVER for number in numbers):
            raise TypeError("its attempt, step, epoch and world size must be whole numbers")
        if path.name != f"attempt-{attempt.attempt:04d}.json":
            raise TypeError(f"it calls itself attempt {attempt.attempt}")
    except TypeError as error:
        raise SchemaError(f"{path} is not the record of an attempt: {error}.") from None
    return attempt


def sample_fence(number: int, attempts: Sequence[Attempt]) -> int:
    """Step from which rows of `samples` of an attempt no longer count; NEVER if all do."""
    return min((from_step for from_step, _ in fences_over(number, attempts)), default=NEVER)


def fences_over(number: int, attempts: Sequence[Attempt]) -> list[tuple[int, int]]:
    """Where later attempts restarted: the (from_step, from_epoch) pairs that limit one attempt."""
    return [(a.from_step, a.from_epoch) for a in attempts if a.attempt > number]
