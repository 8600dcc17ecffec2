"""Training of 13 samples by one or more gloo processes, which may kill themselves on the way."""

import os
import signal
import tempfile

import torch
import torch.distributed as dist
from processes import CONTEXT
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from probes import FisherTrace, GradNorm, Recorder, SampleLoss, every, with_sample_ids

N, SIZE, EPOCHS = 13, 3, 3
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 3
ROSTER = {"label": Y.tolist()}


def make_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def make_loader(rank, world_size):
    data = with_sample_ids(TensorDataset(X, Y))
    sampler = DistributedSampler(data, num_replicas=world_size, rank=rank, seed=3)
    return DataLoader(data, batch_size=SIZE, sampler=sampler), sampler


def train(rank, world_size, store, folder, checkpoint, die_at, dying):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader, sampler = make_loader(rank, world_size)
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    network = DistributedDataParallel(model)
    probes = [SampleLoss(), GradNorm(), FisherTrace(every(epochs=1), data=X)]
    settings = {"roster": ROSTER, "resume": state is not None}
    with Recorder(folder, network, probes, **settings) as recorder:
        start = 0
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            recorder.load_state_dict(state["recorder"])
            start = state["recorder"]["epoch"] + 1
        for epoch in recorder.epochs(EPOCHS, start=start):
            sampler.set_epoch(epoch)
            for x, y, sample_id in loader:
                if recorder.step == die_at and rank in dying:
                    recorder.flush()  # rows past the checkpoint that a resume must leave out
                    os.kill(os.getpid(), signal.SIGKILL)
                logits = network(x)
                losses = F.cross_entropy(logits, y, reduction="none")
                recorder.observe(losses, sample_id, logits=logits, labels=y)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"recorder": recorder.state_dict()}
            dist.barrier()
            if rank == 0:
                torch.save(state, checkpoint.with_suffix(".aside"))
                checkpoint.with_suffix(".aside").replace(checkpoint)
    dist.destroy_process_group()


def enter_only(rank, world_size, store, folder, answers):
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    try:
        with Recorder(folder, make_model(), [SampleLoss()]):
            pass
    except Exception as error:
        answers.put((rank, type(error).__name__, str(error)))
    dist.destroy_process_group()


def run_ranks(world_size, target, *arguments):
    """Exit codes of all ranks."""
    with tempfile.TemporaryDirectory() as name:
        processes = [
            CONTEXT.Process(target=target, args=(rank, world_size, f"{name}/store", *arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            process.kill()
            process.join()
    return [process.exitcode for process in processes]
