"""Gives every sample the number by which the trace knows it."""

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset, IterableDataset


class _WithSampleIds(Dataset[Any]):
    """A map-style data set whose items end with their index."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset does not declare __len__

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if isinstance(item, Mapping):
            return {**item, "sample_id": index}
        return (*item, index) if isinstance(item, tuple | list) else (item, index)


def with_sample_ids(dataset: Dataset[Any]) -> Dataset[Any]:
    """Wrap a data set so that each item also carries its `sample_id`, its index in that set.

    `(x, y)` becomes `(x, y, sample_id)`; a mapping gets the key `sample_id`. Wrap the *full*
    training set, and take a `Subset` of the result, so that ids stay those of the full set.

    Args:
        dataset: A map-style data set, with `__len__` and integer indices.

    Returns:
        A data set of the same length.

    Raises:
        TypeError: If the data set has no length or no indexing, so its samples have no index.
    """
    is_map = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or not is_map:
        raise TypeError(
            f"with_sample_ids needs a map-style data set with __len__ and __getitem__, but got "
            f"{type(dataset).__name__}. Let an iterable data set yield a stable integer id of its "
            "own with each item, and pass that to observe."
        )
    return _WithSampleIds(dataset)
