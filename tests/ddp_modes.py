"""Training by two gloo processes under DDP and FSDP, each with every probe."""

import contextlib
import json

import torch
import torch.distributed as dist
from ddp_training import run_ranks
from modes import PROBES, C, D, cross_entropy, mlp
from reference import fisher_traces, grad_norms
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from dynamics import open_run
from probes import Recorder, SampleLoss, UnsupportedModelError, with_sample_ids

N, SIZE, EPOCHS, ACCUMULATE = 13, 3, 2, 2
X = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % C
WRAPPERS = ("DistributedDataParallel", "FSDP2 (fully_shard)")


def make_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mlp()


def batches(rank):
    """Batches of an epoch for one of two ranks; 13 samples are padded to 14."""
    data = with_sample_ids(TensorDataset(X, Y))
    sampler = DistributedSampler(data, num_replicas=2, rank=rank, seed=3)
    loader = DataLoader(data, batch_size=SIZE, sampler=sampler)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        yield from ((epoch, i, batch) for i, batch in enumerate(loader))


def wrapped(kind, model):
    if kind == WRAPPERS[0]:
        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(rank, world_size, store, folder, kind, probe):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    model = make_model()
    network = wrapped(kind, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = PROBES[probe](X)
    probes = [made] if probe == "SampleLoss" else [SampleLoss(), made]
    try:
        with Recorder(folder / "run", network, probes) as recorder:
            loop(rank, kind, network, optimizer, recorder)
    except UnsupportedModelError as error:
        (folder / f"refused-{rank}.json").write_text(json.dumps(str(error)))
    dist.barrier()
    dist.destroy_process_group()


def loop(rank, kind, network, optimizer, recorder):
    for epoch, i, (x, y, sample_id) in batches(rank):
        if i == 0:
            recorder.begin_epoch(epoch)
        last = i == 2
        steps = (i + 1) % ACCUMULATE == 0 or last
        waits = contextlib.nullcontext() if steps or "FSDP" in kind else network.no_sync()
        with waits:
            logits = network(x)
            losses = cross_entropy(logits, y)
            recorder.observe(losses, sample_id, logits=logits, labels=y)
            (losses.mean() / ACCUMULATE).backward()
        if steps:
            optimizer.step()
            optimizer.zero_grad()
        if last:
            recorder.end_epoch()


def expected_of(probe):
    """One process that takes the batches of both, in float64: values by (epoch, sample id)."""
    model = make_model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    samples, traces = {}, []
    for first, second in zip(batches(0), batches(1), strict=True):
        epoch, i, _ = first
        if (i + 1) % ACCUMULATE == 1:
            traces.append(fisher_traces(model, X)["total"].mean().item())
        for _, _, (x, y, ids) in (first, second):
            values = values_of(probe, model, x.double(), y)
            for sample_id, value in zip(ids.tolist(), values, strict=True):
                samples.setdefault((epoch, sample_id), value)  # lowest step, then rank
            (cross_entropy(model(x.double()), y).mean() / ACCUMULATE / 2).backward()
        if (i + 1) % ACCUMULATE == 0 or i == 2:
            optimizer.step()
            optimizer.zero_grad()
    return samples, traces


def values_of(probe, model, x, y):
    if probe.startswith("GradNorm"):
        return grad_norms(model, x, y, cross_entropy)["total"].tolist()
    with torch.no_grad():
        logits = model(x)
        if probe == "OutputGradNorm":
            error = logits.softmax(1) - torch.nn.functional.one_hot(y, C)
            return error.norm(dim=1).tolist()
        return cross_entropy(logits, y).tolist()


def judge_one(kind, probe, folder):
    """Exit codes of the ranks, and a row of the table."""
    folder.mkdir()
    codes = run_ranks(2, train, folder, kind, probe)
    row = {"mode": kind, "probe": probe, "kind": "refused", "error": None, "identical": None}
    refused = folder / "refused-0.json"
    if refused.exists():
        return codes, row | {"reason": json.loads(refused.read_text()).split(". ")[0]}
    samples, traces = expected_of(probe)
    run = open_run(folder / "run")
    if probe == "FisherTrace":
        found = run.scalars("fisher_trace").query("block == 'total'")["value"].tolist()
        pairs = list(zip(found, traces, strict=True))
    else:
        column = {"SampleLoss": "loss", "OutputGradNorm": "output_grad_norm"}
        rows = run.samples()
        keys = list(zip(rows["epoch"], rows["sample_id"], strict=True))
        assert keys == [(e, i) for e in range(EPOCHS) for i in range(N)]
        found = rows[column.get(probe, "grad_norm")]
        pairs = [(value, samples[key]) for key, value in zip(keys, found, strict=True)]
    error = max(abs(a - b) / b for a, b in pairs)
    return codes, row | {"kind": "exact", "error": error, "reason": None}


def judge_distributed(folder):
    """Rows of the table for both wrappers and every probe."""
    rows = []
    for kind in WRAPPERS:
        for probe in PROBES:
            codes, row = judge_one(kind, probe, folder / f"distributed-{len(rows)}")
            assert codes == [0, 0]
            rows.append(row)
    return rows
