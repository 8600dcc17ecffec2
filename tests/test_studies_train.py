"""The studies' networks, data and training loop."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from dynamics import open_run
from dynamics.datasets import open_dataset
from probes import Recorder, SampleLoss
from studies.lab.data import to_tensors
from studies.lab.models import SmallCNN, build_mlp
from studies.lab.train import Recipe, predict, record_accuracy, shuffled_batches, train

RECIPE = Recipe(epochs=15, lr=0.1, batch_size=32)


@pytest.fixture(scope="module")
def digits(deterministic_torch):
    return open_dataset("digits")


def train_on_digits(out, digits, recipe=RECIPE, **kwargs):
    """An MLP trained on the first 200 digits: it, its data, and the number of epochs."""
    torch.manual_seed(0)
    model = build_mlp(64, [32], 10)
    data = to_tensors(digits)[0].take(np.arange(200))
    with Recorder(out, model, [SampleLoss()]) as recorder:
        n_epochs = train(model, data, recipe, recorder, **kwargs)
    return model, data, n_epochs


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    return path, *train_on_digits(path, digits)


@pytest.mark.parametrize("hidden", [[], [7], [7, 5]])
def test_an_mlp_has_the_asked_layers(hidden):
    model = build_mlp(12, hidden, 3)
    widths = [12, *hidden, 3]
    linear = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [*pairwise(widths)]
    assert model(torch.randn(5, 1, 3, 4)).shape == (5, 3)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 8)])
def test_a_small_cnn_maps_images_to_logits(channels, size):
    model = SmallCNN(channels, size, 10, width=4)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 10)
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_tensors_are_channels_first_and_standardised_by_the_training_set(digits):
    train_set, test_set = to_tensors(digits)
    assert train_set.images.shape == (1500, 1, 8, 8)
    assert test_set.images.shape == (297, 1, 8, 8)
    assert abs(train_set.images.mean().item()) < 1e-5
    assert abs(train_set.images.std().item() - 1) < 1e-5
    raw = digits.x_test[5].astype(np.float32) / 16
    mean, std = (digits.x_train / 16).mean(), (digits.x_train / 16).std(ddof=1)
    np.testing.assert_allclose(test_set.images[5, 0], (raw - mean) / std, atol=1e-5)
    np.testing.assert_array_equal(train_set.labels, digits.y_train)


def test_taking_and_relabelling_leave_the_data_alone(digits):
    train_set, _ = to_tensors(digits)
    taken = train_set.take(np.array([5, 3]))
    torch.testing.assert_close(taken.images, train_set.images[[5, 3]])
    other = taken.relabelled(np.array([9, 9]))
    assert other.labels.tolist() == [9, 9]
    assert taken.labels.tolist() == digits.y_train[[5, 3]].tolist()


def test_every_epoch_presents_every_row_once_in_another_order():
    generator = torch.Generator().manual_seed(0)
    first, second = (list(shuffled_batches(10, 4, generator)) for _ in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == [*range(10)]
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_digits_are_learned_and_every_presentation_is_recorded_once(trained):
    path, model, data, n_epochs = trained
    assert n_epochs == 15
    assert (predict(model, data) == data.labels).double().mean() >= 0.95
    run = open_run(path)
    rows = run.samples(columns=["step", "loss", "correct"], repeats=True)
    assert len(rows) == 15 * 200
    assert not rows.duplicated(["epoch", "sample_id"]).any()
    assert set(rows["sample_id"]) == {*range(200)}
    assert rows["loss"].notna().all()
    assert rows["step"].max() == 15 * 7 - 1
    assert run.ended_cleanly
    means = rows.groupby("epoch")["loss"].mean()
    assert means.iloc[-1] < means.iloc[0] / 5


def test_training_twice_gives_the_same_bits(trained, digits, tmp_path):
    path, model, _, _ = trained
    again, _, _ = train_on_digits(tmp_path / "run", digits)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    first, second = (open_run(p).samples() for p in (path, tmp_path / "run"))
    assert first.equals(second)


def test_the_recipes_seed_is_the_order_of_the_samples(trained, digits, tmp_path):
    _, model, _, _ = trained
    other, _, _ = train_on_digits(tmp_path / "run", digits, Recipe(15, 0.1, 0.9, 0.0, 32, 1))
    assert not torch.equal(next(model.parameters()), next(other.parameters()))


def test_after_epoch_is_asked_after_each_epoch_and_true_stops(digits, tmp_path):
    asked = []

    def stop(epoch):
        asked.append(epoch)
        return epoch == 2

    _, _, n_epochs = train_on_digits(tmp_path / "run", digits, after_epoch=stop)
    assert n_epochs == 3
    assert asked == [0, 1, 2]
    run = open_run(tmp_path / "run")
    assert sorted(run.samples()["epoch"].unique()) == [0, 1, 2]
    assert run.events()["name"].tolist().count("epoch_end") == 3
    assert run.ended_cleanly


def test_sample_ids_given_are_the_ones_recorded(digits, tmp_path):
    ids = torch.arange(200) * 3 + 1
    train_on_digits(tmp_path / "run", digits, Recipe(epochs=1), sample_ids=ids)
    rows = open_run(tmp_path / "run").samples(columns=["loss"])
    assert rows["sample_id"].tolist() == ids.tolist()


def test_predictions_are_in_eval_mode_in_order_and_the_mode_is_restored(digits):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(64, 10))
    data = to_tensors(digits)[1]
    model.train()
    predicted = predict(model, data, batch_size=100)
    assert model.training
    assert not predicted.requires_grad
    assert torch.equal(predicted, model.eval()(data.images).argmax(1))


def test_an_accuracy_is_recorded_with_its_binomial_error(tmp_path):
    with Recorder(tmp_path / "run", torch.nn.Linear(2, 2), []) as recorder:
        predicted, labels = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])
        assert record_accuracy(recorder, "test", predicted, labels) == 0.75
    (row,) = open_run(tmp_path / "run").scalars("accuracy").to_dict("records")
    assert (row["block"], row["value"], row["n"]) == ("test", 0.75, 4)
    assert row["stderr"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_weights_multiply_each_loss_and_are_recorded(digits, tmp_path):
    """Weight 0 on half of the samples trains on the other half alone, at half the rate."""
    recipe = Recipe(epochs=1, lr=0.1, momentum=0.0, batch_size=200)
    weights = (torch.arange(200) % 2).float()
    weighted, data, _ = train_on_digits(tmp_path / "run", digits, recipe, weights=weights)
    torch.manual_seed(0)
    other = build_mlp(64, [32], 10)
    half = data.take(np.arange(1, 200, 2))
    loss = torch.nn.functional.cross_entropy(other(half.images), half.labels) / 2
    loss.backward()
    for ours, theirs in zip(weighted.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs - 0.1 * theirs.grad, atol=1e-6, rtol=1e-5)
    recorded = open_run(tmp_path / "run").samples(columns=["weight"])["weight"]
    assert sorted(recorded.unique()) == [0, 1]


def test_before_epoch_chooses_what_is_trained_on_and_may_change_the_optimiser(digits, tmp_path):
    """At rate 0 nothing changes, whatever is shown."""
    shown = []

    def before_epoch(epoch, optimizer):
        optimizer.param_groups[0]["lr"] = 0.0
        shown.append(epoch)
        return to_tensors(digits)[0].take(np.arange(200)).relabelled(np.full(200, 3))

    recipe = Recipe(epochs=2, lr=0.1)
    model, _, _ = train_on_digits(tmp_path / "run", digits, recipe, before_epoch=before_epoch)
    torch.manual_seed(0)
    start = build_mlp(64, [32], 10)
    assert shown == [0, 1]
    for ours, theirs in zip(model.parameters(), start.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    p_true = open_run(tmp_path / "run").samples(columns=["loss", "p_true"])
    assert p_true["p_true"].to_numpy() == pytest.approx(np.exp(-p_true["loss"]), rel=1e-4)
