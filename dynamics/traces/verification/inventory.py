"""What lies in the folder of a run: every file by its kind, links and strangers named."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from dynamics.traces.compaction.manifest import (
    COMPACTED,
    MANIFEST_COPY,
    MANIFEST_FILE,
    RANK_FOLDER,
    VERSION_FOLDER,
)
from dynamics.traces.layout import RUN_FILE, PartName
from dynamics.traces.resume import ATTEMPT_FILE
from dynamics.traces.schema import TABLES
from dynamics.traces.vectors import VECTORS, parse_vector_name
from dynamics.traces.verification.findings import Finding, Severity

SET_ASIDE = "set-aside"
"""Folder of a run for what `repair` has moved out of the way; nothing in it is read."""

RECORD_SUFFIX = ".why.json"
END_FILE = re.compile(r"attempt-(\d{4,9})-rank-(\d{5,9})\.json")


def take_stock(run: Path) -> Iterator[Finding]:
    """Name what does not belong into the folder of a run.

    Args:
        run: Folder of the run.

    Yields:
        A finding for each link and each stranger; a note for what was left behind or set aside.
    """
    for path in walk(run):
        where = path.relative_to(run)
        if path.is_symlink():
            what = "a symbolic link; nothing of a trace is ever read through one."
            yield Finding(Severity.finding, path, what, "Put the file itself in its place.")
        elif where.parts[0] == SET_ASIDE:
            if path.name.endswith(RECORD_SUFFIX):
                what = f"set aside by an earlier repair: {_reason(path)}"
                yield Finding(Severity.note, path, what, "Delete it when nothing of it is needed.")
        elif any(part.startswith(".tmp-") for part in where.parts):
            what = "a temporary file of a writer that did not finish; its rows were not committed."
            yield Finding(Severity.note, path, what, "Delete it once no writer is at work.")
        elif not _belongs(where):
            inside = where.parts[0] in {*TABLES, VECTORS, COMPACTED, "attempts", "end"}
            severity = Severity.finding if inside else Severity.note
            yield Finding(severity, path, "not a file of a trace; it is not read.", "Move it away.")


def walk(folder: Path) -> Iterator[Path]:
    """Files and links below a folder, without following a link.

    Args:
        folder: Where to start.

    Yields:
        The paths, in order of name.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)
        else:
            yield path


def _belongs(where: Path) -> bool:
    match where.parts:
        case (name,):
            return name == RUN_FILE
        case ("attempts", name):
            return ATTEMPT_FILE.fullmatch(name) is not None
        case ("end", name):
            return END_FILE.fullmatch(name) is not None
        case (table, rank, name) if table in TABLES and RANK_FOLDER.fullmatch(rank):
            return PartName.parse(name) is not None
        case ("vectors", rank, name) if RANK_FOLDER.fullmatch(rank):
            return parse_vector_name(Path(name)) is not None
        case ("compacted", version, name) if VERSION_FOLDER.fullmatch(version):
            return name in {MANIFEST_FILE, MANIFEST_COPY}
        case ("compacted", version, table, name) if VERSION_FOLDER.fullmatch(version):
            return table in TABLES and PartName.parse(name) is not None
    return False


def _reason(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return "the record of why is not readable."
