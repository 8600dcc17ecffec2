"""What per-sample gradient norms cost: the recorded step ÷ the plain step.

Each method takes forward and backward pass and the norms of all parameters, on one thread. Rounds
are interleaved, every method is paired with the plain step of its round, and the median of the
paired ratios is quoted. A turn lasts 0.6 s or more: rows go to the writer some 16,000 at a time,
which is part of the cost, so it has to fall into the turns where steps are short. Peak memory is
that of a process of its own with the method alone. With a GPU, two larger networks are added.

    python benchmarks/grad_norm.py [--rounds 9] [--out benchmarks/results/grad_norm-cpu.json]
"""

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import environment, peak_alone, peak_bytes
from networks import GPU_NETWORKS, NETWORKS, sample_losses
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from probes import GradNorm, Recorder, SampleLoss, every

Step = Callable[[], Any]
Prepared = contextlib.AbstractContextManager[Step]


@contextlib.contextmanager
def plain(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Step]:
    """Forward and backward pass, nothing recorded."""

    def step() -> None:
        sample_losses(model(x), y).mean().backward()
        model.zero_grad()

    yield step


def ours(*probes: Any) -> Callable[[nn.Module, Tensor, Tensor], Prepared]:
    """The recorder with the given probes, writing to disk as in earnest."""

    @contextlib.contextmanager
    def prepare(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Step]:
        ids = torch.arange(len(x))
        # Counting steps by a parameterless update keeps the schedule of every(steps=k) honest.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            recorder = Recorder(run, model, [make() for make in probes], repeats=True)
            with recorder:

                def step() -> None:
                    output = model(x)
                    losses = sample_losses(output, y)
                    is_flat = output.dim() == 2
                    recorder.observe(
                        losses,
                        ids,
                        logits=output if is_flat else None,
                        labels=y if is_flat else None,
                    )
                    losses.mean().backward()
                    model.zero_grad()  # as in the plain step
                    recorder._steps._count(optimizer, (), {})  # an update, without its arithmetic

                yield step

    return prepare


@contextlib.contextmanager
def backpack(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Step]:
    """Stock BackPACK, `BatchL2Grad`."""
    from backpack import backpack as active
    from backpack import extend
    from backpack.context import CTX
    from backpack.extensions import BatchL2Grad

    extend(model)

    def step() -> Tensor:
        with active(BatchL2Grad()):
            sample_losses(model(x), y).mean().backward()
        total = sum(p.batch_l2 for p in model.parameters())
        for p in model.parameters():
            del p.batch_l2
        model.zero_grad()
        return total

    try:
        yield step
    finally:
        CTX.remove_hooks()


def opacus(kind: str) -> Callable[[nn.Module, Tensor, Tensor], Prepared]:
    """Opacus: per-sample gradients by hooks, or norms by ghost clipping."""

    @contextlib.contextmanager
    def prepare(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Step]:
        from opacus import GradSampleModule
        from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost

        if kind == "ghost":
            wrapped = Ghost(model, batch_first=True, loss_reduction="mean", max_grad_norm=1.0)
        else:
            wrapped = GradSampleModule(model, batch_first=True, loss_reduction="mean")

        def step() -> Tensor:
            sample_losses(wrapped(x), y).mean().backward()
            if kind == "ghost":
                norms = torch.stack([p._norm_sample for p in model.parameters()], 1).norm(dim=1)
            else:
                flat = [p.grad_sample.flatten(1).norm(dim=1) for p in model.parameters()]
                norms = torch.stack(flat, 1).norm(dim=1)
            wrapped.zero_grad()
            for p in model.parameters():
                p.grad_sample = None
            return norms

        try:
            yield step
        finally:
            wrapped.remove_hooks()

    return prepare


@contextlib.contextmanager
def torch_func(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Step]:
    """`torch.func`: vmap over grad, whose sum is the training gradient."""
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(values: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        output = functional_call(model, (values, buffers), (sample.unsqueeze(0),))
        return sample_losses(output, label.unsqueeze(0))[0]

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def step() -> Tensor:
        each = gradients(parameters, x, y)
        for g in each.values():
            g.mean(0)
        return torch.stack([g.flatten(1).norm(dim=1) for g in each.values()], 1).norm(dim=1)

    yield step


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor], Prepared]] = {
    "plain": plain,
    "fused": ours(lambda: GradNorm(engine="fused")),
    "backpack engine": ours(GradNorm),
    "sketch": ours(lambda: GradNorm(engine="fused", kind="sketch")),
    "sketch, bit-neutral": ours(lambda: GradNorm(kind="sketch")),
    "eval mode, own pass": ours(lambda: GradNorm(mode="eval")),
    "every 16th step": ours(lambda: GradNorm(every(steps=16))),
    "loss alone": ours(SampleLoss),
    "BackPACK": backpack,
    "Opacus hooks": opacus("hooks"),
    "Opacus ghost": opacus("ghost"),
    "torch.func": torch_func,
}
_TURN_S = 0.6
SLOW = {"torch.func", "Opacus hooks"}


def build(name: str, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    """The network of a name, always with the same weights and inputs."""
    torch.manual_seed(0)
    model, x, y = {**NETWORKS, **GPU_NETWORKS}[name]()
    return model.to(device), x.to(device), y.to(device)


def timed(step: Step, device: str, repeats: int) -> float:
    """Seconds a step."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure(name: str, method: str, device: str, rounds: int) -> dict[str, Any]:
    """Time one method on one network against the plain step, in interleaved rounds."""
    model, x, y = build(name, device)
    reference, *_ = build(name, device)
    period = 16 if method == "every 16th step" else 1
    try:
        with plain(reference, x, y) as plain_step, METHODS[method](model, x, y) as step:
            for warm in (plain_step, step, step):
                warm()
            turns = 1 if method in SLOW else math.ceil(_TURN_S / timed(plain_step, device, 1))
            repeats = period * math.ceil(turns / period)
            few = max(3, rounds // 3) if method in SLOW else rounds
            pairs = [
                (timed(plain_step, device, repeats), timed(step, device, repeats))
                for _ in range(few)
            ]
    except Exception as error:  # a peer that cannot do this network is a result
        return {"method": method, "refused": f"{type(error).__name__}: {str(error)[:120]}"}
    ratios = [ours_s / plain_s for plain_s, ours_s in pairs]
    return {
        "method": method,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "plain_s": statistics.median(plain_s for plain_s, _ in pairs),
        "rounds": len(pairs),
    }


def peak_memory(name: str, method: str, device: str) -> int | None:
    """Peak bytes of a process that takes a few steps with one method; None if it refuses."""
    return peak_alone(__file__, "--peak", name, "--method", method, "--device", device)


def print_peak(name: str, method: str, device: str) -> None:
    """What the process of `peak_memory` does."""
    model, x, y = build(name, device)
    with METHODS[method](model, x, y) as step:
        for _ in range(4):
            step()
    print(peak_bytes(device))


def main() -> None:
    """Measure everything and write the JSON that docs/performance.md is made from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="part of the names of the networks to measure")
    parser.add_argument("--peak")
    parser.add_argument("--method")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.peak:
        print_peak(arguments.peak, arguments.method, arguments.device)
        return
    device = arguments.device
    names = [*NETWORKS, *(GPU_NETWORKS if device == "cuda" else ())]
    networks = []
    for name in (n for n in names if (arguments.only or "") in n):
        rows = []
        for method in METHODS:
            row = measure(name, method, device, arguments.rounds)
            if "ratio" in row:
                row["peak_bytes"] = peak_memory(name, method, device)
            rows.append(row)
            shown = f"{row['ratio']:.3f}" if "ratio" in row else row["refused"]
            print(f"{name:<48} {method:<20} {shown}", flush=True)
        networks.append({"network": name, "methods": rows})
    out = arguments.out or Path(__file__).parent / "results" / f"grad_norm-{device}.json"
    content = {
        "environment": environment(device, "backpack-for-pytorch", "opacus"),
        "networks": networks,
    }
    out.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
