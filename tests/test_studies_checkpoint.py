"""A run that is killed goes on from its checkpoint, to the same bits, and each row is read once."""

import numpy as np
import pytest
import torch

from dynamics import open_run
from dynamics.datasets import open_dataset
from probes import FisherTrace, GradNorm, Recorder, SampleLoss
from studies.lab import checkpoint
from studies.lab.data import to_tensors
from studies.lab.train import Recipe, train

RECIPE = Recipe(epochs=6, lr=0.1, batch_size=32, lr_decay=0.9, weight_decay=1e-3)


class Killed(BaseException):
    """Stands in for a SIGKILL: nothing in the product catches it."""


@pytest.fixture(scope="module")
def digits(deterministic_torch):
    return to_tensors(open_dataset("digits"))[0].take(np.arange(100))


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 0)


def run(out, data, die_in=None, recipe=RECIPE, ends_after=None, batch=1):
    """Train a network with dropout, whose rate changes at epoch 3; die in a batch of an epoch."""
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Dropout(0.5)]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 10))
    probes = [SampleLoss(), FisherTrace(data=(data.images, data.labels))]
    resume = (out / "run.json").exists()
    recorder = Recorder(out, model, probes, resume=resume)
    seen = []

    def before(epoch, optimizer):
        seen.append(epoch)
        if epoch == 3:
            for group in optimizer.param_groups:
                group["lr"] *= 2
        return data

    def after(epoch):
        recorder.record("draw", torch.rand(()).item())  # from torch's global generator
        return epoch == ends_after

    if die_in is not None:
        observe, calls = recorder.observe, [0]

        def dying(*arguments, **named):
            observe(*arguments, **named)
            calls[0] += recorder.epoch == die_in
            if calls[0] > batch:
                recorder.flush()  # so that rows past the checkpoint are there, to be fenced off
                raise Killed

        recorder.observe = dying
    with recorder:
        n = train(model, data, recipe, recorder, before_epoch=before, after_epoch=after)
    return model, n, seen


def same(path, other):
    first, again = open_run(path), open_run(other)
    assert again.ended_cleanly
    assert not again.samples(repeats=True).duplicated(["epoch", "sample_id"]).any()
    assert again.samples(repeats=True).equals(first.samples(repeats=True))
    assert again.scalars().equals(first.scalars())


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, *run(out, digits)


@pytest.mark.parametrize("die_in", [1, 3, 4, 5])
def test_a_run_goes_on_from_its_last_epoch_to_the_same_bits(
    uninterrupted, digits, tmp_path, die_in
):
    path, model, n, _ = uninterrupted
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(out, digits, die_in)
    assert (out / "checkpoint.pt").exists()
    again, n_again, seen = run(out, digits)
    assert seen == [*range(die_in, 6)]  # no epoch before it was trained again
    assert n == n_again == 6
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    same(path, out)
    assert not (out / "checkpoint.pt").exists()


def test_a_run_killed_twice_and_one_that_ends_early(digits, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(whole, digits, ends_after=4)
    for die_in in (2, 4):
        with pytest.raises(Killed):
            run(out, digits, die_in, ends_after=4)
    _, n, seen = run(out, digits, ends_after=4)
    assert (n, seen) == (5, [4])
    same(whole, out)


def test_without_a_checkpoint_a_run_starts_again(uninterrupted, digits, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(out, digits, die_in=0)
    assert not (out / "checkpoint.pt").exists()
    _, _, seen = run(out, digits)
    assert seen == [*range(6)]
    same(uninterrupted[0], out)


def test_none_is_saved_before_its_time(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "INTERVAL_S", 3600)
    with pytest.raises(Killed):
        run(tmp_path / "run", digits, die_in=4)
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_what_a_kill_while_saving_leaves_is_passed_over_and_removed(
    uninterrupted, digits, tmp_path
):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        run(out, digits, die_in=2)
    (out / ".tmp-checkpoint.pt-0123abcd").write_bytes(b"half a checkpoi")
    run(out, digits)
    same(uninterrupted[0], out)
    assert not list(out.glob(".tmp-*"))


def test_the_checkpoint_loads_without_unpickling_code_and_that_of_another_run_is_refused(
    digits, tmp_path
):
    for name in ("run", "other"):
        with pytest.raises(Killed):
            run(tmp_path / name, digits, die_in=2)
    path = tmp_path / "run/checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    assert {"model", "optimizer", "schedule", "generator", "torch", "recorder"} == {*saved}
    path.write_bytes((tmp_path / "other/checkpoint.pt").read_bytes())
    with pytest.raises(ValueError, match="checkpoint is of run"):
        run(tmp_path / "run", digits)


def test_per_sample_gradients_go_on_too(digits, tmp_path):
    def run_mlp(out, die_in=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        resume = (out / "run.json").exists()
        with Recorder(out, model, [SampleLoss(), GradNorm()], resume=resume) as recorder:

            def after(epoch):
                if epoch == die_in:
                    raise Killed
                return False

            train(model, digits, Recipe(epochs=4), recorder, after_epoch=after)

    run_mlp(tmp_path / "whole")
    with pytest.raises(Killed):
        run_mlp(tmp_path / "run", die_in=2)
    run_mlp(tmp_path / "run")
    same(tmp_path / "whole", tmp_path / "run")
