"""A pass in `neutral` leaves nothing: flags, buffers and random states are as before."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from probes.neutral import neutral, preserved_randomness


def random_states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()


def use_randomness():
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002
    random.random()


@pytest.mark.parametrize("fails", [False, True])
def test_randomness_is_preserved(fails):
    before = random_states()
    try:
        with preserved_randomness():
            use_randomness()
            assert random_states() != before
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert random_states() == before


class Counts(nn.Module):
    """Writes to its buffers in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.unsaved.fill_(torch.nan)
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_flags_and_buffers_are_restored(fails):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Counts(), nn.Dropout())
    model[3].eval()
    model[1].running_mean.fill_(0.25)
    identities = [id(buffer) for buffer in model.buffers()]
    modes = [module.training for module in model.modules()]
    values = [buffer.clone() for buffer in model.buffers()]
    random_before = random_states()
    try:
        with neutral(model):
            assert not any(module.training for module in model.modules())
            model[1].train()
            model(torch.randn(5, 3))
            use_randomness()
            assert not torch.equal(model[1].running_mean, values[0])
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == modes
    assert [id(buffer) for buffer in model.buffers()] == identities
    assert all(torch.equal(a, b) for a, b in zip(values, model.buffers(), strict=True))
    assert random_states() == random_before


def test_untouched_buffers_are_not_written():
    """Writing would break the loop's own backward pass, which has saved them."""
    model = nn.Sequential(nn.BatchNorm1d(3))
    version = model[0].running_mean._version
    with neutral(model):
        model(torch.randn(5, 3))
    assert model[0].running_mean._version == version


def test_a_pass_between_forward_and_backward_does_not_disturb_them():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    x = torch.randn(5, 3)
    model(x).sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total = model(x).sum()
    with neutral(model):
        model(torch.randn(4, 3))
    total.backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_autocast_is_off_inside_and_on_again_after():
    layer = nn.Linear(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with neutral(layer):
            assert layer(torch.randn(2, 3)).dtype == torch.float32
        assert layer(torch.randn(2, 3)).dtype == torch.bfloat16
