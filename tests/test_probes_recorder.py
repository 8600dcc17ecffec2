"""The recorder changes nothing about training, and writes what the loop did."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks

from dynamics import open_run
from dynamics.traces import Status
from probes import FisherTrace, GradNorm, Probe, Recorder, SampleLoss, WeightEffect, every

N, D, C = 24, 5, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % C


def make_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, C))


def all_probes():
    return [
        SampleLoss(),
        GradNorm(every(steps=2), blocks=True),
        FisherTrace(every(steps=3), data=(X, Y)),
        FisherTrace(data=X, kind="mc", draws=2),
        WeightEffect({"train": (X, Y)}),
    ]


def batches(seed, size=8):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    return order.split(size)


def cross_entropy(model, ids):
    logits = model(X[ids])
    return logits, F.cross_entropy(logits, Y[ids], reduction="none")


def train(model, optimizer, recorder=None, n_epochs=17, seed=0):
    """Three steps an epoch; returns the losses as {(epoch, sample_id): loss}."""
    seen = {}
    for epoch in range(n_epochs) if recorder is None else recorder.epochs(n_epochs):
        for ids in batches(seed + epoch):
            logits, losses = cross_entropy(model, ids)
            seen |= {(epoch, int(i)): loss for i, loss in zip(ids, losses.tolist(), strict=True)}
            if recorder is not None:
                recorder.observe(losses, ids, logits=logits, labels=Y[ids])
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            np.random.rand()  # noqa: NPY002 (training may use the global generators)
            random.random()
    return seen


def seed_everything():
    torch.manual_seed(11)
    np.random.seed(12)  # noqa: NPY002
    random.seed(13)


def test_training_is_bit_identical_with_and_without_probes(tmp_path):
    ends = []
    for recorded in (False, True):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        seed_everything()
        if recorded:
            with Recorder(tmp_path / "run", model, all_probes()) as recorder:
                train(model, optimizer, recorder)
        else:
            train(model, optimizer)
        state = (torch.get_rng_state(), np.random.get_state()[1].tolist())  # noqa: NPY002
        ends.append((list(model.parameters()), *state, random.getstate()))
    (plain, torch_plain, numpy_plain, python_plain), (seen, torch_seen, numpy_seen, python_seen) = (
        ends
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))
    assert torch.equal(torch_plain, torch_seen)
    assert numpy_plain == numpy_seen
    assert python_plain == python_seen
    assert open_run(tmp_path / "run").samples()["grad_norm"].notna().any()


def footprint(model):
    """Attributes and hooks of the model, its modules and parameters."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[name, key] = len(value) if "hooks" in key and value is not None else None
    for name, parameter in model.named_parameters():
        found |= {(name, key): None for key in vars(parameter)}
        found[name, "hooks"] = len(parameter._backward_hooks or {})
        found[name, "post"] = len(getattr(parameter, "_post_accumulate_grad_hooks", None) or {})
    return found


@pytest.mark.parametrize("ending", ["end", "error in the loop", "error in backward"])
def test_nothing_is_left_on_the_model(ending, tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, hooks_before = footprint(model), len(_global_optimizer_post_hooks)

    def run():
        with Recorder(tmp_path / "run", model, all_probes()) as recorder:
            assert footprint(model) != before
            assert len(_global_optimizer_post_hooks) == hooks_before + 1
            train(model, optimizer, recorder, n_epochs=2)
            if ending == "error in the loop":
                raise KeyError("stop")
            if ending == "error in backward":
                _, losses = cross_entropy(model, torch.arange(4))
                recorder.observe(losses, torch.arange(4))
                losses.backward()  # not a scalar

    if ending == "end":
        run()
    else:
        with pytest.raises((KeyError, RuntimeError)):
            run()
    assert footprint(model) == before
    assert len(_global_optimizer_post_hooks) == hooks_before


def test_nothing_is_left_when_a_probe_refuses_to_attach(tmp_path):
    model = make_model()
    before, hooks_before = footprint(model), len(_global_optimizer_post_hooks)

    class Refuses(Probe):
        def attach(self, model):
            raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        Recorder(tmp_path / "run", model, [GradNorm(), Refuses()]).__enter__()
    assert footprint(model) == before
    assert len(_global_optimizer_post_hooks) == hooks_before


def test_one_row_per_epoch_and_sample(tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        seen = train(model, optimizer, recorder, n_epochs=4)
    run = open_run(tmp_path / "run")
    rows = run.samples()
    assert list(zip(rows["epoch"], rows["sample_id"], strict=True)) == sorted(seen)
    assert rows["loss"].tolist() == [np.float32(seen[key]) for key in sorted(seen)]
    assert (rows["step"] // 3 == rows["epoch"]).all()
    assert rows["step"].max() == 11
    assert (rows["occurrence"] == 0).all()
    assert (rows["status"] == 0).all()
    assert run.ended_cleanly
    events = run.events()
    assert events["name"].tolist() == ["epoch_end"] * 4
    assert events["epoch"].tolist() == [0, 1, 2, 3]
    assert events["step"].tolist() == [3, 6, 9, 12]


def test_a_single_batch_without_epochs_is_recorded(tmp_path):
    model, ids = make_model(), torch.arange(4)
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        _, losses = cross_entropy(model, ids)
        recorder.observe(losses, ids)
        losses.mean().backward()
    run = open_run(tmp_path / "run")
    assert run.samples()["loss"].tolist() == losses.tolist()
    assert run.ended_cleanly


def test_eval_batches_have_no_backward_bit(tmp_path):
    model = make_model()
    with Recorder(tmp_path / "run", model, [SampleLoss(), GradNorm()]) as recorder:
        for ids in torch.arange(N).split(6):
            with torch.no_grad():
                logits, losses = cross_entropy(model, ids)
            recorder.observe(losses, ids, logits=logits, labels=Y[ids])
        ids = torch.arange(100, 104)
        losses = F.cross_entropy(model(X[:4]), Y[:4], reduction="none")
        recorder.observe(losses, ids)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["status"].tolist() == [int(Status.NO_BACKWARD)] * N + [0] * 4
    assert rows["loss"].notna().all()
    assert rows["grad_norm"].notna().tolist() == [False] * N + [True] * 4
    assert rows["weight"].notna().tolist() == [False] * N + [True] * 4


def test_many_batches_without_backward_are_kept(tmp_path):
    model = make_model()
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder, torch.no_grad():
        for i in range(150):
            recorder.observe(torch.full((2,), float(i)), torch.tensor([2 * i, 2 * i + 1]))
    rows = open_run(tmp_path / "run").samples()
    assert rows["loss"].tolist() == [i // 2 for i in range(300)]


def test_roster_from_observed_labels(tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, [SampleLoss()]) as recorder:
        train(model, optimizer, recorder, n_epochs=2)
    roster = open_run(tmp_path / "run").roster()
    pd.testing.assert_index_equal(roster.index, pd.RangeIndex(N), exact=False, check_names=False)
    assert roster["label"].tolist() == Y.tolist()
    assert roster["true_label"].isna().all()


def test_an_interrupted_run_says_so(tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run():
        with Recorder(tmp_path / "run", model, [SampleLoss(), GradNorm()]) as recorder:
            train(model, optimizer, recorder, n_epochs=1)
            for ids in (torch.arange(8), torch.arange(8, 16)):
                _, losses = cross_entropy(model, ids)
                recorder.observe(losses, 100 + ids)
                if ids[0] == 8:
                    raise KeyboardInterrupt("Ctrl-C")  # before its backward pass
                losses.mean().backward()

    with pytest.raises(KeyboardInterrupt):
        run()
    run = open_run(tmp_path / "run")
    assert not run.ended_cleanly
    last = run.events().iloc[-1]
    assert (last["name"], last["subject"], last["detail"]) == (
        "interrupted",
        "KeyboardInterrupt",
        "Ctrl-C",
    )
    rows = run.samples().set_index("sample_id")
    assert len(rows) == N + 16
    assert rows["loss"].notna().all()
    assert rows.loc[range(108, 116), "status"].tolist() == [int(Status.NO_BACKWARD)] * 8
    assert rows.loc[range(100, 108), "status"].tolist() == [0] * 8
