"""Several processes record one run, are killed, and go on in another number."""

import numpy as np
import pytest
import torch
from ddp_training import EPOCHS, N, enter_only, make_loader, make_model, run_ranks, train
from processes import CONTEXT
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dynamics import open_run
from dynamics.traces import Status, TraceError, begin_attempt, create_run
from probes import launch
from probes.launch import bare, place_in_group

STEPS = {1: 5, 2: 3}  # in an epoch, by world size


def assert_each_sample_once_an_epoch(run, padded_epochs):
    rows = run.samples(repeats=True)
    first = rows[rows["occurrence"] == 0]
    keys = list(zip(first["epoch"], first["sample_id"], strict=True))
    assert keys == [(e, i) for e in range(EPOCHS) for i in range(N)]
    repeats = rows[rows["occurrence"] > 0]
    assert repeats["epoch"].tolist() == padded_epochs
    assert (repeats["status"] == int(Status.REPEAT)).all()
    assert (first["status"] == 0).all()
    assert first[["loss", "grad_norm", "margin"]].notna().all(axis=None)
    assert len(run.samples()) == N * EPOCHS


def single_process_losses():
    """The same batches in one process: the gradient is the mean over ranks."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loaders = [make_loader(rank, 2) for rank in range(2)]
    losses = {}
    for epoch in range(EPOCHS):
        for _, sampler in loaders:
            sampler.set_epoch(epoch)
        for batches in zip(*(loader for loader, _ in loaders), strict=True):
            total = torch.zeros(())
            for x, y, sample_id in batches:
                values = F.cross_entropy(model(x), y, reduction="none")
                for i, value in zip(sample_id.tolist(), values.tolist(), strict=True):
                    losses.setdefault((epoch, i), value)  # lowest step, then rank
                total = total + values.mean() / 2
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses


@pytest.mark.ddp
def test_two_processes_record_what_one_would(tmp_path):
    folder = tmp_path / "run"
    assert run_ranks(2, train, folder, tmp_path / "checkpoint", None, ()) == [0, 0]
    run = open_run(folder)
    assert_each_sample_once_an_epoch(run, padded_epochs=[0, 1, 2])
    rows = run.samples()
    expected = single_process_losses()
    found = [expected[key] for key in zip(rows["epoch"], rows["sample_id"], strict=True)]
    np.testing.assert_allclose(rows["loss"], found, rtol=1e-5)
    assert rows["step"].max() == STEPS[2] * EPOCHS - 1
    assert run.ended_cleanly
    assert [(a.attempt, a.world_size) for a in run.attempts] == [(0, 2)]
    # What is measured on the network, and the roster, is there once and not once a rank.
    assert run.scalars("fisher_trace").query("block == 'total'")["epoch"].tolist() == [-1, 0, 1, 2]
    assert run.events()["name"].tolist() == ["epoch_end"] * EPOCHS
    assert len(run.parts("roster")) == 1
    assert run.roster()["label"].tolist() == [i % 3 for i in range(N)]


@pytest.mark.ddp
@pytest.mark.crash
@pytest.mark.parametrize(("before", "after", "dying"), [(2, 1, (1,)), (1, 2, (0,)), (2, 2, (0, 1))])
def test_killed_and_resumed_in_another_number(tmp_path, before, after, dying):
    folder, checkpoint = tmp_path / "run", tmp_path / "checkpoint"
    codes = run_ranks(before, train, folder, checkpoint, STEPS[before] + 1, dying)
    assert [code == -9 for code in codes] == [rank in dying for rank in range(before)]
    run = open_run(folder)
    assert not run.ended_cleanly
    assert (run.samples()["epoch"] == 1).any()  # recorded, and to be left out
    assert run_ranks(after, train, folder, checkpoint, None, ()) == [0] * after
    run = open_run(folder)
    padded = [0] * (before - 1) + [1, 2] * (after - 1)
    assert_each_sample_once_an_epoch(run, padded)
    assert run.ended_cleanly
    assert [a.world_size for a in run.attempts] == [before, after]
    assert run.attempts[1].from_step == STEPS[before]
    assert run.scalars("fisher_trace").query("block == 'total'")["epoch"].tolist() == [-1, 0, 1, 2]


@pytest.mark.ddp
def test_what_rank_0_refuses_every_rank_refuses(tmp_path):
    run_folder = tmp_path / "run"
    create_run(run_folder, {})
    (run_folder / "samples" / "rank-00000").mkdir(parents=True)
    (run_folder / "samples" / "rank-00000" / "part-0.parquet").touch()
    answers = CONTEXT.Queue()
    assert run_ranks(2, enter_only, run_folder, answers) == [0, 0]
    found = sorted(answers.get(timeout=10) for _ in range(2))
    assert [(rank, kind) for rank, kind, _ in found] == [(0, "TraceError"), (1, "TraceError")]
    assert all("already holds a run" in text for _, _, text in found)


def test_processes_of_one_launch_share_an_attempt_and_others_do_not(tmp_path):
    folder = tmp_path / "run"
    create_run(folder, {})
    where = {"from_step": 7, "from_epoch": 1, "world_size": 2}
    assert begin_attempt(folder, **where, launch="a") == 0
    assert begin_attempt(folder, **where, launch="a") == 0
    assert begin_attempt(folder, **where, launch="b") == 1
    assert begin_attempt(folder, **where, launch="a") == 0  # fenced, and its writer is told so
    assert begin_attempt(folder, **where) == 2
    assert begin_attempt(folder, **where) == 3


@pytest.mark.parametrize("other", [{"from_step": 8}, {"from_epoch": 0}, {"world_size": 3}])
def test_processes_that_start_from_different_places_are_refused(tmp_path, other):
    folder = tmp_path / "run"
    create_run(folder, {})
    where = {"from_step": 7, "from_epoch": 1, "world_size": 2, "launch": "a"}
    begin_attempt(folder, **where)
    with pytest.raises(TraceError, match="same checkpoint in every process"):
        begin_attempt(folder, **where | other)


def test_without_a_process_group_there_is_one_process():
    assert place_in_group() == (0, 1)


def test_wrappers_are_taken_off(monkeypatch):
    class Wrapper(DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    inner = nn.Linear(2, 2)
    assert bare(inner) is inner
    assert bare(torch.compile(inner, backend="eager")) is inner
    assert bare(torch.compile(Wrapper(inner), backend="eager")) is inner
    assert bare(Wrapper(torch.compile(inner, backend="eager"))) is inner


def test_a_rank_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    def tell(told, src):
        told[0] = ("id", "launch", None)

    monkeypatch.setattr(launch, "place_in_group", lambda: (1, 2))
    monkeypatch.setattr(launch.dist, "broadcast_object_list", tell)
    with pytest.raises(TraceError, match=r"Rank 1 does not see .* one shared folder"):
        launch.open_launch(tmp_path / "run", resume=False, describe=dict)
