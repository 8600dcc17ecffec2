"""Which format a source is of, told by its name, its first bytes and its columns."""

from pathlib import Path

from dynamics.traces.errors import TraceError
from dynamics.traces.foreign.aum import RECORDS, SUMMARY, is_aum, open_aum
from dynamics.traces.foreign.cartography import FILE_NAME, find_epochs, open_cartography
from dynamics.traces.foreign.forgetting import open_forgetting, refuse_pickle
from dynamics.traces.foreign.log import Opener
from dynamics.traces.foreign.table_files import csv_header
from dynamics.traces.foreign.tables import open_csv, open_json_lines, open_parquet
from dynamics.traces.foreign.tensorboard import find_events, open_tensorboard
from dynamics.traces.layout import RUN_FILE

FORMATS: dict[str, Opener] = {
    "csv": open_csv,
    "parquet": open_parquet,
    "jsonl": open_json_lines,
    "cartography": open_cartography,
    "aum": open_aum,
    "forgetting": open_forgetting,
    "tensorboard": open_tensorboard,
}
"""What opens each format."""

_BY_ENDING = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".npz": "forgetting",
}
_PICKLES = {".pkl", ".pickle", ".pt", ".pth"}


def recognise(path: Path) -> str:
    """Name of the format of a source.

    Args:
        path: A file or a folder.

    Returns:
        A key of FORMATS.

    Raises:
        TraceError: If there is nothing at the path, it is a pickle or a run, or no format fits.
    """
    if not path.exists():
        raise TraceError(f"{path} does not exist.")
    return _recognise_folder(path) if path.is_dir() else _recognise_file(path)


def _recognise_folder(path: Path) -> str:
    if (path / RUN_FILE).is_file():
        raise TraceError(f"{path} is a run already. Open it with open_run, or name a log.")
    if find_epochs(path):
        return "cartography"
    if (path / RECORDS).is_file() or (path / SUMMARY).is_file():
        return "aum"
    if find_events(path):
        return "tensorboard"
    raise TraceError(
        f"{path} holds none of the logs that come as a folder: dynamics_epoch_<X>.jsonl "
        f"(cartography), {RECORDS} (aum), *tfevents* (TensorBoard). Name the file to import."
    )


def _recognise_file(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if path.suffix.lower() in _PICKLES or (start[:1] == b"\x80" and start[1:] <= b"\x05"):
        raise refuse_pickle(path)
    if "tfevents" in path.name:
        return "tensorboard"
    if FILE_NAME.fullmatch(path.name):
        return "cartography"
    found = _BY_ENDING.get(path.suffix.lower())
    if found is None:
        raise TraceError(
            f"{path}: the format of files that end in {path.suffix or 'nothing'!r} is not known. "
            f"Name it: --format with one of {', '.join(FORMATS)}."
        )
    return "aum" if found == "csv" and is_aum(csv_header(path)) else found
