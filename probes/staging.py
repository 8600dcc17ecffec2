"""Gathers rows on the device and hands them to the trace writer a few thousand at a time.

Nothing is read back per sample or per step: batches are concatenated on the device, arithmetic that
probes have put off is done for all of them, and the results are copied to pinned memory without
waiting; the writer's thread waits for the copy. On the CPU that thread does the arithmetic too.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dynamics.traces import TraceWriter
from probes.batch import ObservedBatch
from probes.roster import LabelLedger

_ROWS_PER_TRANSFER = 16_384
_BYTES_PER_TRANSFER = 2**21  # of logits and the like, which are wider than a row of the trace

Key = TypeVar("Key")

Piece = tuple[str, Sequence[int]]
"""Name of a column, and the batches that a tensor holds it for."""


class Staging:
    """Rows on their way from the device to the writer.

    Args:
        writer: Where they go.
        ledger: Gathers the roster from the batches' labels; None if a roster was given.
        seen: Also told the rows, as columns on the host, in the writer's thread.
    """

    def __init__(
        self,
        writer: TraceWriter,
        ledger: LabelLedger | None,
        seen: Callable[[Mapping[str, np.ndarray]], None] = lambda columns: None,
    ) -> None:
        self.writer = writer
        self._ledger = ledger
        self._seen = seen
        self._batches: list[ObservedBatch] = []
        self._n_rows = self._n_bytes = 0

    def add(self, batch: ObservedBatch) -> None:
        """Take a finished batch; its columns are final."""
        self._batches.append(batch)
        self._n_rows += len(batch)
        self._n_bytes += sum(t.nbytes for kept in batch.later.values() for t in kept)
        if self._n_rows >= _ROWS_PER_TRANSFER or self._n_bytes >= _BYTES_PER_TRANSFER:
            self.drain()

    def drain(self) -> None:
        """Send everything gathered so far to the writer."""
        batches, self._batches, self._n_rows, self._n_bytes = self._batches, [], 0, 0
        if not batches:
            return
        on_device = not all(batch.losses.is_cpu for batch in batches)
        arrive = copy_to_host(gather(batches)) if on_device else None

        def rows() -> dict[str, dict[str, np.ndarray]]:
            pieces = (arrive or copy_to_host(gather(batches)))()
            columns = assemble(batches, pieces)
            self._seen(columns)
            label = columns.pop("label", None)
            if self._ledger is None or label is None:
                return {"samples": columns}
            known = ~np.ma.getmaskarray(label)
            new = self._ledger.first_seen(columns["sample_id"][known], np.asarray(label)[known])
            return {"samples": columns, "roster": new}

        self.writer.append_later(rows)


def gather(batches: Sequence[ObservedBatch]) -> dict[Piece, Tensor]:
    """Concatenate what batches hold, and do the arithmetic that was put off.

    Args:
        batches: Finished batches.

    Returns:
        The columns in pieces, for not every batch has every column.
    """
    pieces: dict[Piece, Tensor] = {}
    for names, group in itertools.groupby(range(len(batches)), lambda i: tuple(batches[i].columns)):
        indices = tuple(group)
        for name in names:
            pieces[name, indices] = torch.cat([batches[i].columns[name] for i in indices])
    for arithmetic in dict.fromkeys(f for batch in batches for f in batch.later):
        kept = {i: b.later[arithmetic] for i, b in enumerate(batches) if arithmetic in b.later}
        for indices in _of_one_shape(kept):
            for name, values in arithmetic([kept[i] for i in indices]).items():
                pieces[name, indices] = values
    return pieces


def _of_one_shape(kept: Mapping[int, Sequence[Tensor]]) -> Iterator[tuple[int, ...]]:
    for _, run in itertools.groupby(kept, lambda i: [(t.shape[1:], t.dtype) for t in kept[i]]):
        yield tuple(run)


def copy_to_host(tensors: Mapping[Key, Tensor]) -> Callable[[], dict[Key, np.ndarray]]:
    """Start copying tensors to the host.

    Args:
        tensors: Tensors by name; floating ones arrive as float32.

    Returns:
        A function that waits for the copies, and only then returns them as arrays.
    """
    copies: dict[Key, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if tensor.is_cuda:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies[name] = host.copy_(tensor, non_blocking=True)
        else:
            copies[name] = tensor
    stream = torch.cuda.current_stream() if any(t.is_cuda for t in tensors.values()) else None
    event = None if stream is None else stream.record_event()

    def arrive() -> dict[Key, np.ndarray]:
        if event is not None:
            event.synchronize()
        return {name: tensor.numpy() for name, tensor in copies.items()}

    return arrive


def assemble(
    batches: Sequence[ObservedBatch], pieces: Mapping[Piece, np.ndarray]
) -> dict[str, np.ndarray]:
    """Put pieces together to columns over the rows of all batches.

    Args:
        batches: The batches.
        pieces: Values by column and batches.

    Returns:
        Columns by name, masked where a batch does not have them.
    """
    sizes = [len(batch) for batch in batches]
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    columns: dict[str, np.ndarray] = {}
    for (name, indices), values in pieces.items():
        if len(indices) == len(batches):
            columns[name] = values
            continue
        if name not in columns:
            empty = np.zeros(sum(sizes), values.dtype)
            columns[name] = np.ma.array(empty, mask=True)
        columns[name][np.concatenate([rows[i] for i in indices])] = values
    for name in ("step", "epoch", "bits"):
        columns[name] = np.repeat([getattr(batch, name) for batch in batches], sizes)
    status = np.ma.filled(columns.get("status", np.int32(0)), 0)
    columns["status"] = (status | columns.pop("bits")).astype(np.int32)
    return columns
