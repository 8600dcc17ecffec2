"""From arrays to the tensors that a network is trained on."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dynamics.datasets import Dataset, open_dataset


@dataclass(frozen=True)
class TensorData:
    """Standardised images, channels first, and labels.

    Attributes:
        images: Shape (N, channels, H, W), mean 0 and variance 1 over the training set.
        labels: Shape (N,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "TensorData":
        """The samples of the given rows."""
        index = torch.as_tensor(rows)
        return TensorData(self.images[index], self.labels[index])

    def relabelled(self, labels: np.ndarray) -> "TensorData":
        """The same images with other labels."""
        return TensorData(self.images, torch.as_tensor(labels))


@lru_cache(maxsize=2)
def load_dataset(source: str) -> Dataset:
    """Open a data set, once a process however many runs use it; its arrays are not to be changed.

    Args:
        source: What `open_dataset` takes.

    Returns:
        The data set.
    """
    return open_dataset(source)


@lru_cache(maxsize=2)
def describe_dataset(source: str) -> dict[str, str | int]:
    """What `run.json` says of the data that a run was trained on.

    Args:
        source: What `open_dataset` takes.

    Returns:
        Its source, fingerprint and largest pixel value.
    """
    dataset = load_dataset(source)
    return {"source": source, "sha256": dataset.fingerprint(), "peak": dataset.peak}


@lru_cache(maxsize=1)
def load_tensors(source: str) -> tuple[TensorData, TensorData]:
    """`to_tensors` of a data set, once a process; the tensors are not to be changed.

    Args:
        source: What `open_dataset` takes.

    Returns:
        Training set and test set.
    """
    return to_tensors(load_dataset(source))


def to_tensors(dataset: Dataset) -> tuple[TensorData, TensorData]:
    """Training and test set as tensors, both standardised by the training set's statistics.

    Args:
        dataset: Images as bytes.

    Returns:
        Training set and test set.
    """
    train = _channels_first(dataset.x_train, dataset.peak)
    test = _channels_first(dataset.x_test, dataset.peak)
    mean = train.mean((0, 2, 3), keepdim=True)
    std = train.std((0, 2, 3), keepdim=True)
    return (
        TensorData((train - mean) / std, torch.as_tensor(dataset.y_train.astype(np.int64))),
        TensorData((test - mean) / std, torch.as_tensor(dataset.y_test.astype(np.int64))),
    )


def _channels_first(images: np.ndarray, peak: int) -> Tensor:
    tensor = torch.tensor(images).float() / peak
    return tensor.unsqueeze(1) if tensor.dim() == 3 else tensor.permute(0, 3, 1, 2).contiguous()
