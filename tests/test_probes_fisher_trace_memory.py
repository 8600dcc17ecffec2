"""Nothing of the size P × N is held: chunks within the budget, and the same values in them."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from probes import fisher_trace
from probes.engines import layer_rules

VOCABULARY, WIDTH, N, T = 3000, 64, 8, 6


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage().nbytes()  # an expanded view takes nothing
                self.largest = max(
                    self.largest, min(storage, tensor.numel() * tensor.element_size())
                )
        return out


class MeanOverPositions(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).mean(dim=1)


def wide_linear():
    model = MeanOverPositions(nn.Linear(400, 500), nn.Tanh(), nn.Linear(500, 4))
    return model, torch.randn(N, T, 400)


def convolution():
    layers = nn.Conv2d(48, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, 4)), torch.randn(N, 48, 5, 5)


def embedding():
    model = MeanOverPositions(nn.Embedding(VOCABULARY, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4))
    return model, torch.randint(VOCABULARY, (N, T))


def language_model():
    """Its outputs (N, T, vocabulary) are the largest things that it makes itself."""
    model = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Tanh(), nn.Linear(WIDTH, VOCABULARY))
    return model, torch.randint(VOCABULARY, (N, T))


NETWORKS = {f.__name__: f for f in (wide_linear, convolution, embedding, language_model)}


def build(name):
    torch.manual_seed(0)
    return NETWORKS[name]()


def largest_parameter(model):
    return max(4 * p.numel() for p in model.parameters())


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_largest_tensor_stays_within_the_budget(name, diagonal, monkeypatch):
    """The budget, here a parameter, or what the model itself makes: an activation, its outputs.

    ‖w‖² is taken in float64, hence twice. All inputs' gradients of the largest layer together would
    be N times a parameter.
    """
    model, x = build(name)
    budget = largest_parameter(model)
    monkeypatch.setattr(layer_rules, "MEMORY_BUDGET", budget)
    with torch.no_grad():
        own = 4 * max(model(x).numel(), x.numel())
    with LargestTensor() as seen:
        fisher_trace(model, x, draws=8, target_stderr=None, diagonal=diagonal)
    assert seen.largest <= max(2 * budget, own)
    assert seen.largest < N * largest_parameter(model)


@pytest.mark.parametrize("kind", ["mc", "empirical"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("budget", [1, 20_000])
def test_values_do_not_depend_on_the_budget(name, kind, budget, monkeypatch):
    model, x = build(name)
    model, x = model.double(), x.double() if x.is_floating_point() else x
    n_out = model(x).shape[-1]
    labels = torch.randint(n_out, (N, T) if name == "language_model" else (N,))
    options = {"kind": kind, "draws": 8, "target_stderr": None, "diagonal": True}
    expected = fisher_trace(model, (x, labels), **options)
    monkeypatch.setattr(layer_rules, "MEMORY_BUDGET", budget)
    found = fisher_trace(model, (x, labels), **options)
    for block, part in {"total": expected, **expected.blocks}.items():
        other = found if block == "total" else found.blocks[block]
        assert other.value == pytest.approx(part.value, rel=1e-9), block
        assert other.scale_free == pytest.approx(part.scale_free, rel=1e-9), block
    for parameter, values in expected.diagonal.items():
        torch.testing.assert_close(found.diagonal[parameter], values, rtol=1e-8, atol=1e-14)


def test_exact_holds_no_table_of_classes_and_parameters(monkeypatch):
    model, x = wide_linear()
    monkeypatch.setattr(layer_rules, "MEMORY_BUDGET", largest_parameter(model) // 4)
    with LargestTensor() as seen:
        fisher_trace(model, x, kind="exact", batch_size=4)
    assert seen.largest <= 2 * largest_parameter(model)  # ‖w‖² in float64


def test_a_wide_layer_over_positions_is_formed_row_by_row(monkeypatch):
    """Less than one input's gradient at a time, once the self-test is over."""
    model, x = wide_linear()
    monkeypatch.setattr(layer_rules, "MEMORY_BUDGET", 50_000)
    sizes = []
    form = torch.Tensor.__matmul__

    def noted(left, right):
        sizes.append(math.prod(left.shape[:-1]) * right.shape[-1] * 4)
        return form(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    fisher_trace(model, x, draws=8, target_stderr=None)
    assert max(sizes) <= 50_000
    assert len(sizes) > 8 * largest_parameter(model) / 50_000
