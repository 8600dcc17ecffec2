"""Scores of the logits against their plain formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dynamics import open_run
from probes import Recorder, SampleLoss
from probes.sample_loss import score_logits

LOGITS = [[2.0, 1.0, -1.0], [0.0, 3.0, 3.0], [-50.0, 0.0, 50.0], [1.0, 1.0, 1.0]]
LABELS = [0, 1, 0, 2]


def plain_scores(z, y):
    """One sample, Python floats."""
    top = max(z)
    exponentials = [math.exp(value - top) for value in z]
    p = [value / sum(exponentials) for value in exponentials]
    residual = [value - (j == y) for j, value in enumerate(p)]
    predicted = z.index(top)
    return {
        "margin": z[y] - max(value for j, value in enumerate(z) if j != y),
        "p_true": p[y],
        "el2n": math.sqrt(sum(r * r for r in residual)),
        "predicted": predicted,
        "correct": int(predicted == y),
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores_are_those_of_the_formulas(dtype):
    scores = score_logits(torch.tensor(LOGITS, dtype=dtype), torch.tensor(LABELS))
    for i, (z, y) in enumerate(zip(LOGITS, LABELS, strict=True)):
        for name, expected in plain_scores(z, y).items():
            rel = 1e-12 if dtype is torch.float64 else 1e-5
            assert scores[name][i].item() == pytest.approx(expected, rel=rel, abs=1e-20), name


LOGIT = st.floats(-30, 30)
BATCH = st.integers(2, 6).flatmap(
    lambda c: st.lists(
        st.tuples(st.lists(LOGIT, min_size=c, max_size=c), st.integers(0, c - 1)), min_size=1
    )
)


@given(BATCH)
def test_identities(batch):
    z = torch.tensor([row for row, _ in batch], dtype=torch.float64)
    y = torch.tensor([label for _, label in batch])
    before = z.clone()
    scores = score_logits(z, y)
    residual = z.softmax(1) - F.one_hot(y, z.shape[1])
    torch.testing.assert_close(scores["el2n"], residual.norm(dim=1))
    torch.testing.assert_close(
        residual.abs().sum(1), 2 * (1 - scores["p_true"]), atol=1e-12, rtol=0
    )
    assert ((scores["margin"] > 0) <= (scores["correct"] == 1)).all()
    assert ((scores["margin"] < 0) <= (scores["correct"] == 0)).all()
    assert (scores["el2n"] <= math.sqrt(2) + 1e-12).all()
    torch.testing.assert_close(-scores["p_true"].log(), F.cross_entropy(z, y, reduction="none"))
    assert torch.equal(z, before)


@given(BATCH, st.floats(-5, 5), st.randoms(use_true_random=False))
def test_a_shift_changes_nothing_and_a_permutation_of_classes_permutes(batch, shift, random):
    z = torch.tensor([row for row, _ in batch], dtype=torch.float64)
    y = torch.tensor([label for _, label in batch])
    order = list(range(z.shape[1]))
    random.shuffle(order)
    scores = score_logits(z, y)
    moved = score_logits((z + shift)[:, order], torch.tensor(order).argsort()[y])
    for name in ("margin", "p_true", "el2n"):
        torch.testing.assert_close(moved[name], scores[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits(dtype, tmp_path):
    z = torch.tensor(LOGITS, dtype=dtype)
    y = torch.tensor(LABELS)
    with Recorder(tmp_path / "run", torch.nn.Linear(1, 1), [SampleLoss()]) as recorder:
        recorder.observe(torch.arange(4, dtype=dtype), torch.arange(4), logits=z, labels=y)
    rows = open_run(tmp_path / "run").samples()
    expected = score_logits(z.double(), y)
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, rtol=1e-5, atol=1e-20)
    assert rows["loss"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("given_names", [(), ("logits",), ("labels",)])
def test_without_logits_and_labels_only_the_loss_is_recorded(given_names, tmp_path):
    extra = {"logits": torch.tensor(LOGITS), "labels": torch.tensor(LABELS, dtype=torch.int32)}
    extra = {name: extra[name] for name in given_names}
    with Recorder(tmp_path / "run", torch.nn.Linear(1, 1), [SampleLoss()]) as recorder:
        recorder.observe(torch.arange(4.0), torch.arange(4), **extra)
    rows = open_run(tmp_path / "run").samples()
    assert rows["loss"].tolist() == [0, 1, 2, 3]
    for name in ("margin", "p_true", "el2n", "predicted", "correct"):
        assert rows[name].isna().all(), name


def test_stored_values_are_those_before_the_update(tmp_path):
    model = torch.nn.Linear(3, 3)
    x, y = torch.eye(3), torch.arange(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        logits = model(x)
        expected = score_logits(logits.clone(), y)
        losses = F.cross_entropy(logits, y, reduction="none")
        recorder.observe(losses, y, logits=logits, labels=y)
        kept = losses.tolist()
        losses.sum().backward()
        optimizer.step()
    rows = open_run(tmp_path / "run").samples()
    assert rows["loss"].tolist() == kept
    for name, values in expected.items():
        assert rows[name].tolist() == values.tolist(), name
