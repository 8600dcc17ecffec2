"""Fisher traces against whole Jacobians in float64, closed forms and the sum over all classes."""

import math

import pytest
import torch
from cases import C, N, build
from modules import BODIES, D, EmbeddingTied, Net, T
from reference import by_block, fisher_diagonals, fisher_traces, score_squares
from torch import nn
from torch.nn import functional as F

from probes import fisher_trace

CASES = (
    "mlp",
    "frozen",
    "cnn",
    "grouped",
    "transposed2d",
    "residual",
    "layer_norm",
    "group_norm",
    "instance_norm_tracked",
    "batch_norm_eval",
    "prelu",
    "embedding",
    "embedding_padded",
    "sequence",
    "linear_alone",
)
MODULES = tuple(name for name in BODIES if name != "checkpointed_reentrant")


def network(name):
    """Model, inputs and labels in float64."""
    if name in CASES:
        case = build(name, torch.float64)
        return case.model, case.x, case.y
    torch.manual_seed(1)
    return Net(BODIES[name]()).double(), torch.randn(N, T, D).double(), torch.arange(N) % C


def cross_entropy_score(output, labels):
    return -F.cross_entropy(output, labels, reduction="none")


def ratio_stderr(part, whole):
    """Standard error of a ratio of means, linearised."""
    share = part.mean() / whole.mean()
    return ((part - share * whole).std() / math.sqrt(len(part)) / whole.mean()).item()


def check(estimate, model, diagonals, rel=1e-8):
    """Everything in an estimate with a row for each input follows from the rows' diagonals."""
    assert sorted(estimate.diagonal) == sorted(diagonals)
    for name, rows in diagonals.items():
        torch.testing.assert_close(estimate.diagonal[name], rows.mean(0), rtol=rel, atol=1e-12)
    blocks = by_block(model, diagonals, estimate.blocks)
    whole = blocks["total"][0]
    for block, (traces, scale_free, weight_norm_sq) in blocks.items():
        part = estimate if block == "total" else estimate.blocks[block]
        root = math.sqrt(len(traces))
        expected = {
            "value": traces.mean().item(),
            "stderr": (traces.std() / root).item(),
            "draw_stderr": 0.0,
            "share": (traces.mean() / whole.mean()).item(),
            "share_stderr": ratio_stderr(traces, whole),
            "scale_free": scale_free.mean().item(),
            "scale_free_stderr": (scale_free.std() / root).item(),
            "weight_norm_sq": weight_norm_sq,
        }
        for field, value in expected.items():
            assert getattr(part, field) == pytest.approx(value, rel=rel, abs=1e-12), (block, field)
        assert (part.n, part.n_draws, part.target_met) == (len(traces), None, None)
    assert sum(b[2] for k, b in blocks.items() if k != "total") == pytest.approx(blocks["total"][2])


@pytest.mark.parametrize("name", [*CASES, *MODULES])
def test_exact_is_the_pulled_back_output_fisher(name):
    model, x, _ = network(name)
    estimate = fisher_trace(model, x, kind="exact", batch_size=4, diagonal=True)
    check(estimate, model, fisher_diagonals(model, x))


@pytest.mark.parametrize("name", [*CASES, "attention", "lstm", "tied", "subclass"])
def test_empirical_is_the_mean_squared_score(name):
    model, x, y = network(name)
    estimate = fisher_trace(model, (x, y), kind="empirical", batch_size=4, diagonal=True)
    check(estimate, model, score_squares(model, x, y, cross_entropy_score))


@pytest.mark.parametrize("name", ["mlp", "residual", "tied"])
def test_the_reference_is_the_mean_over_drawn_labels(name):
    """The definition: each class weighted by its probability."""
    model, x, _ = network(name)
    values = sum(rows.flatten(1).sum(1) for rows in fisher_diagonals(model, x).values())
    torch.testing.assert_close(values, fisher_traces(model, x)["total"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_likelihoods(likelihood):
    model, x, _ = network("mlp")
    estimate = fisher_trace(model, x, kind="exact", likelihood=likelihood, diagonal=True)
    check(estimate, model, fisher_diagonals(model, x, likelihood))
    y = torch.randn(N, C).double() if likelihood == "gaussian" else torch.randint(2, (N, C))

    def score(output, labels):
        if likelihood == "gaussian":
            return -0.5 * (output - labels) ** 2
        return -F.binary_cross_entropy_with_logits(output, labels.double(), reduction="none")

    estimate = fisher_trace(
        model, (x, y), kind="empirical", likelihood=likelihood, diagonal=True, batch_size=4
    )
    check(estimate, model, score_squares(model, x, y, score))


class Positions(nn.Module):
    """A score vector for each of T positions, each of which sees all of them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(D, D)
        self.head = nn.Linear(D, C)

    def forward(self, x):
        h = self.first(x).tanh()
        return self.head(h + h.mean(dim=1, keepdim=True))


def token_network(name):
    torch.manual_seed(2)
    if name == "tied_language_model":
        return EmbeddingTied().double(), torch.randint(7, (N, T)), 7
    return Positions().double(), torch.randn(N, T, D).double(), C


def token_score(output, labels):
    return -F.cross_entropy(output.transpose(1, 2), labels, reduction="none", ignore_index=-100)


@pytest.mark.parametrize("name", ["positions", "tied_language_model"])
@pytest.mark.parametrize("masked", [False, True])
def test_positions_add_up_and_ignored_ones_do_not_count(name, masked):
    model, x, n_classes = token_network(name)
    labels = torch.randint(n_classes, (N, T))
    if masked:
        labels[torch.rand(N, T) < 0.4] = -100
        labels[2] = -100  # a sample that counts for nothing
    counted = labels != -100
    expected = fisher_diagonals(model, x, counted=counted)
    check(
        fisher_trace(model, (x, labels), kind="exact", batch_size=4, diagonal=True), model, expected
    )
    empirical = fisher_trace(model, (x, labels), kind="empirical", batch_size=4, diagonal=True)
    check(empirical, model, score_squares(model, x, labels, token_score))
    if not masked:  # no labels at all mean that all positions count
        bare = fisher_trace(model, x, kind="exact").value
        assert bare == pytest.approx(sum(d.sum().item() for d in expected.values()) / N, rel=1e-8)


def test_the_trace_of_a_sequence_is_the_sum_over_its_positions():
    """One position counted at a time."""
    model, x, _ = token_network("positions")
    whole = fisher_trace(model, x, kind="exact").value
    parts = []
    for t in range(T):
        labels = torch.full((N, T), -100)
        labels[:, t] = 0
        parts.append(fisher_trace(model, (x, labels), kind="exact").value)
    assert len({round(part, 6) for part in parts}) == T
    assert sum(parts) == pytest.approx(whole, rel=1e-10)


def test_ignored_labels_of_single_outputs_are_no_masks():
    """A label for the whole input says nothing about which outputs count under the model."""
    model, x, y = network("mlp")
    expected = fisher_trace(model, x, kind="exact").value
    assert fisher_trace(model, (x, y.clone().fill_(-100)), kind="exact").value == expected


# Closed forms


def linear_model(n_out=3):
    torch.manual_seed(4)
    model = nn.Linear(3, n_out).double()
    return model, torch.randn(9, 3).double()


def test_linear_softmax_has_its_closed_form():
    """tr F = E[(‖x‖² + 1)(1 − Σ p²)]."""
    model, x = linear_model()
    p = model(x).detach().softmax(1)
    expected = ((x.square().sum(1) + 1) * (1 - p.square().sum(1))).mean().item()
    assert fisher_trace(model, x, kind="exact").value == pytest.approx(expected, rel=1e-12)


def test_the_last_layer_has_its_closed_form():
    """tr F of it = E[(‖a‖² + 1)(1 − Σ p²)], a its input."""
    model, x, _ = network("mlp")
    a = model[:-1](x).detach()
    p = model(x).detach().softmax(1)
    expected = ((a.square().sum(1) + 1) * (1 - p.square().sum(1))).mean().item()
    found = fisher_trace(model, x, kind="exact").blocks["4"].value
    assert found == pytest.approx(expected, rel=1e-12)


def test_logistic_regression_has_its_closed_form():
    """tr F = E[(‖x‖² + 1) Σ_d p_d(1 − p_d)]; mc has no error but which inputs it draws."""
    model, x = linear_model()
    p = model(x).detach().sigmoid()
    expected = ((x.square().sum(1) + 1) * (p * (1 - p)).sum(1)).mean().item()
    found = fisher_trace(model, x, kind="exact", likelihood="bernoulli").value
    assert found == pytest.approx(expected, rel=1e-12)
    one = fisher_trace(model, x[:1], kind="mc", likelihood="bernoulli", draws=2).value
    expected = (x[0].square().sum() + 1) * (p * (1 - p))[0].sum()
    assert one == pytest.approx(expected.item(), rel=1e-12)


def test_linear_regression_has_its_closed_form():
    """tr F = D · E(‖x‖² + 1), whatever the weights and the labels are."""
    model, x = linear_model(n_out=5)
    expected = 5 * (x.square().sum(1) + 1).mean().item()
    found = fisher_trace(model, x, kind="exact", likelihood="gaussian").value
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_last_layers_bias_is_exact_whatever_is_drawn():
    """mc draws vectors of length √tr H, and the bias' gradient is that vector."""
    model, x, _ = network("mlp")
    model.requires_grad_(False)
    model[4].bias.requires_grad_(True)
    exact = fisher_trace(model, x, kind="exact").value
    for seed in range(3):
        drawn = fisher_trace(model, x, draws=4, seed=seed)
        assert drawn.value == pytest.approx(exact, rel=1e-12)
        assert drawn.draw_stderr == pytest.approx(0, abs=1e-9 * exact)


# The gradient noise scale


def test_the_noise_scale_is_that_of_the_gradients():
    model, x, y = network("mlp")
    losses = F.cross_entropy(model(x), y, reduction="none")
    parameters = dict(model.named_parameters())
    rows = [torch.autograd.grad(loss, parameters.values(), retain_graph=True) for loss in losses]
    columns = {n: torch.stack(g) for n, g in zip(parameters, zip(*rows, strict=True), strict=True)}
    estimate = fisher_trace(model, (x, y), kind="empirical", batch_size=4, diagonal=True)
    for block in ("total", *estimate.blocks):
        names = [n for n in columns if block == "total" or n.startswith(f"{block}.")]
        gradients = torch.cat([columns[n].flatten(1) for n in names], dim=1)
        spread = gradients.var(0).sum().item()
        signal = gradients.mean(0).square().sum().item() - spread / N
        part = estimate if block == "total" else estimate.blocks[block]
        assert part.snr == pytest.approx(signal / spread, rel=1e-8)
        if signal > 0:
            assert part.noise_scale == pytest.approx(spread / signal, rel=1e-8)
        else:
            assert math.isnan(part.noise_scale)
    each = [(c.mean(0) ** 2 / c.var(0))[c.var(0) > 0] for c in columns.values()]
    assert estimate.parameter_snr == pytest.approx(torch.cat(each).mean().item(), rel=1e-6)
