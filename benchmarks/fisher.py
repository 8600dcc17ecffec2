"""The trace of the Fisher information to a given error: time and peak memory, ours and peers'.

Every method estimates tr F (softmax) of the same network on the same probe set, to a relative
standard error of 2 % given that set. Peers are run a few times, which tells the variance of one
replicate; their time is that of one replicate times as many as the target asks for, at least one,
and none for learning the error. Ours stops by itself, and is a probe that has measured before; what
peers build once is not counted either. Rounds are interleaved; seconds are of the
process, on one thread, so that neighbours count less. Peak memory is that of a process of its own,
above one that only holds model and data.

    python benchmarks/fisher.py [--data ../shared/data] [--inputs 1000] [--rounds 3]
"""

import argparse
import copy
import functools
import itertools
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import environment, peak_alone, peak_bytes
from networks import all_cnn, mlp, resnet18, sample_losses
from torch import Tensor, nn

from dynamics.datasets import open_dataset
from probes import FisherTrace, fisher_trace
from probes.probe import Scalar

TARGET = 0.02
ENOUGH = 0.87
"""Training accuracy at which a network counts as trained."""


@dataclass(frozen=True)
class Setting:
    """A network, the images it is trained on, and how."""

    build: Callable[[], Any]
    data: str
    n_train: int
    batch: int
    lr: float
    epochs: tuple[int, ...]
    """Sizes of training sets whose epochs the cost is compared with."""


CIFAR = "cifar10/cifar10_15k_4k.npz"
SETTINGS = {
    "MLP 784-512-512-10": Setting(mlp, "fashion-mnist", 60_000, 256, 0.1, (60_000,)),
    "All-CNN width 48": Setting(all_cnn, CIFAR, 1000, 32, 0.02, (15_000, 50_000)),
    "ResNet-18 width 32": Setting(resnet18, CIFAR, 1000, 32, 0.05, (15_000, 50_000)),
}


@dataclass(frozen=True)
class Run:
    """What one run of a method found.

    Attributes:
        values: Independent replicates, shape (replicates, strata); strata add up to an estimate.
        stderr: Standard error that the method itself states for its estimate.
    """

    values: np.ndarray
    stderr: float | None = None


Method = Callable[[int], Run]
"""From a seed to a run."""


def probe(model: nn.Module, x: Tensor, **options: Any) -> Method:
    """A probe that has measured once: engine and self-test are there, as the peers' operators."""
    measuring = FisherTrace(data=x, **options)
    measuring.attach(model)
    measuring.measure(model, step=0, epoch=-1)

    def run(seed: int) -> Run:
        found = measuring.measure(model, step=seed + 1, epoch=0)
        values = {f.name: f.value for f in found if isinstance(f, Scalar) and f.block == "total"}
        return Run(np.array([[values["fisher_trace"]]]), values["fisher_draw_stderr"])

    return run


def ours(model: nn.Module, x: Tensor, **options: Any) -> Method:
    """Our `fisher_trace`."""

    def run(seed: int) -> Run:
        found = fisher_trace(model, x, seed=seed, **options)
        return Run(np.array([[found.value]]), found.draw_stderr)

    return run


def curvlinops(model: nn.Module, x: Tensor, *, vectors: int = 4, batch: int = 125) -> Method:
    """Hutchinson on curvlinops' GGN, several vectors at once so that they share forward passes."""
    from curvlinops.sampling import rademacher

    ggn = _ggn(model, x, batch)

    def run(seed: int) -> Run:
        torch.manual_seed(seed)
        dim = ggn.shape[1]
        v = torch.stack([rademacher(dim, x.device, x.dtype) for _ in range(vectors)], 1)
        return Run((v * (ggn @ v)).sum(0).double().numpy()[:, None])

    return run


def hutch_pp(model: nn.Module, x: Tensor, *, products: int = 30, batch: int = 125) -> Method:
    """Hutch++ on the same operator."""
    from curvlinops import hutchpp_trace

    ggn = _ggn(model, x, batch)

    def run(seed: int) -> Run:
        torch.manual_seed(seed)
        return Run(np.array([[hutchpp_trace(ggn, products).item()] for _ in range(4)]))

    return run


def _ggn(model: nn.Module, x: Tensor, batch: int) -> Any:
    from curvlinops import GGNLinearOperator

    data = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(batch)]
    parameters = list(model.parameters())
    return GGNLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False, num_data=len(x)
    )


def nngeometry(model: nn.Module, x: Tensor, *, batch: int = 125) -> Method:
    """nngeometry's Monte Carlo FIM, implicit: a trace in one backward pass, nothing stored."""
    from nngeometry.layercollection import LayerCollection
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object.pspace import PMatImplicit

    layers = LayerCollection.from_model(model)

    def trace(part: Tensor) -> float:
        examples = (part, torch.zeros(len(part)))
        fim = FIM_MonteCarlo(model, examples, PMatImplicit, layer_collection=layers)
        return fim.trace().item() * len(part) / len(x)

    def run(seed: int) -> Run:
        torch.manual_seed(seed)
        return Run(np.array([[trace(part.clone()) for part in x.split(batch)]]))

    return run


def backpack(model: nn.Module, x: Tensor, *, mc_samples: int | None, batch: int = 125) -> Method:
    """BackPACK's diagonal of the GGN, summed; exact without `mc_samples`."""
    from backpack import backpack as active
    from backpack import extend, extensions

    model, loss = copy.deepcopy(model), extend(nn.CrossEntropyLoss())
    is_chain = all(not list(module.children()) for module in model)
    model = extend(model) if is_chain else extend(model.eval(), use_converter=True)
    kind = extensions.DiagGGNMC(mc_samples) if mc_samples else extensions.DiagGGNExact()

    def trace(part: Tensor) -> float:
        with active(kind):
            loss(model(part), torch.zeros(len(part), dtype=torch.long)).backward()
        total = sum(getattr(p, kind.savefield).sum().item() for p in model.parameters())
        for p in model.parameters():
            p.grad = None
            delattr(p, kind.savefield)
        return total * len(part) / len(x)

    def run(seed: int) -> Run:
        torch.manual_seed(seed)
        return Run(np.array([[trace(part) for part in x.split(batch)]]))

    return run


STOPPING = {"target_stderr": TARGET, "draws": 10**6}
OURS = "ours"
METHODS: dict[str, Callable[[nn.Module, Tensor], Method]] = {
    OURS: functools.partial(probe, **STOPPING),
    "ours, exact": functools.partial(ours, kind="exact"),
    "ours, batch": functools.partial(ours, kind="batch", target_stderr=None, batch_size=125),
    "curvlinops, Hutchinson on the GGN": curvlinops,
    "curvlinops, Hutch++ on the GGN": hutch_pp,
    "nngeometry, Monte Carlo FIM": nngeometry,
    "BackPACK, DiagGGNMC(1)": functools.partial(backpack, mc_samples=1),
    "BackPACK, DiagGGNMC(10)": functools.partial(backpack, mc_samples=10, batch=25),
    "BackPACK, DiagGGNExact": functools.partial(backpack, mc_samples=None, batch=25),
}
EXACT = {"ours, exact", "BackPACK, DiagGGNExact"}
MLP_ONLY = {  # elsewhere they take hours, and are never the best
    "curvlinops, Hutch++ on the GGN",
    "BackPACK, DiagGGNMC(10)",
}


@dataclass
class Record:
    """The runs of one method."""

    seconds: list[float] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def row(self, name: str, truth: float) -> dict[str, Any]:
        """Time to the target, from the median run, and how the value compares with the truth."""
        values = np.concatenate([run.values for run in self.runs])
        value = float(values.sum(1).mean())
        if name in EXACT:
            variance = 0.0
        elif self.runs[0].stderr is not None:
            variance = statistics.fmean((run.stderr or 0) ** 2 for run in self.runs)
        else:
            variance = float(values.var(axis=0, ddof=1).sum())
        error = math.sqrt(variance / len(values))
        each = statistics.median(self.seconds) / len(self.runs[0].values)
        needed = 1.0 if name == OURS else max(1.0, variance / (TARGET * value) ** 2)
        return {
            "method": name,
            "seconds": each * needed,
            "is_extrapolated": needed > len(values),
            "replicates": len(values),
            "replicates_needed": needed,
            "seconds_a_replicate": each,
            "relative_error_of_one": math.sqrt(variance) / value,
            "value": value,
            "z": (value - truth) / error if error else None,
            "relative_difference": value / truth - 1,
        }


def compare(
    model: nn.Module, x: Tensor, names: list[str], *, rounds: int, patience: float
) -> list[dict[str, Any]]:
    """Run the methods in interleaved rounds; a row for each, ours exact among them."""
    methods: dict[str, Method] = {}
    records: dict[str, Record] = {}
    refused = []
    for name in names:
        try:
            methods[name] = METHODS[name](model, x)
            METHODS[name](model, x[:8])(0)
            records[name] = Record()
        except Exception as error:  # a peer that cannot do this network is a result
            refused.append({"method": name, "refused": f"{type(error).__name__}: {error}"[:160]})
            methods.pop(name, None)
    for seed in range(rounds):
        for name, record in records.items():
            runs_at_least = 1 if name in EXACT else 2
            if sum(record.seconds) > patience and len(record.runs) >= runs_at_least:
                continue
            for repeat in range(3 if name == OURS else 1):
                start = time.process_time()
                record.runs.append(methods[name](seed * 3 + repeat))
                record.seconds.append(time.process_time() - start)
    truth = float(records["ours, exact"].runs[0].values.sum())
    return [record.row(name, truth) for name, record in records.items()] + refused


def load(setting: Setting, folder: Path, n: int | None = None) -> tuple[Tensor, Tensor]:
    """The first n standardised training images and labels, in a fixed random order."""
    data = open_dataset(folder / setting.data)
    order = np.random.default_rng(0).permutation(len(data.x_train))[: n or setting.n_train]
    images = torch.from_numpy(data.x_train[order]).float().div_(data.peak)
    x = images.flatten(1) if images.dim() == 3 else images.movedim(3, 1).contiguous()
    return (x - x.mean()) / x.std(), torch.from_numpy(data.y_train[order]).long()


def initialised(setting: Setting) -> nn.Module:
    """The network at initialisation; He's, without which All-CNN would be slow to train."""
    torch.manual_seed(0)
    model = setting.build()[0]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model.eval()


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One step of SGD; returns the outputs."""
    output = model(x)
    sample_losses(output, y).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return output.detach()


def sgd(model: nn.Module, setting: Setting) -> torch.optim.SGD:
    """The optimizer of a setting."""
    return torch.optim.SGD(model.train().parameters(), lr=setting.lr, momentum=0.9)


def trained(setting: Setting, x: Tensor, y: Tensor, *, most: int = 60) -> tuple[nn.Module, float]:
    """The network trained until it gets most of its training images right."""
    model = initialised(setting)
    optimizer = sgd(model, setting)
    for _ in range(most):
        right = 0
        for chosen in torch.randperm(len(x)).split(setting.batch):
            outputs = train_step(model, optimizer, x[chosen], y[chosen])
            right += int((outputs.argmax(1) == y[chosen]).sum())
        if right >= ENOUGH * len(x):
            break
    return model.eval(), right / len(x)


def states(
    setting: Setting, x: Tensor, y: Tensor, file: Path
) -> Iterator[tuple[str, nn.Module, float | None]]:
    """The network at initialisation and trained, with the last epoch's training accuracy."""
    yield "at initialisation", initialised(setting), None
    if not file.exists():
        model, accuracy = trained(setting, x, y)
        torch.save({"weights": model.state_dict(), "accuracy": accuracy}, file)
    saved = torch.load(file)
    model = initialised(setting)
    model.load_state_dict(saved["weights"])
    yield "trained", model, saved["accuracy"]


def cost_of_default(model: nn.Module, setting: Setting, x: Tensor, y: Tensor) -> dict[str, Any]:
    """A measurement of `FisherTrace` by default, and epochs of training."""
    measuring = FisherTrace(data=x)
    measuring.attach(model)
    learner = copy.deepcopy(model)
    optimizer = sgd(learner, setting)
    size = len(setting.build()[1])
    batch = x[:size], y[:size]

    def seconds(work: Callable[[], Any]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    train_step(learner, optimizer, *batch)
    pairs = [
        (
            seconds(lambda at=at: measuring.measure(model, step=at, epoch=0)),
            seconds(lambda: [train_step(learner, optimizer, *batch) for _ in range(4)]) / 4,
        )
        for at in range(7)
    ]
    measurement, step = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "measurement_s": measurement,
        "step_s": step,
        "batch": size,
        "fraction_of_epoch": {
            str(n): measurement / (step * math.ceil(n / size)) for n in setting.epochs
        },
    }


MEMORY = {
    "model and data": lambda model, x, y: None,
    **{
        f"training step of {n}": lambda model, x, y, n=n: train_step(
            model, torch.optim.SGD(model.train().parameters(), lr=0.01), x[:n], y[:n]
        )
        for n in (64, 256)
    },
    "ours, passes of 64": lambda model, x, y: fisher_trace(
        model, x, target_stderr=None, draws=128, batch_size=64
    ),
    "ours, passes of 256": lambda model, x, y: fisher_trace(
        model, x, target_stderr=None, draws=512, batch_size=256
    ),
    "ours, by default": lambda model, x, y: fisher_trace(model, x),
    # A part of the probe set shows a peer's peak: its batches are alike.
    **{
        method: lambda model, x, y, make=make, method=method: make(
            model, x if method.startswith("ours") else x[:250]
        )(0)
        for method, make in METHODS.items()
    },
}


def print_peak(name: str, what: str, arguments: argparse.Namespace) -> None:
    """Do one thing with the trained network, twice, and print this process's peak memory."""
    setting = SETTINGS[name]
    x, y = load(setting, arguments.data, arguments.inputs)
    *_, (_, model, _) = states(setting, x, y, arguments.weights / f"{name}.pt")
    for module in "curvlinops", "nngeometry.metrics", "backpack":
        __import__(module)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak of loading
    for _ in range(1 if what in EXACT else 2):
        MEMORY[what](model, x, y)
    print(peak_bytes("cpu"))


def memory(name: str, arguments: argparse.Namespace) -> dict[str, int | None]:
    """Peak bytes above those of model and data; None where a method refuses."""
    options = [
        *("--data", str(arguments.data), "--weights", str(arguments.weights)),
        *("--inputs", str(arguments.inputs)),
    ]
    wanted = [what for what in MEMORY if name.startswith("MLP") or what not in MLP_ONLY]
    peaks = {w: peak_alone(__file__, "--peak", name, "--what", w, *options) for w in wanted}
    base = peaks.pop("model and data") or 0
    return {what: None if peak is None else peak - base for what, peak in peaks.items()}


def measure(name: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Everything about one network, a part for each state."""
    setting = SETTINGS[name]
    x, y = load(setting, arguments.data)
    probed, labels = x[: arguments.inputs], y[: arguments.inputs]
    names = [m for m in METHODS if name.startswith("MLP") or m not in MLP_ONLY]
    for state, model, accuracy in states(setting, x, y, arguments.weights / f"{name}.pt"):
        rows = compare(model, probed, names, rounds=arguments.rounds, patience=arguments.patience)
        for row in rows:
            took = f"{row['seconds']:.3g} s, z {row['z']}" if "seconds" in row else row["refused"]
            print(f"{name:<20} {state:<18} {row['method']:<36} {took}", flush=True)
        cost = cost_of_default(model, setting, probed, labels)
        print(f"{name:<20} {state:<18} default {cost}", flush=True)
        part = {"network": name, "state": state, "training_accuracy": accuracy}
        yield part | {"trained_on": setting.n_train, "methods": rows, "default": cost}


def main() -> None:
    """Measure everything and write the JSON that docs/performance.md is made from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--inputs", type=int, default=1000, help="size of the probe set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=120, help="seconds for each method")
    parser.add_argument("--only", default="", help="part of the names of the networks to measure")
    parser.add_argument("--weights", type=Path, help="folder that keeps the trained networks")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.peak:
        print_peak(arguments.peak, arguments.what, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.weights = arguments.weights or Path(folder)
        chosen = [name for name in SETTINGS if arguments.only in name]
        found = list(itertools.chain.from_iterable(measure(name, arguments) for name in chosen))
        peaks = {name: memory(name, arguments) for name in chosen}
    packages = ("backpack-for-pytorch", "curvlinops-for-pytorch", "nngeometry")
    content = {
        "environment": environment("cpu", *packages),
        "target": TARGET,
        "inputs": arguments.inputs,
        "parts": found,
        "peak_bytes_above_model_and_data": peaks,
    }
    out = arguments.out or Path(__file__).parent / "results" / "fisher-cpu.json"
    out.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
