"""Opens runs and studies, wherever they lie: `open_run`, `open_study`."""

from pathlib import Path

from dynamics.traces.errors import TraceError
from dynamics.traces.layout import RUN_FILE, STUDY_FILE, is_url, nothing_there
from dynamics.traces.reader import Run
from dynamics.traces.stored_run import StoredRun, StoredStudy
from dynamics.traces.study import Study


def open_run(path: str | Path) -> Run:
    """Open a recorded run.

    Args:
        path: Folder of the run, or its URL on an object store, such as s3://bucket/runs/a.

    Returns:
        The run.

    Raises:
        TraceError: If there is no run at the path.
        SchemaError: If it is of a schema version that cannot be read.
        OSError: If an object store has no such bucket, refuses us or cannot be reached.
    """
    if isinstance(path, str) and is_url(path):
        return StoredRun(path)
    path = Path(path)
    if not (path / RUN_FILE).is_file():
        raise TraceError(nothing_there(path, RUN_FILE, "run"))
    return Run(path)


def open_study(path: str | Path) -> Study:
    """Open a study: a folder of runs with a `study.json`.

    Args:
        path: Folder of the study, or its URL on an object store.

    Returns:
        The study.

    Raises:
        TraceError: If there is no study at the path.
        SchemaError: If it is of a schema version that cannot be read.
        OSError: If an object store has no such bucket, refuses us or cannot be reached.
    """
    if isinstance(path, str) and is_url(path):
        return StoredStudy(path)
    path = Path(path)
    if not (path / STUDY_FILE).is_file():
        raise TraceError(nothing_there(path, STUDY_FILE, "study"))
    return Study(path)
