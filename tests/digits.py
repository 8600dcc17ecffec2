"""scikit-learn's digits, and small networks on them: at first, and trained to confidence."""

import functools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F


@functools.cache
def digits(dtype=torch.float32):
    """1,797 images as vectors of 64 pixels, and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=dtype), torch.tensor(labels)


@functools.cache
def digits_mlp(epochs):
    """64-48-32-10 after full-batch training; 0 epochs for the initial network, 100 for 99.9 %.

    Not to be changed: it is shared.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)]
        model = nn.Sequential(*layers)
        x, y = digits()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(epochs):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.requires_grad_()
