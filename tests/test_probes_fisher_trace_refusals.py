"""What the Fisher probe refuses, and what it makes of inputs and outputs that are hardly any."""

import math

import pytest
import torch
from cases import C, N, build
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from probes import FisherTrace, UnsupportedModelError, every, fisher_trace

KINDS = ("exact", "mc", "batch", "empirical")


class Returns(nn.Module):
    """A linear layer, and something done to its outputs."""

    def __init__(self, change, n_out=C):
        super().__init__()
        self.layer = nn.Linear(5, n_out)
        self.change = change

    def forward(self, x):
        return self.change(self.layer(x))


X, Y = torch.randn(N, 5, generator=torch.Generator().manual_seed(0)), torch.arange(N) % C


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "exakt"}, r"one of exact, mc, batch, empirical, but is 'exakt'"),
        ({"likelihood": "poisson"}, r"one of softmax, bernoulli, gaussian, but is 'poisson'"),
        ({"mode": "batch"}, r"mode must be 'eval', but is 'batch'.*outputs depend on the others"),
        ({"kind": "empirical"}, r"needs labels: pass data=\(inputs, labels\)"),
        ({"draws": 1}, "two draws or more, but draws=1"),
        ({"target_stderr": 0.0}, "above 0, such as 0.02, or None"),
        ({"target_stderr": math.nan}, "above 0, such as 0.02, or None"),
        ({"kind": "batch", "diagonal": True}, "kind='batch' squares averages"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        fisher_trace(build("mlp").model, X, **options)
    if "diagonal" in options:
        options = options | {"diagonal": every(epochs=1)}
    with pytest.raises(ValueError, match=message):
        FisherTrace(data=X, **options)


def test_wrong_data():
    model = build("mlp").model
    with pytest.raises(ValueError, match="at least one sample"):
        fisher_trace(model, X[:0])
    with pytest.raises(ValueError, match="6 inputs and 5 labels"):
        fisher_trace(model, (X, Y[:5]))
    with pytest.raises(TypeError, match="got dict"):
        fisher_trace(model, {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "likelihood", "message"),
    [
        (lambda z: z[:, 0], "softmax", r"\(N, C\).*returned \(\d,\).*likelihood='bernoulli'"),
        (lambda z: z[:, 0], "bernoulli", r"\(N, D\).*returned \(\d,\).*\.unsqueeze\(1\)"),
        (lambda z: z[:, 0], "gaussian", r"\(N, D\).*returned \(\d,\).*\.unsqueeze\(1\)"),
        (lambda z: z.mean(), "softmax", r"returned \(\).*not their sum or mean"),
        (lambda z: z[:, :, None, None], "softmax", r"returned \(\d, 4, 1, 1\).*classes last"),
        (lambda z: z[1:], "softmax", r"\d inputs gave outputs of shape \(\d, 4\)"),
        (lambda z: (z, z), "softmax", "returned tuple.*the logits alone"),
        (lambda z: z.argmax(1), "softmax", r"returned a tensor of torch\.int64"),
    ],
)
def test_outputs_of_other_shapes(kind, change, likelihood, message):
    with pytest.raises(ValueError, match=message):
        fisher_trace(Returns(change), (X, Y), kind=kind, likelihood=likelihood)


@pytest.mark.parametrize(
    ("likelihood", "labels", "message"),
    [
        ("softmax", F.one_hot(Y, C), r"shape \(6,\), but got labels of shape \(6, 4\).*argmax"),
        ("softmax", Y.unsqueeze(1), r"shape \(6,\), but got labels of shape \(6, 1\)"),
        ("softmax", Y.float(), r"class indices, but got labels of torch\.float32.*\.long"),
        ("softmax", Y + 1, "labels from 0 to 3.*they go from 1 to 4"),
        ("softmax", Y - 1, "labels from 0 to 3.*they go from -1 to 2"),
        ("bernoulli", Y % 2, r"shape \(6, 4\), but got labels of shape \(6,\)"),
        ("bernoulli", torch.full((N, C), 2.0), "labels from 0 to 1.*from 2 to 2"),
        ("bernoulli", torch.full((N, C), math.nan), "labels from 0 to 1"),
        ("gaussian", X, r"shape \(6, 4\), but got labels of shape \(6, 5\)"),
    ],
)
def test_labels_that_do_not_fit(likelihood, labels, message):
    with pytest.raises(ValueError, match=message):
        fisher_trace(Returns(nn.Identity()), (X, labels), kind="empirical", likelihood=likelihood)


@pytest.mark.parametrize("kind", ["exact", "mc", "batch"])
def test_masks_that_do_not_fit(kind):
    """Labels by position say what counts under every kind, so their shape must be right."""
    with pytest.raises(ValueError, match=r"shape \(\d,\), but got labels of shape \(\d, 1\)"):
        fisher_trace(Returns(nn.Identity()), (X, Y.unsqueeze(1)), kind=kind)


def test_labels_that_fit():
    model = Returns(nn.Identity(), n_out=1)
    one, two = (
        fisher_trace(model, (X, labels), kind="empirical", likelihood="bernoulli").value
        for labels in (Y % 2, (Y % 2).float().unsqueeze(1))
    )
    assert one == two
    model = Returns(nn.Identity())
    expected = fisher_trace(model, (X, Y), kind="empirical").value
    assert fisher_trace(model, (X, Y.int()), kind="empirical").value == expected
    assert fisher_trace(model, TensorDataset(X, Y), kind="empirical").value == expected


def test_a_data_set_of_real_labels_keeps_them():
    """They were cut to whole numbers once."""
    model, labels = Returns(nn.Identity()), torch.rand(N, C)
    expected = fisher_trace(model, (X, labels), kind="empirical", likelihood="gaussian").value
    data = TensorDataset(X, labels)
    found = fisher_trace(model, data, kind="empirical", likelihood="gaussian").value
    assert found == expected


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_mix_samples(kind):
    """In `batch` too: outputs that depend on other inputs have no Fisher of their own."""
    mixing = nn.BatchNorm1d(5, track_running_stats=False)
    model = nn.Sequential(nn.Linear(5, 5), mixing, nn.Linear(5, C))
    with pytest.raises(UnsupportedModelError, match=r"`1` \(BatchNorm1d\) normalises with batch"):
        fisher_trace(model, (X, Y), kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_train(kind):
    with pytest.raises(UnsupportedModelError, match="no parameter is trainable"):
        fisher_trace(nn.Linear(5, C).requires_grad_(False), (X, Y), kind=kind)


# Hardly any inputs, outputs or information


@pytest.mark.parametrize("kind", KINDS)
def test_one_input_has_a_value_and_no_error_for_others(kind):
    case = build("mlp")
    estimate = fisher_trace(case.model, (case.x[:1], case.y[:1]), kind=kind, target_stderr=None)
    assert estimate.value > 0
    assert math.isnan(estimate.stderr)
    exact = fisher_trace(case.model, case.x[:1], kind="exact").value
    if kind == "mc":
        assert abs(estimate.value - exact) <= 4 * estimate.draw_stderr
        assert estimate.draw_stderr < 0.1 * exact
    assert estimate.n == 1


def test_two_classes_are_one_logit():
    """C = 2: exact takes one backward pass, and equals the Bernoulli of the difference."""
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x = X.double()
    p = model(x).detach().softmax(1)[:, 0]
    expected = (2 * p * (1 - p) * (x.square().sum(1) + 1)).mean().item()
    assert fisher_trace(model, x, kind="exact").value == pytest.approx(expected, rel=1e-12)


def certain(z):
    """The largest output far above the others: p is 0 or 1 in any precision."""
    return z * 0 + 1e5 * torch.eye(C, dtype=z.dtype)[0] + z


@pytest.mark.parametrize("kind", ["exact", "mc", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", [certain, lambda z: 1e4 * z])
def test_a_certain_network_has_no_information(kind, dtype, change):
    model = Returns(change).to(dtype)
    estimate = fisher_trace(model, X.to(dtype), kind=kind, batch_size=2)
    expected = 0.0 if change is certain else pytest.approx(0, abs=1e-6)
    assert estimate.value == expected
    assert (estimate.stderr, estimate.draw_stderr) == (expected, expected)
    assert [part.value for part in estimate.blocks.values()] == [expected]
    if kind != "exact" and change is certain:
        assert estimate.target_met


@pytest.mark.parametrize("kind", KINDS)
def test_constant_outputs(kind):
    """No parameter moves them: the Fisher is 0, though the labels are not certain."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, C))
    model[1].weight.data.zero_()
    model[1].requires_grad_(False)
    estimate = fisher_trace(model, (X, Y), kind=kind, batch_size=2)
    assert (estimate.value, estimate.stderr, estimate.draw_stderr) == (0, 0, 0)
    assert math.isnan(estimate.blocks["0"].share)


@pytest.mark.parametrize("kind", ["exact", "mc"])
def test_parameters_that_no_output_uses_have_a_diagonal_of_zeros(kind):
    case = build("mlp")
    case.model.unused = nn.Linear(3, 2)
    model = nn.Sequential(case.model[:5])
    model.unused = nn.Linear(3, 2)
    model.forward = lambda x: model[0](x)
    estimate = fisher_trace(model, case.x, kind=kind, diagonal=True)
    assert list(estimate.diagonal) == [name for name, _ in model.named_parameters()]
    assert torch.equal(estimate.diagonal["unused.weight"], torch.zeros(2, 3))
    assert estimate.blocks["unused"].value == 0
    assert sum(d.sum().item() for d in estimate.diagonal.values()) == pytest.approx(estimate.value)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_one_are_the_same(kind):
    case = build("residual")
    one, all_at_once = (
        fisher_trace(case.model, (case.x, case.y), kind=kind, batch_size=size, draws=8)
        for size in (1, N)
    )
    assert one.n == all_at_once.n == N
    if kind in ("exact", "empirical"):
        assert one.value == pytest.approx(all_at_once.value, rel=1e-5)
        assert one.stderr == pytest.approx(all_at_once.stderr, rel=1e-5)
    for estimate in (one, all_at_once):
        parts = sum(part.value for part in estimate.blocks.values())
        assert parts == pytest.approx(estimate.value, rel=1e-10)
        assert sum(part.share for part in estimate.blocks.values()) == pytest.approx(1, rel=1e-10)
