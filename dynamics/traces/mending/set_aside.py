"""Moves a broken file out of a run's way, with a record of why; nothing is ever deleted.

The record is written before the move, so that a repair that is interrupted between the two goes on
from there.
"""

import datetime
import itertools
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from dynamics.traces.errors import TraceError
from dynamics.traces.layout import read_json, sync_folder, write_durably
from dynamics.traces.verification.inventory import RECORD_SUFFIX, SET_ASIDE, walk

_PART = re.compile(r"([a-z]+)/(rank-\d+)/part-(\d+)-(\d+)(-.*)?")

Stream = tuple[str, str, int]
"""Table, rank and attempt: what has sequence numbers of its own."""


def set_aside(run: Path, path: Path, why: str, lost: str) -> dict[str, Any]:
    """Move a file of a run into its folder `set-aside/`, under the same path there.

    Args:
        run: Folder of the run.
        path: The file, or where it should be if it is missing.
        why: What is wrong with it.
        lost: What is gone with it, as far as can be known.

    Returns:
        The record: `file, why, lost, set_aside_utc`.
    """
    return _record(run, path, why, lost, move=True)


def note_lost(run: Path, path: Path, why: str, lost: str) -> dict[str, Any]:
    """Record what is gone with a file that is missing, or has been made anew; move nothing.

    Args:
        run: Folder of the run.
        path: Where the file is or would be.
        why: What happened to it.
        lost: What is gone with it.

    Returns:
        The record.
    """
    return _record(run, path, why, lost, move=False)


def _record(run: Path, path: Path, why: str, lost: str, *, move: bool) -> dict[str, Any]:
    where, why = path.relative_to(run).as_posix(), why.removeprefix(f"{path} ")
    target = _free_place(run / SET_ASIDE / where, why)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record = {"file": where, "why": why, "lost": lost, "set_aside_utc": now}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_durably(target.parent, target.name + RECORD_SUFFIX, json.dumps(record, indent=1).encode())
    if move and path.exists():
        path.rename(target)
        sync_folder(target.parent)
        sync_folder(path.parent)
    return record


def _free_place(wanted: Path, why: str) -> Path:
    """Where nothing lies yet, but for the record of a move for this reason that did not come."""
    place = wanted
    for number in itertools.count(1):
        record = place.with_name(place.name + RECORD_SUFFIX)
        if not place.exists() and (not record.exists() or _reason(record) == why):
            break
        place = wanted.with_name(f"{number}-{wanted.name}")
    return place


def _reason(record: Path) -> object:
    try:
        return read_json(record).get("why")
    except TraceError:
        return None


def read_records(run: Path) -> list[dict[str, Any]]:
    """Records of what has been set aside in a run; one that cannot be read is passed over."""
    folder = run / SET_ASIDE
    if folder.is_symlink() or not folder.is_dir():
        return []
    records = []
    for path in walk(folder):
        if path.name.endswith(RECORD_SUFFIX) and not path.is_symlink():
            try:
                record = read_json(path)
            except TraceError:
                continue
            if all(isinstance(record.get(key), str) for key in ("file", "why", "lost")):
                records.append(record)
    return records


def lost_sequences(run: Path) -> dict[Stream, set[int]]:
    """Sequence numbers of parts that have been set aside or recorded as missing, by stream."""
    lost: dict[Stream, set[int]] = defaultdict(set)
    for record in read_records(run):
        match = _PART.fullmatch(record["file"])
        if match:
            lost[match[1], match[2], int(match[3])].add(int(match[4]))
    return lost
