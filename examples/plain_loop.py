"""A plain loop on scikit-learn's digits, or on Fashion-MNIST: `plain_loop.py OUT --data FOLDER`."""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dynamics import open_run
from dynamics.datasets import open_dataset
from probes import FisherTrace, GradNorm, Recorder, SampleLoss, every, with_sample_ids


def load(source: str) -> TensorDataset:
    """Images scaled to [0, 1], flat, and their labels."""
    found = open_dataset(source)
    images = torch.tensor(found.x_train / found.peak).float().flatten(1)
    return TensorDataset(images, torch.tensor(found.y_train).long())


def main(out: Path, data: str = "digits", epochs: int = 5) -> Path:
    """Train, record, and say which samples were hardest."""
    torch.manual_seed(0)
    train_set = load(data)
    inputs, labels = train_set.tensors
    model = nn.Sequential(nn.Linear(inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(with_sample_ids(train_set), batch_size=128, shuffle=True)
    probes = [SampleLoss(), GradNorm(), FisherTrace(every(epochs=1), data=inputs[:200])]
    with Recorder(out, model, probes, roster={"label": labels.numpy()}, budget=0.2) as recorder:
        for _ in recorder.epochs(epochs):
            for x, y, sample_id in loader:
                logits = model(x)
                losses = F.cross_entropy(logits, y, reduction="none")
                recorder.observe(losses, sample_id, logits=logits, labels=y)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    run = open_run(out)
    mean_loss = run.samples().groupby("sample_id")["loss"].mean()
    print("Hardest samples:", mean_loss.nlargest(5).round(2).to_dict())
    print(run.cost().groupby("block")["share"].last().round(3).to_dict())
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", default="digits", help="folder with Fashion-MNIST's .gz files")
    options = parser.parse_args()
    main(options.out, options.data)
