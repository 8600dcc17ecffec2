"""Where the files of a run lie, how they are named, and how one becomes durable.

A part's name carries all a reader needs to list a run without opening it: attempt, sequence
number, first and last step, and the hash of its bytes. The rename that gives a part its name is
the commit.
"""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamics.traces.errors import TraceError
from dynamics.traces.limits import MAX_JSON_BYTES, parse_json, read_regular

Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Passes items on and tells somebody how far they are, as `tqdm` does."""

RUN_FILE = "run.json"
STUDY_FILE = "study.json"
_RUN_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_TEMPORARY = re.compile(r"\.tmp-[a-z][a-z0-9_]*-(\d{4,9})[-.].*|\.tmp-run\.json-.*")
_PART_NAME = re.compile(r"part-(\d{4,9})-(\d{6,12})-(\d{1,18})-(\d{1,18})-([0-9a-f]{16})\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class PartName:
    """What the file name of a part says about it."""

    attempt: int
    sequence: int
    first_step: int
    last_step: int
    content_hash: str

    def __str__(self) -> str:
        return (
            f"part-{self.attempt:04d}-{self.sequence:06d}-{self.first_step}-{self.last_step}"
            f"-{self.content_hash}.parquet"
        )

    @classmethod
    def parse(cls, name: str) -> "PartName | None":
        """Read a file name, or return None if it is not a part's."""
        match = _PART_NAME.fullmatch(name)
        if match is None:
            return None
        attempt, sequence, first_step, last_step, content_hash = match.groups()
        return cls(int(attempt), int(sequence), int(first_step), int(last_step), content_hash)


def is_url(path: str) -> bool:
    """Whether a path names a place on an object store, such as s3://bucket/runs/a."""
    return "://" in path


def run_folder(parent: Path, name: str) -> Path:
    """Folder of the run called `name` in `parent`.

    Args:
        parent: Folder that the run must lie in.
        name: Letters, digits, `.`, `_` and `-`, starting with a letter or digit and not ending in
            a dot, at most 128.

    Returns:
        The folder; it need not exist.

    Raises:
        TraceError: If the name could leave `parent`, or is not a portable file name.
    """
    if not _RUN_NAME.fullmatch(name) or _RESERVED.fullmatch(name):
        raise TraceError(
            f"{name!r} cannot be the name of a run: use 1 to 128 letters, digits, '.', '_' and '-'"
            ", starting with a letter or digit and not ending in a dot, and none of the names that "
            "Windows reserves."
        )
    _refuse_url(parent)
    folder = parent / name
    if folder.is_symlink():
        raise TraceError(
            f"{folder} is a symbolic link, and a run is never written through one. "
            "Name the folder that it points to."
        )
    return folder


def _refuse_url(path: Path) -> None:
    """A URL that was made a path has lost a slash, and would be a folder called `s3:` here."""
    if re.match(r"[a-z][a-z0-9+]+:/", path.as_posix()):
        raise TraceError(
            f"{path} is on an object store, where runs are read but never written. Record to a "
            "disk and upload the folder, for example with `aws s3 sync`; copy it to a disk to mend "
            "or compact it."
        )


def content_hash(data: bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def write_durably(folder: Path, name: str, data: bytes) -> Path:
    """Write a file so that it is either wholly there under its name or not there at all.

    Temporary file in the same folder, fsync, rename, fsync of the folder. On any error the
    temporary file is removed. Where only the last fsync fails, the file may be there under its
    name; writing the same again does no harm.

    Args:
        folder: Existing folder.
        name: File name to commit under; an existing file of that name is replaced.
        data: The whole content.

    Returns:
        The path written.
    """
    path = folder / name
    temporary = _temporary(path)
    try:
        _write_synced(temporary, data)
        temporary.replace(path)
    except BaseException:
        _remove(temporary)
        raise
    sync_folder(folder)
    return path


def _temporary(path: Path) -> Path:
    """Where a file lies until it is whole; the name tells whose it is, should its writer die."""
    return path.with_name(f".tmp-{path.name}-{uuid.uuid4().hex[:8]}")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here is the one to tell
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably; one that exists is left as it is."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; without this a rename may not survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json_once(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that must not exist yet, durably.

    Args:
        path: File to create.
        content: JSON-able mapping.

    Raises:
        FileExistsError: If the file is already there.
    """
    data = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode()
    temporary = _temporary(path)
    try:
        _write_synced(temporary, data)
        os.link(temporary, path)  # unlike rename, link refuses to replace: the first writer wins
    except FileNotFoundError:
        if path.exists():  # the first writer has also cleared away what others left
            raise FileExistsError(f"{path} is already there") from None
        raise
    finally:
        _remove(temporary)
    sync_folder(path.parent)


def clear_leftovers(folder: Path, attempt: int) -> None:
    """Remove temporary files that killed processes left in a run.

    Only those of attempts before the given one, and of attempts' files up to it: whoever still
    lives among their writers may not write to the run any more, or has come too late. What cannot
    be removed is left; readers pass it over.

    Args:
        folder: Folder of the run.
        attempt: The attempt that has just begun.
    """
    for place in (".", "attempts", "end", "*/rank-*"):
        for path in folder.glob(f"{place}/.tmp-*"):
            match = _TEMPORARY.fullmatch(path.name)
            ours = path.resolve().is_relative_to(folder.resolve())
            if ours and match is not None:
                number = int(match[1] or -1)
                if number < attempt or (number == attempt and place == "attempts"):
                    _remove(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: File to read.

    Returns:
        The object.

    Raises:
        TraceError: If the file is missing, a link, too large, not JSON, or not an object.
    """
    try:
        return parse_json(read_regular(path, MAX_JSON_BYTES), path)
    except FileNotFoundError:
        raise TraceError(f"{path} does not exist.") from None


def looks_like_run(path: Path) -> bool:
    """Whether a folder is that of a run, even if its `run.json` is gone, which can be mended."""
    return (path / RUN_FILE).exists() or (path / "attempts").is_dir()


def nothing_there(path: Path, file: str, kind: str) -> str:
    """The text of the error for a path that is not the folder of a run or study."""
    _refuse_url(path)
    if not path.exists():
        return f"{path} does not exist. Expected the folder of a {kind}, with a {file} in it."
    if (path / STUDY_FILE).is_file():
        return f"{path} is a study, not a {kind}. Open it with open_study, or name one of its runs."
    if (path / RUN_FILE).is_file():
        return f"{path} is a run, not a {kind}. Open it with open_run."
    found = sorted(p.parent.name for p in path.glob(f"*/{file}")) if path.is_dir() else []
    below = f" Below it there are {', '.join(found[:5])}." if found else ""
    return f"{path} has no {file}, so it is not the folder of a {kind}.{below}"
