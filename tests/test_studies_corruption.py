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


def test_class_dependent_noise_has_each_classs_rate_and_goes_to_the_next_two():
    labels = np.repeat(np.arange(5), 1000)
    noisy = corrupt_labels(labels, 0.4, kind="class-dependent", n_classes=5, seed=0)
    shift = (noisy - labels) % 5
    shares = [(shift[labels == c] > 0).mean() for c in range(5)]
    np.testing.assert_allclose(shares, [0.2, 0.3, 0.4, 0.5, 0.6])
    assert set(shift) == {0, 1, 2}
    assert (shift == 1).sum() / (shift > 0).sum() == pytest.approx(2 / 3, abs=0.03)


def test_with_the_true_class_included_a_tenth_of_the_drawn_labels_stays_right():
    labels = np.zeros(20_000, int)
    settings = {"kind": "symmetric", "n_classes": 10, "seed": 0}
    noisy = corrupt_labels(labels, 0.5, true_class="included", **settings)
    assert (noisy != labels).mean() == pytest.approx(0.45, abs=0.01)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"kind": "asymmetric", "true_class": "included"}, "Only symmetric"),
        ({"kind": "class-dependent", "ratio": 0.7}, "between 0 and 0.667"),
        ({"kind": "class-dependent", "n_classes": 2}, "at least 3 classes"),
        ({"true_class": "maybe"}, "excluded or included"),
    ],
)
def test_conventions_that_make_no_sense_are_refused(changed, text):
    settings = {"ratio": 0.2, "kind": "symmetric", "n_classes": 10, "seed": 0} | changed
    with pytest.raises(ValueError, match=text):
        corrupt_labels(np.array([0, 1]), **settings)
