"""Label noise: exactly the asked share, never the true class, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies.lab.corruption import corrupt_labels

kinds = st.sampled_from(["symmetric", "asymmetric"])


@st.composite
def noise(draw):
    n_classes = draw(st.integers(2, 12))
    labels = draw(st.lists(st.integers(0, n_classes - 1), max_size=60))
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8]))
    settings = {"kind": draw(kinds), "n_classes": n_classes, "seed": draw(st.integers(0, 2**32))}
    return np.array(labels, dtype=dtype), draw(st.floats(0, 1)), settings


@given(noise())
def test_exactly_the_asked_number_changes_to_another_class(case):
    labels, ratio, settings = case
    before = labels.copy()
    noisy = corrupt_labels(labels, ratio, **settings)
    changed = noisy != labels
    assert changed.sum() == round(ratio * len(labels))
    assert noisy.shape == labels.shape
    assert noisy.dtype == np.int64
    assert ((noisy >= 0) & (noisy < settings["n_classes"])).all()
    if settings["kind"] == "asymmetric":
        following = (labels.astype(np.int64) + 1) % settings["n_classes"]
        assert (noisy[changed] == following[changed]).all()
    np.testing.assert_array_equal(labels, before)
    assert not np.shares_memory(labels, noisy)


@given(noise())
def test_the_same_seed_gives_the_same_labels(case):
    labels, ratio, settings = case
    first = corrupt_labels(labels, ratio, **settings)
    np.testing.assert_array_equal(corrupt_labels(labels, ratio, **settings), first)


def test_another_seed_gives_other_labels():
    labels = np.zeros(200, dtype=np.int64)
    drawn = [
        corrupt_labels(labels, 0.5, kind="symmetric", n_classes=10, seed=seed) for seed in (0, 1)
    ]
    assert (drawn[0] != drawn[1]).any()


def test_symmetric_noise_reaches_every_other_class_about_equally():
    labels = np.full(9_000, 4)
    noisy = corrupt_labels(labels, 1.0, kind="symmetric", n_classes=10, seed=0)
    counts = np.bincount(noisy, minlength=10)
    assert counts[4] == 0
    assert np.abs(np.delete(counts, 4) - 1_000).max() < 5 * np.sqrt(1_000)


def test_what_is_flipped_does_not_depend_on_the_class():
    labels = np.arange(10_000) % 10
    flipped = corrupt_labels(labels, 0.3, kind="symmetric", n_classes=10, seed=0) != labels
    assert np.abs(np.bincount(labels[flipped]) - 300).max() < 5 * np.sqrt(300)


@pytest.mark.parametrize(
    ("labels", "ratio", "kind", "n_classes", "message"),
    [
        ([0, 1], -0.1, "symmetric", 2, "between 0 and 1"),
        ([0, 1], 1.1, "symmetric", 2, "between 0 and 1"),
        ([0, 1], float("nan"), "symmetric", 2, "between 0 and 1"),
        ([0, 1], 0.5, "pairwise", 2, "symmetric, asymmetric"),
        ([0, 2], 0.5, "symmetric", 2, "n_classes is 2"),
        ([-1, 1], 0.5, "symmetric", 2, "Labels go from -1"),
        ([0, 0], 0.5, "symmetric", 1, "class"),
        ([0, 0], 0.5, "asymmetric", 1, "class"),
    ],
)
def test_what_cannot_be_is_refused(labels, ratio, kind, n_classes, message):
    with pytest.raises(ValueError, match=message):
        corrupt_labels(np.array(labels), ratio, kind=kind, n_classes=n_classes, seed=0)
