"""The fixed inputs that an extra-pass probe measures on."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from probes.neutral import preserved_randomness


class ProbeSet:
    """Inputs, and labels if there are any, stacked once and moved to the device batch by batch.

    Args:
        data: A pair of tensors (inputs, labels), a tensor of inputs, or a map-style data set whose
            items are an input or start with an input and a label. Read once, here, so a random
            augmentation in the data set is frozen. An integer after those, as `with_sample_ids`
            puts there, is the sample's id.
        probe: Name of the probe, for the error.

    Raises:
        TypeError: If the data are none of these.
        ValueError: If they are empty or of different lengths.
    """

    def __init__(self, data: Any, *, probe: str) -> None:
        with preserved_randomness(), torch.inference_mode(False):
            inputs, labels, sample_ids = _stack(data, probe)
            inputs, labels = _usable(inputs), None if labels is None else _usable(labels)
        if len(inputs) == 0 or (labels is not None and len(labels) != len(inputs)):
            n_labels = "no" if labels is None else len(labels)
            raise ValueError(
                f"{probe} needs at least one sample and as many labels as inputs in its data, but "
                f"got {len(inputs)} inputs and {n_labels} labels."
            )
        self.inputs: Tensor = inputs
        self.labels: Tensor | None = labels
        self.sample_ids: Tensor = torch.arange(len(inputs)) if sample_ids is None else sample_ids

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self, batch_size: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Inputs and labels in order.

        Args:
            batch_size: Samples per batch; the last may be smaller.
            device: Where the model is.

        Yields:
            Inputs, and labels or None.
        """
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            labels = None if self.labels is None else self.labels[rows].to(device)
            yield self.inputs[rows].to(device), labels

    def rows(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Some inputs and labels.

        Args:
            index: Which, shape (n,); repeats are fine.
            device: Where the model is.

        Returns:
            Inputs, and labels or None.
        """
        labels = None if self.labels is None else self.labels[index].to(device)
        return self.inputs[index].to(device), labels


def _usable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that a graph may save: inference tensors may not be saved."""
    return tensor.clone() if tensor.is_inference() else tensor


def _stack(data: Any, probe: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if isinstance(data, Tensor):
        return data, None, None
    if isinstance(data, Sequence) and len(data) == 2 and all(isinstance(d, Tensor) for d in data):
        return data[0], data[1], None
    if isinstance(data, Dataset) and hasattr(data, "__len__"):
        items = [data[index] for index in range(len(data))]
        if items and isinstance(items[0], tuple | list):
            inputs = torch.stack([torch.as_tensor(item[0]) for item in items])
            labels = torch.stack([torch.as_tensor(item[1]) for item in items])
            has_ids = len(items[0]) > 2 and isinstance(items[0][-1], int)
            return inputs, labels, torch.tensor([i[-1] for i in items]) if has_ids else None
        return torch.stack([torch.as_tensor(item) for item in items]), None, None
    raise TypeError(
        f"{probe} takes data=(inputs, labels), data=inputs, or a map-style data set of such items, "
        f"but got {type(data).__name__}."
    )
