"""Scalars of TensorBoard's event files, read with the package `tensorboard`, without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.traces.errors import CorruptTraceError, TraceError
from dynamics.traces.foreign.log import CHUNK_ROWS, Log, Options
from dynamics.traces.rows import Columns

MAX_FILES = 10_000
"""Most event files of a folder."""


def find_events(path: Path) -> list[Path]:
    """Event files at a path, below it if it is a folder, in order of name."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*tfevents*") if p.is_file())[: MAX_FILES + 1]


def open_tensorboard(path: Path, options: Options) -> Log:
    """Open the scalars of event files.

    A tag becomes the name of a scalar, or what `columns` maps to it: `name` or `name:block`, such
    as `{"accuracy:test": "val/acc"}`. Files in folders below the path have the folder's name as
    `block` if nothing else is said. Other summaries, such as images, are ignored by name.

    Args:
        path: An event file, or a folder with some in it or below it.
        options: Names of tags, and how many steps make an epoch: event files number values by
            one counter and do not say of what.

    Returns:
        The log.

    Raises:
        TraceError: If `steps_per_epoch` was not given, or the package is not installed.
    """
    files = find_events(path)
    if not files or len(files) > MAX_FILES:
        raise TraceError(f"{path} holds {len(files)} event files; expected 1 to {MAX_FILES:,}.")
    if not options.steps_per_epoch:
        raise TraceError(
            f"{path} numbers its values by steps and does not say of what. Say how many of its "
            "steps make an epoch: --steps-per-epoch K, with 1 if its steps are epochs."
        )
    log = Log("tensorboard", files, iter(()))
    log.mapped = {"step": "step", "epoch": f"step // {options.steps_per_epoch}"}
    log.chunks = _read(path, files, options, log)
    return log


def _read(
    path: Path, files: list[Path], options: Options, log: Log
) -> Iterator[tuple[str, Columns]]:
    names = {tag: name for name, tag in options.columns.items() if tag}
    left_out = {name for name, tag in options.columns.items() if not tag}
    found: set[str] = set()
    rows: list[tuple[int, str, str, float]] = []
    for file in files:
        below = "" if path.is_file() else str(file.parent.relative_to(path)).strip(".")
        for step, tag, value in _iter_scalars(file, log):
            if tag in left_out or value is None:
                log.ignored += [] if tag in log.ignored else [tag]
                continue
            found.add(tag)
            name, _, block = names.get(tag, tag.replace(":", "_")).partition(":")
            log.mapped[f"{name}:{block or below}" if block or below else name] = tag
            rows.append((step, name, block or below or "total", value))
            if len(rows) == CHUNK_ROWS:
                yield "scalars", _columns(rows, options.steps_per_epoch or 1)
                rows = []
    absent = sorted({*names} - found)
    if absent and not options.one_of_several:
        raise TraceError(
            f"{path} has no scalar with the tag {', '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, sorted(found)))}."
        )
    if rows:
        yield "scalars", _columns(rows, options.steps_per_epoch or 1)


def _columns(rows: list[tuple[int, str, str, float]], steps_per_epoch: int) -> Columns:
    steps, names, blocks, values = zip(*rows, strict=True)
    step = np.array(steps, dtype=np.int64)
    return {
        "step": step,
        "epoch": step // steps_per_epoch,
        "name": list(names),
        "block": list(blocks),
        "value": np.array(values, dtype=np.float64),
    }


def _iter_scalars(path: Path, log: Log) -> Iterator[tuple[int, str, float | None]]:
    # Step, tag and value of every summary; no value if it is not a scalar.
    proto, tensors = _package()
    for record in _iter_records(path, log):
        try:
            event = proto.Event.FromString(record)
        except Exception as error:  # of protobuf's own type, by implementation
            raise CorruptTraceError(f"{path} holds a record that is no event: {error}.") from None
        for summary in event.summary.value:
            kind = summary.WhichOneof("value")
            value = None
            if kind == "simple_value":
                value = summary.simple_value
            elif kind == "tensor" and _is_scalar(summary):
                value = _scalar(tensors.make_ndarray, summary.tensor)
            yield event.step, summary.tag, value


def _is_scalar(summary: Any) -> bool:
    plugin = summary.metadata.plugin_data.plugin_name
    return plugin in ("", "scalars") and not summary.tensor.tensor_shape.dim


def _scalar(make_ndarray: Any, tensor: Any) -> float | None:
    try:
        return float(make_ndarray(tensor))
    except (TypeError, ValueError):
        return None


def _iter_records(path: Path, log: Log) -> Iterator[bytes]:
    # The package's own loader ends silently at a record that is cut short or damaged, so its
    # reader is asked directly.
    from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow

    reader = pywrap_tensorflow.PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return
        except errors.DataLossError as error:
            if "truncated" in str(error):
                log.notes.append(
                    f"{path.name} ends in the middle of a record: its writer was cut off, or is "
                    "still writing. All records before it were read."
                )
                return
            raise CorruptTraceError(
                f"{path} is damaged: the checksum of a record is wrong. Restore the file from a "
                "copy, or move it away to import the others without it."
            ) from None
        yield reader.record()


def _package() -> tuple[Any, Any]:
    try:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.util import tensor_util
    except ImportError:
        raise TraceError(
            "Event files are read with the package tensorboard, which is not installed: "
            "pip install 'training-dynamics[tensorboard]'."
        ) from None
    return event_pb2, tensor_util
