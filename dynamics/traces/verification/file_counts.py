"""Whether every part that was committed is still there, by numbers and the clean end's counts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynamics.traces.compaction.manifest import read_manifest
from dynamics.traces.errors import TraceError
from dynamics.traces.layout import PartName, read_json
from dynamics.traces.mending.set_aside import Stream, lost_sequences
from dynamics.traces.parts import replaced_path, stored_parts
from dynamics.traces.schema import TABLES
from dynamics.traces.verification.findings import Finding, Severity
from dynamics.traces.verification.inventory import END_FILE

_COPY = "Restore them from a copy, or let `dynamics repair` record them as lost."


def check_sequences(run: Path) -> Iterator[Finding]:
    """Find gaps and doubles in the sequence numbers of each attempt, rank and table.

    Args:
        run: Folder of the run.

    Yields:
        A finding for each such stream of parts.
    """
    lost = lost_sequences(run)
    for stream, sequences in committed_parts(run).items():
        table, rank, attempt = stream
        missing = _missing(sequences, 1 + max(sequences), lost[stream])
        if missing:
            shown = ", ".join(str(number) for number in missing[:8])
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            what = f"attempt {attempt} lacks its parts {shown}{more}."
            yield Finding(Severity.damage, run / table / rank, what, _COPY)
        if any(len(files) > 1 for files in sequences.values()):
            what = f"attempt {attempt} has two parts of one sequence number."
            mend = "Two writers may have been at work."
            yield Finding(Severity.finding, run / table / rank, what, mend)


def check_ends(run: Path, rows: Mapping[Path, int] | None = None) -> Iterator[Finding]:
    """Compare the records of clean ends with what is there.

    Args:
        run: Folder of the run.
        rows: Rows of each part, −1 if unknown; without it only parts are counted.

    Yields:
        A finding for each record that is unreadable or disagrees.
    """
    committed, lost, known = committed_parts(run), lost_sequences(run), _replaced(run)
    known |= {path.relative_to(run).as_posix(): n for path, n in (rows or {}).items()}
    for path in _end_files(run):
        try:
            promised = _promised(path)
        except TraceError as error:
            yield Finding(Severity.damage, path, str(error))
            continue
        for (n_parts, n_rows), stream in promised:
            parts = committed.get(stream, {})
            found = [known.get(file, -1) for files in parts.values() for file in files]
            n_found = len({*parts} | lost[stream])
            countable = not lost[stream] and -1 not in found
            if n_parts != n_found or (countable and n_rows != sum(found)):
                holds = f"{len(found)} with {sum(found)}" if countable else str(len(found))
                what = (
                    f"says {n_parts} parts with {n_rows} rows of `{stream[0]}`; there are {holds}."
                )
                yield Finding(Severity.damage, path, what, _COPY)


def missing_parts(run: Path) -> dict[Stream, set[int]]:
    """Sequence numbers without a file, as gaps and the records of clean ends tell, by stream."""
    committed, lost = committed_parts(run), lost_sequences(run)
    length = {stream: 1 + max(sequences) for stream, sequences in committed.items()}
    for path in _end_files(run):
        try:
            for (n_parts, _), stream in _promised(path):
                length[stream] = max(n_parts, length.get(stream, 0))
        except TraceError:
            continue  # `check_ends` names it
    missing = {s: _missing(committed.get(s, {}), n, lost[s]) for s, n in length.items()}
    return {stream: {*numbers} for stream, numbers in missing.items() if numbers}


def committed_parts(run: Path) -> dict[Stream, dict[int, list[str]]]:
    """Parts of a run by stream and sequence number, with those that a compaction replaced."""
    files = [replaced_path(run, part) for t in TABLES for part in stored_parts(run, t)]
    streams: dict[Stream, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted({*files, *_replaced(run)}):
        table, rank, name = file.split("/")
        parsed = PartName.parse(name)
        if parsed is not None:
            streams[table, rank, parsed.attempt][parsed.sequence].append(file)
    return streams


def _replaced(run: Path) -> dict[str, int]:
    try:
        manifest = read_manifest(run)
    except TraceError:
        return {}
    return dict(manifest.replaces) if manifest else {}


def _missing(found: Mapping[int, Any], length: int, lost: set[int]) -> list[int]:
    if length > 10**6:
        return []  # a number from a foreign file; its rows are checked all the same
    return sorted({*range(length)} - {*found} - lost)


def _end_files(run: Path) -> list[Path]:
    folder = run / "end"
    files = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return [path for path in files if END_FILE.fullmatch(path.name) and not path.is_symlink()]


def _promised(path: Path) -> list[tuple[tuple[int, int], Stream]]:
    """Parts and rows of each table that the record of a clean end counts."""
    match = END_FILE.fullmatch(path.name)
    try:
        tables = read_json(path)["tables"]
        counts = {t: (tables[t]["parts"], tables[t]["rows"]) for t in TABLES if t in tables}
        if not all(type(n) is int and n >= 0 for count in counts.values() for n in count):
            raise TypeError("a count is not a whole number")
    except (KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{path} is not the record of a clean end: {error}.") from None
    attempt, rank = (int(match[1]), f"rank-{match[2]}") if match else (0, "")
    return [(count, (table, rank, attempt)) for table, count in counts.items()]
