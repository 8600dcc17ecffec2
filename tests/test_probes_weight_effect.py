"""What importance weights do, against sums over the samples."""

import json
import math

import numpy as np
import pytest
import torch
from cases import cross_entropy
from reference import grad_norms
from torch import nn

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss, WeightEffect, every

N, D, C = 8, 4, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(2))
Y = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 5.0])
SAMPLE_WEIGHTS = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0, 1.0, 0.25, 4.0])
ORDER = torch.tensor([3, 0, 6, 4, 7, 2, 1, 5])


@pytest.fixture
def model():
    return nn.Linear(D, C)


def record(out, model, probes, weights, *, given, size=4, n_epochs=1):
    """Without updates, so that every norm is known beforehand."""
    with Recorder(out, model, probes) as recorder:
        for _ in recorder.epochs(n_epochs):
            for ids in ORDER.split(size):
                logits = model(X[ids])
                losses = cross_entropy(logits, Y[ids])
                extra = {"weights": weights[ids]} if given else {}
                recorder.observe(losses, ids, logits=logits, labels=Y[ids], **extra)
                (weights[ids] * losses).mean().backward()
    return open_run(out)


def scalars(run, name, epoch=0):
    rows = run.scalars(name).query(f"epoch == {epoch}").set_index("block")
    return rows


def expected_share(values):
    """Each class's share of a sum, with the linearised standard error of a ratio."""
    shares = {}
    for c in range(C):
        mine = (c == Y).double().numpy()
        share = (values * mine).sum() / values.sum()
        stderr = math.sqrt((values**2 * (mine - share) ** 2).sum()) / values.sum()
        shares[f"class {c}"] = (share, stderr)
    return shares


def assert_shares(rows, values):
    expected = expected_share(np.asarray(values, dtype=float))
    assert set(rows.index) == set(expected)
    for block, (share, stderr) in expected.items():
        assert rows.loc[block, "value"] == pytest.approx(share, rel=1e-5), block
        assert rows.loc[block, "stderr"] == pytest.approx(stderr, rel=1e-4), block
        assert rows.loc[block, "n"] == N
    assert rows["value"].sum() == pytest.approx(1)


def assert_effects(run, model, weights):
    norms = grad_norms(model, X, Y, cross_entropy)["total"]
    assert_shares(scalars(run, "weight_share"), weights)
    assert_shares(scalars(run, "weighted_gradient_share"), weights.double() * norms)
    size = scalars(run, "effective_sample_size").loc["total"]
    w = weights.double()
    assert size["value"] == pytest.approx((w.sum() ** 2 / w.square().sum()).item(), rel=1e-5)
    assert size["n"] == N


PROBES = {
    "last": lambda **kwargs: [SampleLoss(), GradNorm(), WeightEffect(**kwargs)],
    "first": lambda **kwargs: [WeightEffect(**kwargs), GradNorm(), SampleLoss()],
}


@pytest.mark.parametrize("order", PROBES)
def test_class_weights(order, model, tmp_path):
    probes = PROBES[order](class_weights=CLASS_WEIGHTS)
    run = record(tmp_path / "run", model, probes, CLASS_WEIGHTS[Y], given=False)
    assert_effects(run, model, CLASS_WEIGHTS[Y])
    rows = run.samples()
    assert rows["weight"].tolist() == CLASS_WEIGHTS[Y].tolist()


@pytest.mark.parametrize("order", PROBES)
def test_weights_given_to_observe(order, model, tmp_path):
    run = record(tmp_path / "run", model, PROBES[order](), SAMPLE_WEIGHTS, given=True)
    zero = SAMPLE_WEIGHTS == 0
    assert run.samples()["grad_norm"].isna().tolist() == zero.tolist()
    norms = grad_norms(model, X, Y, cross_entropy)["total"]
    w = SAMPLE_WEIGHTS.double()
    shares = scalars(run, "weighted_gradient_share")["value"]
    for c in range(C):
        expected = (w * norms)[c == Y].sum() / (w * norms).sum()
        assert shares[f"class {c}"] == pytest.approx(expected.item(), rel=1e-5)
    assert_shares(scalars(run, "weight_share"), SAMPLE_WEIGHTS)


def test_a_sample_of_weight_zero_has_no_part_in_the_gradient(model, tmp_path):
    run = record(tmp_path / "run", model, PROBES["last"](), SAMPLE_WEIGHTS, given=True)
    assert_effects(run, model, SAMPLE_WEIGHTS)


def test_weights_read_off_the_backward_pass(model, tmp_path):
    weights = SAMPLE_WEIGHTS + 0.5
    run = record(tmp_path / "run", model, PROBES["last"](), weights, given=False, size=N)
    assert_effects(run, model, weights / weights.mean())


def test_every_epoch_begins_anew(model, tmp_path):
    probes = PROBES["last"]()
    run = record(tmp_path / "run", model, probes, SAMPLE_WEIGHTS, given=True, n_epochs=2)
    for epoch in (0, 1):
        assert_shares(scalars(run, "weight_share", epoch), SAMPLE_WEIGHTS)
    assert scalars(run, "weight_share", -1).empty


def test_without_grad_norm_only_the_weights_are_summed(model, tmp_path):
    probes = [SampleLoss(), WeightEffect()]
    run = record(tmp_path / "run", model, probes, SAMPLE_WEIGHTS, given=True)
    assert set(run.scalars()["name"]) == {"weight_share", "effective_sample_size"}
    assert_shares(scalars(run, "weight_share"), SAMPLE_WEIGHTS)


def test_batches_without_a_backward_pass_do_not_count(model, tmp_path):
    probes = [WeightEffect(class_weights=CLASS_WEIGHTS)]
    with Recorder(tmp_path / "run", model, probes) as recorder:
        for _ in recorder.epochs(1):
            logits = model(X)
            losses = cross_entropy(logits, Y)
            recorder.observe(losses, torch.arange(N), logits=logits, labels=Y)
            losses.mean().backward()
            with torch.no_grad():  # a held-out batch of class 0
                logits = model(X)
                losses = cross_entropy(logits, torch.zeros(N).long())
            ids = torch.arange(N) + 100
            recorder.observe(losses, ids, logits=logits, labels=torch.zeros(N).long())
    assert_shares(scalars(open_run(tmp_path / "run"), "weight_share"), CLASS_WEIGHTS[Y])


@pytest.mark.parametrize("batch_size", [3, 100])
def test_predicted_fractions(batch_size, model, tmp_path):
    model = nn.Sequential(nn.Dropout(0.5), model)
    noise = torch.randn(40, D)
    evaluation = {"test": (X, Y), "noise": noise}
    probe = WeightEffect(evaluation, batch_size=batch_size, when=every(epochs=2))
    run = record(tmp_path / "run", model, [probe], SAMPLE_WEIGHTS, given=True, n_epochs=3)
    rows = run.scalars("predicted_frac")
    assert sorted(rows["epoch"].unique()) == [-1, 1]
    assert set(rows["mode"]) == {"eval"}
    rows = rows.query("epoch == 1").set_index("block")
    assert len(rows) == 2 * C
    model.eval()
    for name, inputs in (("test", X), ("noise", noise)):
        predicted = model(inputs).argmax(1)
        for c in range(C):
            row = rows.loc[f"{name}: class {c}"]
            n = len(inputs)
            fraction = (predicted == c).sum().item() / n
            assert row["value"] == fraction
            assert row["stderr"] == pytest.approx(math.sqrt(fraction * (1 - fraction) / n))
            assert row["n"] == n


def test_class_weights_of_the_wrong_length_are_refused(model, tmp_path):
    probe = WeightEffect(class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"class_weights for 2 classes.*logits have 3"):
        record(tmp_path / "run", model, [probe], SAMPLE_WEIGHTS, given=False)


def test_run_json_names_the_sets_and_weights(model, tmp_path):
    probe = WeightEffect({"noise": X}, class_weights=CLASS_WEIGHTS)
    run = record(tmp_path / "run", model, [probe], SAMPLE_WEIGHTS, given=False)
    (described,) = json.loads((run.path / "run.json").read_text())["probes"]
    assert described["evaluation"] == {"noise": N}
    assert described["class_weights"] == CLASS_WEIGHTS.tolist()
