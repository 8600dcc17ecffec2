"""Ids of samples: those of the full set through every way to take or join parts; of streams."""

import copy

import pytest
import torch
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from probes import stable_id, with_sample_ids

A = TensorDataset(torch.arange(5) * 10)
B = TensorDataset(torch.arange(4) * 10 + 1)


def ids_of(dataset):
    return [int(dataset[i][-1]) for i in range(len(dataset))]


@pytest.mark.parametrize(
    ("dataset", "ids"),
    [
        (A, [0, 1, 2, 3, 4]),
        (Subset(A, [4, 0]), [4, 0]),
        (Subset(Subset(A, [4, 0, 2]), [2, 1]), [2, 0]),
        (ConcatDataset([A, B]), [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (ConcatDataset([Subset(B, [3]), A]), [3, 4, 5, 6, 7, 8]),
        (ConcatDataset([Subset(A, [1, 2]), Subset(A, [0])]), [1, 2, 0]),  # one set, split twice
        (Subset(ConcatDataset([A, Subset(B, [2, 0])]), [6, 5, 4]), [5, 7, 4]),
        (Subset(A, torch.tensor([2, 3])), [2, 3]),
    ],
)
def test_ids_are_those_of_the_full_sets(dataset, ids):
    assert ids_of(with_sample_ids(dataset)) == ids


def test_the_copy_in_a_loaders_worker_finds_the_same_ids():
    data = with_sample_ids(ConcatDataset([Subset(B, [3, 1]), A]))
    assert ids_of(copy.deepcopy(data)) == ids_of(data) == [3, 1, 4, 5, 6, 7, 8]


def test_a_column_of_datasets_survives_what_is_done_to_the_set():
    datasets = pytest.importorskip("datasets")
    data = with_sample_ids(datasets.Dataset.from_dict({"text": list("abcde")}))
    assert data["sample_id"][:] == [0, 1, 2, 3, 4]
    taken = data.shuffle(seed=1).select(range(3)).filter(lambda row: row["text"] != "a")
    assert [("abcde")[i] for i in taken["sample_id"]] == taken["text"][:]
    assert with_sample_ids(taken) is taken


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"url": f"u{i}"} for i in range(3))


class SizedStream(Stream):
    def __len__(self):
        return 3


def test_a_stream_is_numbered_by_the_hash_of_its_key():
    data = with_sample_ids(Stream(), key=lambda item: item["url"])
    first, again = ([item["sample_id"] for item in data] for _ in range(2))
    assert first == again == [stable_id(f"u{i}") for i in range(3)]
    assert not hasattr(data, "__len__")
    assert len(with_sample_ids(SizedStream(), key=lambda item: item["url"])) == 3
    assert isinstance(data, IterableDataset)


def test_a_set_with_indices_may_be_numbered_by_key_too():
    data = with_sample_ids(Subset(A, [4, 0]), key=lambda item: int(item[0]))
    assert ids_of(data) == [stable_id(40), stable_id(0)]


def test_stable_ids_are_these_for_good():
    """Known values: an id that changes between versions would join the wrong rows."""
    assert stable_id("sample") == stable_id(b"sample") == 1098524644558800646
    assert stable_id(7) == stable_id("7")
    assert all(0 <= stable_id(i) < 2**63 for i in range(1000))
    assert len({stable_id(i) for i in range(1000)}) == 1000
    assert max(stable_id(i) for i in range(1000)) > 2**62
