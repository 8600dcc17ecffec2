"""Gives every sample the number by which the trace knows it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

Key = Callable[[Any], str | bytes | int]
"""From an item to what names it for good: a file name, a URL, a text, a number."""


class _WithSampleIds(Dataset[Any]):
    """A map-style data set whose items end with their id."""

    def __init__(self, dataset: Dataset[Any], key: Key | None) -> None:
        self.dataset = dataset
        self._key = key
        # A table, as sets are told apart by identity, which a copy in a loader's worker has not.
        is_part = isinstance(dataset, Subset | ConcatDataset) and key is None
        self._ids = _root_ids(dataset, {}) if is_part else None

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset does not declare __len__

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if self._key is not None:
            return _labelled(item, stable_id(self._key(item)))
        return _labelled(item, index if self._ids is None else int(self._ids[index]))


class _StreamWithSampleIds(IterableDataset[Any]):
    """An iterable data set whose items end with the hash of their key."""

    def __init__(self, dataset: Dataset[Any], key: Key) -> None:
        self.dataset = dataset
        self._key = key

    def __iter__(self) -> Iterator[Any]:
        for item in self.dataset:  # type: ignore[attr-defined]  # it is an IterableDataset
            yield _labelled(item, stable_id(self._key(item)))


class _SizedStreamWithSampleIds(_StreamWithSampleIds):
    """The same of a stream that knows its length."""

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # checked by with_sample_ids


def with_sample_ids(dataset: Any, *, key: Key | None = None) -> Any:
    """Give each item of a data set its `sample_id`.

    `(x, y)` becomes `(x, y, sample_id)`; a mapping gets the key `sample_id`, and a data set of
    Hugging Face `datasets` gets that column, which then survives `select`, `shuffle` and `map`.

    The id is the item's index in the full training set: a `Subset` is looked through to the set
    that it was taken from, and parts of a `ConcatDataset` are numbered one after the other, each
    set once, however many parts were taken from it. So it does not matter whether the full set is
    wrapped, or a split of it.

    A stream has no index. Give its `key`; the id is then `stable_id(key(item))`, the same in every
    epoch, process and run.

    Args:
        dataset: A map-style data set, a data set of `datasets`, or, with `key`, an iterable one.
        key: What names an item for good, in place of its index.

    Returns:
        A data set of the same kind and length.

    Raises:
        TypeError: If the data set has no indices and no key is given.
    """
    if hasattr(dataset, "add_column") and hasattr(dataset, "column_names") and key is None:
        known = "sample_id" in dataset.column_names
        return dataset if known else dataset.add_column("sample_id", list(range(len(dataset))))
    is_map = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if is_map and not isinstance(dataset, IterableDataset):
        return _WithSampleIds(dataset, key)
    if key is None:
        raise TypeError(
            f"with_sample_ids needs a map-style data set with __len__ and __getitem__, but got "
            f"{type(dataset).__name__}. Say what names an item of a stream for good, "
            "with_sample_ids(dataset, key=lambda item: item['url']), or let it yield a stable "
            "integer id of its own with each item, and pass that to observe."
        )
    sized = hasattr(dataset, "__len__")
    return _SizedStreamWithSampleIds(dataset, key) if sized else _StreamWithSampleIds(dataset, key)


def stable_id(key: str | bytes | int) -> int:
    """Id of a sample that has a name but no index: 63 bits of its BLAKE2b hash.

    The same in every process and on every machine, unlike `hash`. Among n samples, two share an id
    with probability about n² / 2⁶⁴: 5e-6 for ten million.

    Args:
        key: A file name, a URL, the sample itself as text or bytes, or a number.

    Returns:
        From 0 to 2⁶³ − 1.
    """
    content = key if isinstance(key, bytes) else str(key).encode()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _labelled(item: Any, sample_id: int) -> Any:
    if isinstance(item, Mapping):
        return {**item, "sample_id": sample_id}
    return (*item, sample_id) if isinstance(item, tuple | list) else (item, sample_id)


def _root_ids(dataset: Any, starts: dict[int, tuple[int, int]]) -> Tensor:
    """Ids of all items; `starts` holds the first id of each full set and the one after its last."""
    if isinstance(dataset, Subset):
        return _root_ids(dataset.dataset, starts)[torch.as_tensor(dataset.indices).long()]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([_root_ids(part, starts) for part in dataset.datasets])
    if id(dataset) not in starts:
        start = max((end for _, end in starts.values()), default=0)
        starts[id(dataset)] = start, start + len(dataset)
    return torch.arange(*starts[id(dataset)])
