"""Records of the `aum` package: the margin of every sample at each of its presentations.

`AUMCalculator(save_dir, compressed=False)` writes `full_aum_records.csv`, with the columns of
RECORD. There are two releases: one writes classes under `target_logit` and `other_logit` and
logits under `target_val` and `other_val`, the other the reverse. Which is which is told by which
pair holds whole numbers, or else by which pair's difference is the margin.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynamics.traces.errors import TraceError
from dynamics.traces.foreign.log import Log, Options
from dynamics.traces.foreign.table_files import Chunk, csv_chunks, csv_header
from dynamics.traces.rows import Columns

RECORDS, SUMMARY = "full_aum_records.csv", "aum_values.csv"
RECORD = (
    "sample_id",
    "num_measurements",
    "target_logit",
    "target_val",
    "other_logit",
    "other_val",
    "margin",
    "aum",
)

_NUMBERS = ("num_measurements", "target_logit", "target_val", "other_logit", "other_val", "margin")
_PAIRS = {"logit": ("target_logit", "other_logit"), "val": ("target_val", "other_val")}


def is_aum(header: list[str]) -> bool:
    """Whether a CSV file with this header comes from the `aum` package."""
    return {*header} in ({*RECORD}, {"sample_id", "aum"})


def open_aum(path: Path, options: Options) -> Log:
    """Open records of the `aum` package.

    A sample's presentation k is taken as epoch k − 1. Beside the margin, `label`, `predicted` and
    `correct` are made from the classes; where the two releases cannot be told apart, `correct`
    alone, from the sign of the margin.

    Args:
        path: The file of records, or the folder that it is in.
        options: Nothing is mapped by hand: the format says what everything is.

    Returns:
        The log.

    Raises:
        TraceError: If the file holds only each sample's final mean.
    """
    file = path / RECORDS if path.is_dir() else path
    if not file.is_file() or {*csv_header(file)} != {*RECORD}:
        found = path / SUMMARY if path.is_dir() else path
        raise TraceError(
            f"{found} holds one mean margin per sample and no epochs, so there are no dynamics in "
            f"it to import. AUMCalculator(save_dir, compressed=False) also writes {RECORDS}, with "
            "the margin at every presentation: import that."
        )
    mapped = {"sample_id": "sample_id", "epoch": "num_measurements − 1", "margin": "margin"}
    log = Log("aum", [file], iter(()), mapped, ["aum"])
    if path.is_dir() and (path / SUMMARY).is_file():
        log.ignored.append(SUMMARY)
    log.chunks = _read(file, log)
    return log


def _read(path: Path, log: Log) -> Iterator[tuple[str, Columns]]:
    classes = _which_are_classes(path)
    if classes is None:
        log.ignored += [name for pair in _PAIRS.values() for name in pair]
        log.mapped["correct"] = "the sign of margin, missing at ties"
        log.notes.append(
            "target_logit and target_val could each be the class, so labels are left out."
        )
    else:
        target, other = _PAIRS[classes]
        log.mapped |= {"label": target, "predicted": f"{target}, {other} and margin"}
        log.mapped["correct"] = "predicted = label"
        log.ignored += [name for pair in _PAIRS.values() for name in pair if pair[0] != target]
    for chunk in csv_chunks(path, _NUMBERS, ["sample_id"]):
        yield "samples", _columns(chunk, classes)


def _which_are_classes(path: Path) -> str | None:
    """The pair of columns that holds classes in the whole file, or None if it cannot be told."""
    could = {*_PAIRS}
    for chunk in csv_chunks(path, _NUMBERS, ["sample_id"]):
        numbers = {name: _floats(chunk[name]) for name in _NUMBERS}
        for pair, names in _PAIRS.items():
            whole = all(_are_classes(numbers[name]) for name in names)
            if not whole or (len(could) == 2 and not _gives_margin(numbers, _other(pair))):
                could.discard(pair)
    if not could:
        raise TraceError(
            f"{path}: neither target_logit and other_logit nor target_val and other_val are whole "
            "numbers from 0 throughout, so neither pair holds classes."
        )
    return could.pop() if len(could) == 1 else None


def _other(pair: str) -> str:
    return next(name for name in _PAIRS if name != pair)


def _gives_margin(numbers: dict[str, np.ndarray], pair: str) -> bool:
    target, other = (numbers[name].astype(np.float32) for name in _PAIRS[pair])
    with np.errstate(invalid="ignore"):
        difference = target - other
    margin = numbers["margin"].astype(np.float32)
    return bool(np.allclose(difference, margin, rtol=1e-2, atol=1e-2, equal_nan=True))


def _are_classes(values: np.ndarray) -> bool:
    return bool(np.all((values >= 0) & (values == np.floor(values)) & (values < 2**31)))


def _floats(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(np.float64)


def _columns(chunk: Chunk, classes: str | None) -> Columns:
    margin = _floats(chunk["margin"])
    columns = {"sample_id": chunk["sample_id"], "margin": chunk["margin"]}
    columns["epoch"] = pa.array(_floats(chunk["num_measurements"]) - 1)
    if classes is None:
        return columns | {"correct": pa.array(margin > 0, mask=(margin == 0) | np.isnan(margin))}
    target, other = (_floats(chunk[name]) for name in _PAIRS[classes])
    predicted = np.where(margin > 0, target, np.where(margin < 0, other, np.minimum(target, other)))
    unknown = np.isnan(margin)
    columns |= {"label": pa.array(target), "predicted": pa.array(predicted, mask=unknown)}
    return columns | {"correct": pa.array(predicted == target, mask=unknown)}
