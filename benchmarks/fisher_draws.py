"""How much the ways to draw vectors for a Fisher trace differ in variance, over training.

With J_i the Jacobian of the outputs and K_i = J_i J_iᵀ (C × C, by brute force), each scheme's
variance follows exactly, without a simulation; only the strata's is simulated, and that of draws
that follow predicted gains is measured: 400 draws, 60 seeds, against the exact trace. Numbers are
relative variances of one draw: (standard deviation ÷ trace)², so v/0.02² draws reach a 2 % standard
error.

    python benchmarks/fisher_draws.py [--data ../shared/data] [--out FILE]
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from dynamics.datasets import open_dataset
from probes import fisher_trace
from studies.lab.data import to_tensors
from studies.lab.models import SmallCNN, build_mlp

N_PROBE = 300
EPOCHS = (0, 1, 2, 4, 8, 16, 32)


def output_gram(model: nn.Module, inputs: Tensor) -> Tensor:
    """J Jᵀ of each input, shape (N, C, C), in double precision."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, values, (x.unsqueeze(0),))[0]

    parts = []
    for x in torch.split(inputs, 10):
        jacobians = vmap(jacrev(outputs), (None, 0))(parameters, x)
        flat = [j.flatten(2).double() for j in jacobians.values()]
        parts.append(sum((j @ j.transpose(1, 2) for j in flat), torch.zeros(())))
    return torch.cat(parts)


def sign_variance(gram: Tensor) -> Tensor:
    """Variance of rᵀ A r for random signs r."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    return 2 * (gram.square().sum((1, 2)) - diagonal.square().sum(1))


def variances(logits: Tensor, gram: Tensor) -> dict[str, float]:
    """Relative variance of one draw, by scheme."""
    p = logits.double().softmax(1)
    n = len(p)
    root = torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)
    inner = root.transpose(1, 2) @ gram @ root
    by_label = inner.diagonal(dim1=1, dim2=2)
    trace = by_label.sum(1)
    weights = root.square().sum(1)
    spread = weights.sum(1)
    eigenvalues, eigenvectors = torch.linalg.eigh(root @ root.transpose(1, 2))
    turned = eigenvectors * eigenvalues.clamp_min(0).sqrt().unsqueeze(1)
    sampled = (by_label.square() / p.clamp_min(1e-300)).sum(1) - trace**2
    drawn = by_label.square() * spread.unsqueeze(1) / weights.clamp_min(1e-300)
    chosen = drawn.sum(1) - trace**2
    mean = trace.mean()

    def relative(variance: Tensor) -> float:
        return (variance.mean() / mean**2).item()

    between = (trace.var(unbiased=False) / mean**2).item()
    inputs = spread / spread.sum()
    with_inputs = ((chosen + trace**2) / (n * n * inputs).clamp_min(1e-300)).sum() - mean**2
    return {
        "labels sampled from the model": relative(sampled),
        "signs through the root of H": relative(sign_variance(inner)),
        "signs in the eigenbasis of H": relative(
            sign_variance(turned.transpose(1, 2) @ gram @ turned)
        ),
        "labels by p‖e − p‖²": relative(chosen),
        "sampled labels, random inputs": relative(sampled) + between,
        "the same, inputs by tr H": (with_inputs / mean**2).item(),
        "the same, in strata": stratified(gram, p, weights),
    }


def stratified(
    gram: Tensor, p: Tensor, weights: Tensor, m: int = 128, repeats: int = 2000
) -> float:
    """Relative variance of one draw among m in strata of two, by simulation."""
    n, n_classes = p.shape
    directions = torch.eye(n_classes).double() - p.unsqueeze(1)
    directions = directions / directions.norm(dim=2, keepdim=True).clamp_min(1e-300)
    values = torch.einsum("icd,ide,ice->ic", directions, gram, directions).numpy()
    spread = weights.sum(1).numpy()
    cumulative_labels = np.cumsum(weights.numpy() / spread[:, None], axis=1)
    order = np.lexsort((spread, p.argmax(1).numpy()))
    cumulative = np.cumsum(spread[order]) / spread.sum()
    rng = np.random.default_rng(0)
    at = (np.repeat(np.arange(m // 2), 2) + rng.random((repeats, m))) / (m // 2)
    inputs = order[np.minimum(np.searchsorted(cumulative, at), n - 1)]
    labels = (cumulative_labels[inputs] < rng.random((repeats, m, 1))).sum(2)
    found = spread.mean() * values[inputs, np.minimum(labels, n_classes - 1)].mean(1)
    truth = (weights.numpy() * values).sum(1).mean()
    return float(m * found.var() / truth**2)


def guided(model: nn.Module, inputs: Tensor, *, draws: int = 400, repeats: int = 60) -> float:
    """Relative variance of one draw of `fisher_trace`, from its errors."""
    exact = fisher_trace(model, inputs, kind="exact").value
    found = [
        fisher_trace(model, inputs, draws=draws, target_stderr=None, seed=seed).value
        for seed in range(repeats)
    ]
    return float(draws * np.mean((np.array(found) / exact - 1) ** 2))


def trained(model: nn.Module, x: Tensor, y: Tensor, lr: float) -> Iterator[tuple[int, float]]:
    """Epochs of `EPOCHS` with the training accuracy; the model is trained between them."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for epoch in range(max(EPOCHS) + 1):
        if epoch in EPOCHS:
            with torch.no_grad():
                yield epoch, (model(x).argmax(1) == y).double().mean().item()
        for rows in torch.split(torch.randperm(len(x)), 64):
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()


def measure(name: str, source: str, build: Callable[[], nn.Module], lr: float) -> dict[str, Any]:
    """All schemes over the training of one network."""
    torch.manual_seed(0)
    data = to_tensors(open_dataset(source))[0].take(np.arange(1500))
    model = build()
    rows = []
    for epoch, accuracy in trained(model, data.images, data.labels, lr):
        probe = data.images[:N_PROBE]
        with torch.no_grad():
            logits = model(probe)
        found = variances(logits, output_gram(model, probe))
        found["ours: by predicted gains too"] = guided(model, probe)
        rows.append({"epoch": epoch, "accuracy": accuracy, "variances": found})
        print(f"{name} epoch {epoch} {found}", flush=True)
    return {"network": name, "states": rows}


def main() -> None:
    """Measure both networks and write the JSON that docs/performance.md is made from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    results = Path(__file__).parent / "results" / "fisher_draws.json"
    parser.add_argument("--out", type=Path, default=results)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = [
        measure("MLP 64-128-10 on digits", "digits", lambda: build_mlp(64, [128], 10), 0.05),
        measure(
            "small CNN, width 16, on Fashion-MNIST",
            str(arguments.data / "fashion-mnist"),
            lambda: SmallCNN(1, 28, 10, 16),
            0.02,
        ),
    ]
    content = {"n": N_PROBE, "python": sys.version.split()[0], "networks": networks}
    arguments.out.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
