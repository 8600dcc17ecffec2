"""Logs of dataset cartography: the logits of every sample after each epoch.

The folder `training_dynamics` holds a file `dynamics_epoch_<X>.jsonl` for each epoch, with a line
{"guid": …, "logits_epoch_<X>": […], "gold": …} for each sample, as
github.com/allenai/cartography writes it. The logits were taken in training mode, batch by batch,
as the weights stood before that batch's update: each line is a presentation.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.traces.errors import TraceError
from dynamics.traces.foreign.json_lines import iter_json_lines
from dynamics.traces.foreign.log import CHUNK_ROWS, Log, Options
from dynamics.traces.foreign.scores import score_logits
from dynamics.traces.rows import Columns

FILE_NAME = re.compile(r"dynamics_epoch_(\d{1,9})\.jsonl?")

_SCORES = ("loss", "margin", "p_true", "el2n", "predicted", "correct")
_CHUNK_LOGITS = 2**22


def find_epochs(path: Path) -> dict[int, Path]:
    """Files of each epoch.

    Args:
        path: One such file, the folder that holds them, or the folder above.

    Returns:
        Path by epoch, in order; empty if there are none.
    """
    folder = path / "training_dynamics" if (path / "training_dynamics").is_dir() else path
    files = [path] if path.is_file() else [*folder.iterdir()] if folder.is_dir() else []
    matches = [(FILE_NAME.fullmatch(file.name), file) for file in files]
    return dict(sorted((int(match[1]), file) for match, file in matches if match))


def open_cartography(path: Path, options: Options) -> Log:
    """Open a log of dataset cartography; its logits become loss and scores, see `score_logits`.

    Args:
        path: See `find_epochs`.
        options: Nothing is mapped by hand: the format says what everything is.

    Returns:
        The log.
    """
    epochs = find_epochs(path)
    mapped = dict.fromkeys(_SCORES, "logits_epoch_<X> and gold")
    mapped |= {"sample_id": "guid", "epoch": "the file's number", "label": "gold"}
    log = Log("cartography", [*epochs.values()], iter(()), mapped)
    gaps = sorted({*range(max(epochs) + 1)} - {*epochs}) if len(epochs) > 1 else []
    if gaps:
        log.notes.append(f"No file for epoch {', '.join(map(str, gaps[:20]))}.")
    log.chunks = _read(epochs, log)
    return log


def _read(epochs: dict[int, Path], log: Log) -> Iterator[tuple[str, Columns]]:
    n_classes: int | None = None
    for epoch, path in epochs.items():
        key = f"logits_epoch_{epoch}"
        rows: list[tuple[Any, list[float], int]] = []
        for number, record in iter_json_lines(path):
            where = f"{path}, line {number}"
            guid, logits, gold = _fields(record, key, where)
            n_classes = n_classes or len(logits)
            _check(logits, gold, n_classes, where)
            log.ignored += [n for n in record if n not in ("guid", key, "gold", *log.ignored)]
            rows.append((guid, logits, gold))
            if len(rows) == CHUNK_ROWS or len(rows) * n_classes >= _CHUNK_LOGITS:
                yield "samples", _columns(rows, epoch, path)
                rows = []
        if rows:
            yield "samples", _columns(rows, epoch, path)


def _fields(record: dict[str, Any], key: str, where: str) -> tuple[Any, list[Any], int]:
    if lacking := [name for name in ("guid", key, "gold") if name not in record]:
        raise TraceError(
            f"{where} lacks {', '.join(map(repr, lacking))}; it has "
            f"{', '.join(map(repr, [*record][:10]))}. Expected guid, {key} (the number is that in "
            "the file's name) and gold."
        )
    guid, logits, gold = record["guid"], record[key], record["gold"]
    if type(guid) not in (int, str):
        raise TraceError(f"{where}: 'guid' should be a whole number or text, but is {guid!r}.")
    if type(gold) is not int:
        raise TraceError(f"{where}: 'gold' should be the number of a class, but is {gold!r}.")
    if not isinstance(logits, list) or not {type(z) for z in logits} <= {int, float, type(None)}:
        raise TraceError(f"{where}: {key!r} should be a list of numbers.")
    return guid, logits, gold


def _check(logits: list[Any], gold: int, n_classes: int, where: str) -> None:
    if len(logits) != n_classes or n_classes < 2:
        raise TraceError(
            f"{where} has {len(logits)} logits, where {max(n_classes, 2)} were expected: one for "
            "each class, the same number in every line."
        )
    if not 0 <= gold < n_classes:
        raise TraceError(f"{where}: 'gold' is {gold}, but there are {n_classes} classes, from 0.")


def _columns(rows: list[tuple[Any, list[float], int]], epoch: int, path: Path) -> Columns:
    guids, logits, golds = zip(*rows, strict=True)
    if str in {type(guid) for guid in guids}:
        guids = tuple(map(str, guids))
    labels = np.array(golds)
    try:
        scores = score_logits(np.array(logits, dtype=np.float64), labels)
    except OverflowError:
        raise TraceError(f"{path}: a logit is beyond the range of numbers.") from None
    keys = {"sample_id": list(guids), "epoch": np.full(len(rows), epoch), "label": labels}
    return {**keys, **scores}
