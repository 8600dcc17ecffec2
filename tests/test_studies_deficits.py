"""Deficits: what each leaves of the data, and that nothing else decides it than the seed."""

import pytest
import torch

from studies.lab.data import TensorData
from studies.lab.deficits import apply_deficit, blur, rename_classes

KINDS = ("none", "blur", "flip", "permutation", "random classes", "noise")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 1, 8, 8, generator=generator)
    return TensorData(images, torch.arange(200) % 10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_and_the_data_are_left_alone(data, kind):
    images, labels = data.images.clone(), data.labels.clone()
    state = torch.random.get_rng_state()
    first, again = (apply_deficit(data, kind, n_classes=10, seed=3) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(data.images, images)
    assert torch.equal(data.labels, labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.images.shape == images.shape


def test_blur_keeps_what_is_flat_and_loses_what_is_fine(data):
    flat = torch.full((1, 3, 32, 32), 0.7)
    assert torch.allclose(blur(flat), flat)
    checks = torch.ones(1, 1, 8, 8)
    checks[..., ::2, 1::2] = checks[..., 1::2, ::2] = -1
    assert blur(checks).abs().max() < 1e-6
    assert torch.equal(apply_deficit(data, "blur", n_classes=10).labels, data.labels)
    with pytest.raises(ValueError, match="at least that wide, got 2×2"):
        blur(torch.zeros(1, 1, 2, 2))


def test_flip_turns_images_upside_down(data):
    flipped = apply_deficit(data, "flip", n_classes=10).images
    assert torch.equal(flipped[:, :, 0], data.images[:, :, -1])
    assert torch.equal(flipped.flip(2), data.images)


def test_a_permutation_renames_every_class_and_each_by_itself(data):
    renamed = apply_deficit(data, "permutation", n_classes=10, seed=1)
    assert torch.equal(renamed.images, data.images)
    pairs = set(zip(data.labels.tolist(), renamed.labels.tolist(), strict=True))
    assert len(pairs) == 10
    assert len({new for _, new in pairs}) == 10
    assert all(old != new for old, new in pairs)


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_no_class_keeps_its_name(n_classes):
    for seed in range(20):
        new = rename_classes(n_classes, torch.Generator().manual_seed(seed))
        assert sorted(new.tolist()) == list(range(n_classes))
        assert (new != torch.arange(n_classes)).all()


def test_random_classes_and_noise_know_nothing_of_the_data(data):
    labels = apply_deficit(data, "random classes", n_classes=10, seed=1).labels
    agreeing = (labels == data.labels).double().mean()
    assert 0.02 < agreeing < 0.25
    noise = apply_deficit(data, "noise", n_classes=10, seed=1)
    assert torch.equal(noise.labels, data.labels)
    together = torch.corrcoef(torch.stack([noise.images.ravel(), data.images.ravel()]))[0, 1]
    assert abs(together) < 0.05
    assert not torch.equal(noise.images, apply_deficit(data, "noise", n_classes=10, seed=2).images)


def test_an_unknown_deficit_is_refused(data):
    with pytest.raises(ValueError, match="A deficit is one of none, blur, flip"):
        apply_deficit(data, "dark", n_classes=10)
