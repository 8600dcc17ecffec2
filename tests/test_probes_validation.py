"""What a loop hands over wrongly is refused, and what was recorded before stays."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate

from dynamics import open_run
from dynamics.traces import Status
from probes import FisherTrace, Recorder, SampleLoss, with_sample_ids

N, D, C = 6, 5, 3
X = torch.linspace(-1, 1, N * D).reshape(N, D)
Y = torch.arange(N) % C
IDS = torch.arange(N)
ROSTER = {"label": Y.numpy()}


@pytest.fixture
def model():
    return nn.Linear(D, C)


def observe(recorder, model, ids=IDS, **changes):
    logits = model(X)
    given = {"logits": logits, "labels": Y}
    losses = F.cross_entropy(logits, Y, reduction="none")
    reduce = changes.pop("reduce", lambda losses: losses)
    recorder.observe(reduce(losses), ids, **(given | changes))
    losses.mean().backward()


LABEL_3 = torch.tensor([0, 1, 3, 0, 1, 2])
WRONG = {
    "scalar loss": ({"reduce": torch.mean}, r"one loss per sample.*reduction='none'"),
    "loss matrix": ({"reduce": lambda ls: ls.unsqueeze(1)}, r"shape \(6, 1\)"),
    "ids too short": ({"ids": IDS[:-1]}, r"`sample_id` has shape \(5,\).*6 losses"),
    "ids as column": ({"ids": IDS.unsqueeze(1)}, r"`sample_id` has shape \(6, 1\)"),
    "labels too long": ({"labels": torch.zeros(7).long()}, r"`labels` has shape \(7,\)"),
    "one-hot labels": ({"labels": F.one_hot(Y)}, r"`labels` has shape \(6, 3\)"),
    "weights too short": ({"weights": torch.ones(2)}, r"`weights` has shape \(2,\)"),
    "logits of another batch": ({"logits": torch.ones(5, C)}, r"`logits` has shape \(5, 3\)"),
    "one logit": ({"logits": torch.ones(N, 1)}, r"C ≥ 2"),
    "logits of a sequence": ({"logits": torch.ones(N, 2, C)}, r"`logits` has shape"),
    "float ids": ({"ids": IDS.float()}, r"`sample_id` must be integers.*float32"),
    "float labels": ({"labels": Y.float()}, r"`labels` must be integers"),
    "label too large": ({"labels": LABEL_3}, r"Label 3 at position 2.*3 classes"),
    "label negative": ({"labels": Y - 1}, r"Label -1 at position 0"),
    "label negative without logits": ({"labels": Y - 1, "logits": None}, r"-1"),
    "id beyond the roster": ({"ids": IDS + 1}, r"sample_id 6 is out of range.*6 samples"),
    "id negative": ({"ids": IDS - 1}, r"sample_id -1 is out of range"),
    "id repeated": ({"ids": torch.tensor([0, 1, 2, 2, 4, 2])}, r"sample_id 2 comes 3 times"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_batches_are_refused_and_earlier_rows_stay(wrong, model, tmp_path):
    changes, message = WRONG[wrong]

    def run():
        with Recorder(tmp_path / "run", model, [SampleLoss()], roster=ROSTER) as recorder:
            for _ in recorder.epochs(2):
                observe(recorder, model)
                observe(recorder, model, **changes)

    with pytest.raises(ValueError, match=message):
        run()
    run = open_run(tmp_path / "run")
    rows = run.samples()
    assert rows["sample_id"].tolist() == IDS.tolist()
    assert rows["loss"].notna().all()
    assert run.events()["name"].tolist() == ["interrupted"]


def test_without_a_roster_negative_ids_are_refused(model, tmp_path):
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        observe(recorder, model, ids=IDS + 10**9)
        with pytest.raises(ValueError, match="sample_id -1 is out of range"):
            observe(recorder, model, ids=IDS - 1)


def test_a_roster_with_gaps_in_any_order_knows_its_ids(model, tmp_path):
    ids = torch.tensor([0, 50, 20, 30, 40, 5])
    roster = {"sample_id": ids.numpy(), "label": Y.numpy()}
    with Recorder(tmp_path / "run", model, [SampleLoss()], roster=roster) as recorder:
        observe(recorder, model, ids=ids)
        with pytest.raises(ValueError, match="sample_id 1 is out of range"):
            observe(recorder, model, ids=IDS)
    stored = open_run(tmp_path / "run").roster()
    assert stored.loc[ids.tolist(), "label"].tolist() == Y.tolist()


@pytest.mark.parametrize(
    ("roster", "message"),
    [
        ({"labels": [0]}, "no column 'labels'"),
        ({"true_label": [0]}, "needs a column `label`"),
        ({"label": [0, 1], "group": [0]}, "differ in length: label 2, group 1"),
        ({"label": [0.5]}, "must be integers"),
        ({"label": [0, 1], "sample_id": [3, 3]}, "each once"),
        ({"label": [0, 1], "sample_id": [-1, 3]}, "non-negative"),
    ],
)
def test_wrong_rosters_are_refused(roster, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        Recorder(tmp_path / "run", model, [SampleLoss()], roster=roster)


def test_repeats_are_accepted_when_announced(model, tmp_path):
    ids = torch.tensor([0, 1, 2, 2, 4, 2])
    with Recorder(tmp_path / "run", model, [SampleLoss()], repeats=True) as recorder:
        observe(recorder, model, ids=ids)
    run = open_run(tmp_path / "run")
    rows = run.samples(repeats=True)
    assert rows["sample_id"].tolist() == [0, 1, 2, 2, 2, 4]
    assert rows["occurrence"].tolist() == [0, 0, 0, 1, 2, 0]
    repeat = int(Status.REPEAT)
    assert rows["status"].tolist() == [0, 0, 0, repeat, repeat, 0]
    assert run.samples()["sample_id"].tolist() == [0, 1, 2, 4]


def test_a_nan_loss_is_missing_with_a_bit_and_an_event(model, tmp_path):
    ids = IDS + 4
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        for epoch in recorder.epochs(3):
            losses = F.cross_entropy(model(X), Y, reduction="none")
            if epoch == 1:
                losses = losses.where(ids != 7, torch.nan)
            recorder.observe(losses, ids)
            losses.mean().backward()
    run = open_run(tmp_path / "run")
    rows = run.samples()
    nan = (rows["epoch"] == 1) & (rows["sample_id"] == 7)
    assert rows["loss"].isna().tolist() == nan.tolist()
    assert rows["status"].tolist() == (nan * int(Status.NON_FINITE_LOSS)).tolist()
    (event,) = run.events().query("name == 'non_finite'").itertuples()
    assert (event.epoch, event.subject) == (1, "loss")
    assert "sample 7" in event.detail


def test_observe_outside_of_the_recorder_is_refused(model, tmp_path):
    recorder = Recorder(tmp_path / "run", model, [SampleLoss()])
    with pytest.raises(RuntimeError, match="outside of `with Recorder"):
        observe(recorder, model)
    with recorder:
        observe(recorder, model)
    with pytest.raises(RuntimeError, match="outside of `with Recorder"):
        observe(recorder, model)


def test_an_epoch_schedule_without_epochs_is_refused(model, tmp_path):
    message = r"every\(epochs=1\).*recorder.epochs.*every\(steps=k"
    with (
        Recorder(tmp_path / "run", model, [FisherTrace(data=X)]) as recorder,
        pytest.raises(ValueError, match=message),
    ):
        observe(recorder, model)


# with_sample_ids


class Items(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return self.make(index)


@pytest.mark.parametrize(
    ("make", "item"),
    [
        (lambda i: (i * 10, "y"), (30, "y", 3)),
        (lambda i: [i * 10, "y"], (30, "y", 3)),
        (lambda i: i * 10, (30, 3)),
        (lambda i: {"x": i * 10}, {"x": 30, "sample_id": 3}),
    ],
)
def test_items_end_with_their_index(make, item):
    dataset = with_sample_ids(Items(make))
    assert len(dataset) == 5
    assert dataset[3] == item


def test_single_tensors_and_subsets_keep_the_ids_of_the_full_set():
    (x,) = TensorDataset(X)[4]
    item = with_sample_ids(Items(lambda i: X[i]))[4]
    assert torch.equal(item[0], x)
    assert item[1] == 4
    subset = Subset(with_sample_ids(TensorDataset(X, Y)), [5, 0, 3])
    _, _, ids = default_collate([subset[i] for i in range(3)])
    assert ids.tolist() == [5, 0, 3]
    assert ids.dtype == torch.int64


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(5)


class SizedStream(Stream):
    def __len__(self):
        return 5


@pytest.mark.parametrize("stream", [Stream, SizedStream])
def test_iterable_sets_have_no_index(stream):
    with pytest.raises(TypeError, match=f"map-style.*{stream.__name__}"):
        with_sample_ids(stream())
