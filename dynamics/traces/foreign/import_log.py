"""`import_log`: from the logs of other tools to a run that everything here can read.

Rows are gathered and checked in temporary files beside the run; only when all are known to be
good is the run written, and the folder takes its name when the run is whole.
"""

import hashlib
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamics.traces.errors import TraceError
from dynamics.traces.foreign.account import Account
from dynamics.traces.foreign.ids import TextIds
from dynamics.traces.foreign.log import Log, Options
from dynamics.traces.foreign.source import FORMATS, recognise
from dynamics.traces.foreign.stage import Stage
from dynamics.traces.layout import sync_folder
from dynamics.traces.open import open_run
from dynamics.traces.reader import Run
from dynamics.traces.resume import begin_attempt, create_run, describe_versions
from dynamics.traces.writer import TraceWriter

_PART_ROWS = 1_000_000


def import_log(
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    steps_per_epoch: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Run:
    """Read the logs of other tools into a run, in bounded memory.

    Formats: CSV, Parquet and JSON lines with named columns; dataset cartography's JSON lines; the
    `aum` package's records; forgetting statistics as .npz; TensorBoard's scalars. docs/import.md
    describes each, and the definitions by which its values become a trace's columns.

    Samples may be named by whole numbers, which are kept, or by text: then `sample_id` is the
    first 63 bits of the text's SHA-256, and `run.roster()["key"]` has the text. A sample that
    comes twice in an epoch is a repeat, as in a recording. A missing value is missing; one that is
    not finite is missing with its status bit. Nothing else is left out without being named:
    `run.info["imported"]` has what was read, mapped, ignored and is missing.

    Args:
        source: A file or folder, or several that make one run, such as a table of samples and one
            of scalars.
        out: Folder of the run; must not exist, or be empty.
        format: Name of the format; told from the source by default.
        columns: For plain tables, the foreign column of each trace column, such as
            `{"sample_id": "guid", "loss": "ce"}`; columns of the same name are found by
            themselves, and an empty string leaves one away. In a table with one scalar a column,
            and for tags of TensorBoard, `name` or `name:block` of each scalar.
        steps_per_epoch: Steps that make an epoch, where the source has steps and no epochs.
        progress: Called with the number of rows read, after each chunk.

    Returns:
        The run.

    Raises:
        TraceError: If a source cannot be read as it should be; nothing is left at `out` then.
        ValueError: If `format` is unknown or `steps_per_epoch` is less than 1.
    """
    sources = [Path(s) for s in ([source] if isinstance(source, str | Path) else source)]
    if format is not None and format not in FORMATS:
        raise ValueError(f"There is no format {format!r}; there are {', '.join(FORMATS)}.")
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch must be at least 1, but is {steps_per_epoch}.")
    options = Options(dict(columns or {}), steps_per_epoch, len(sources) > 1)
    out = Path(out)
    _refuse_full(out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as folder:
        run = Path(folder) / "run"
        logs, stage = _gather(sources, format, options, Path(folder), progress)
        try:
            _write(logs, stage, run)
        finally:
            stage.close()
        run.replace(out)
    sync_folder(out.absolute().parent)
    return open_run(out)


def _refuse_full(out: Path) -> None:
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise TraceError(f"{out} is not empty. Choose another folder for the run, or delete it.")


def _gather(
    sources: Sequence[Path],
    format: str | None,
    options: Options,
    folder: Path,
    progress: Callable[[int], object] | None,
) -> tuple[list[Log], Stage]:
    """Read everything; a second time where samples turn out to be named by text."""
    for ids_are_text in (False, True):
        place = folder / f"stage-{ids_are_text}"
        place.mkdir()
        stage = Stage(place, ids_are_text=ids_are_text)
        try:
            logs = [FORMATS[format or recognise(path)](path, options) for path in sources]
            _check_found(logs, options)
            for log, path in zip(logs, sources, strict=True):
                first = 1
                for table, rows in log.chunks:
                    n = stage.add(table, rows, where=str(path), first_row=first)
                    first += n
                    if progress is not None:
                        progress(n)
            stage.finish()
        except TextIds:
            stage.close()
        except BaseException:
            stage.close()
            raise
        else:
            return logs, stage
    raise AssertionError("text is always taken as text")


def _check_found(logs: Sequence[Log], options: Options) -> None:
    formats = {log.format for log in logs}
    if options.columns and formats <= {"cartography", "aum", "forgetting"}:
        raise TraceError(
            f"The format {' and '.join(sorted(formats))} says itself what its columns are: leave "
            "`columns` (--column) away, or name a plain format."
        )
    if not options.one_of_several or "tensorboard" in formats:
        return
    found = {source for log in logs for source in log.mapped.values()}
    if absent := sorted({*options.columns.values()} - found - {""}):
        names = ", ".join(f"`{name}`" for name in absent)
        raise TraceError(f"None of the sources has a column {names}.")


def _write(logs: Sequence[Log], stage: Stage, run: Path) -> None:
    """The staged rows as a run; run.json, which makes it one, comes last."""
    account = Account()
    (run / "attempts").mkdir(parents=True)
    attempt = begin_attempt(run, from_step=0, from_epoch=-1)
    writer = TraceWriter(run, attempt=attempt, max_rows=2 * _PART_ROWS, max_seconds=1e9)
    try:
        for table in ("roster", "samples", "scalars", "events"):
            pending = 0
            for rows in _rows(stage, table):
                kept = account.add(table, rows)
                pending += kept.num_rows
                if kept.num_rows:
                    arrays = [column.combine_chunks() for column in kept.columns]
                    writer.append(table, dict(zip(kept.column_names, arrays, strict=True)))
                if pending >= _PART_ROWS:
                    writer.flush()
                    pending = 0
            writer.flush()
    except BaseException:
        writer.close(clean=False)
        raise
    account.check()
    writer.close()
    create_run(run, _describe(logs, account))


def _rows(stage: Stage, table: str) -> Any:
    if table == "roster":
        return stage.roster()
    return stage.ordered_samples() if table == "samples" else stage.ordered(table)


def _describe(logs: Sequence[Log], account: Account) -> dict[str, Any]:
    sources = [
        {
            "path": str(log.files[0] if len(log.files) == 1 else log.files[0].parent),
            "format": log.format,
            "files": len(log.files),
            "bytes": sum(file.stat().st_size for file in log.files),
            "sha256": _hash_files(log.files),
            "mapped": dict(sorted(log.mapped.items())),
            "ignored": log.ignored,
            "notes": log.notes,
        }
        for log in logs
    ]
    packages = ("training-dynamics", "numpy", "pyarrow", "duckdb")
    return {
        "run_id": uuid.uuid4().hex,
        "n_samples": account.n_samples or None,
        "probes": [],
        "versions": describe_versions(packages),
        "imported": {"sources": sources, **account.describe()},
    }


def _hash_files(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several, that of their own SHA-256 in hexadecimal, in order of name."""
    digests = []
    for file in sorted(files):
        with file.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()
