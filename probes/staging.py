"""Gathers rows on the device and hands them to the trace writer a few thousand at a time.

Nothing is read back per sample or per step: batches are concatenated on the device and copied to
pinned memory without waiting, and the writer's thread waits for the copy.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from dynamics.traces import TraceWriter
from probes.batch import ObservedBatch
from probes.roster import LabelLedger

_ROWS_PER_TRANSFER = 16_384


class Staging:
    """Rows on their way from the device to the writer.

    Args:
        writer: Where they go.
        ledger: Gathers the roster from the batches' labels; None if a roster was given.
    """

    def __init__(self, writer: TraceWriter, ledger: LabelLedger | None) -> None:
        self.writer = writer
        self._ledger = ledger
        self._batches: list[ObservedBatch] = []
        self._n_rows = 0

    def add(self, batch: ObservedBatch) -> None:
        """Take a finished batch; its columns are final."""
        if self._batches and self._batches[-1].columns.keys() != batch.columns.keys():
            self.drain()
        self._batches.append(batch)
        self._n_rows += len(batch)
        if self._n_rows >= _ROWS_PER_TRANSFER:
            self.drain()

    def drain(self) -> None:
        """Send everything gathered so far to the writer."""
        batches, self._batches, self._n_rows = self._batches, [], 0
        if not batches:
            return
        sizes = [len(batch) for batch in batches]
        columns = {name: [b.columns[name] for b in batches] for name in batches[0].columns}
        arrive = copy_to_host({name: torch.cat(values) for name, values in columns.items()})
        known = {
            "step": np.repeat([batch.step for batch in batches], sizes),
            "epoch": np.repeat([batch.epoch for batch in batches], sizes),
        }

        def rows() -> dict[str, dict[str, np.ndarray]]:
            arrays = arrive()
            label = arrays.pop("label", None)
            if self._ledger is None or label is None:
                return {"samples": known | arrays}
            new = self._ledger.first_seen(arrays["sample_id"], label)
            return {"samples": known | arrays, "roster": new}

        self.writer.append_later(rows)


def copy_to_host(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, np.ndarray]]:
    """Start copying tensors to the host.

    Args:
        tensors: Tensors by name; floating ones arrive as float32.

    Returns:
        A function that waits for the copies, and only then returns them as arrays.
    """
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if tensor.is_cuda:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies[name] = host.copy_(tensor, non_blocking=True)
        else:
            copies[name] = tensor
    stream = torch.cuda.current_stream() if any(t.is_cuda for t in tensors.values()) else None
    event = None if stream is None else stream.record_event()

    def arrive() -> dict[str, np.ndarray]:
        if event is not None:
            event.synchronize()
        return {name: tensor.numpy() for name, tensor in copies.items()}

    return arrive
