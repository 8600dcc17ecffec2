"""Inputs on which norms were once wrong, refused for no reason, or stood in training's way.

Most were found by `test_probes_grad_norm_matrix.py`, which draws networks at random.
"""

import copy
from collections import namedtuple

import pytest
import torch
from cases import C
from reference import grad_norms
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from dynamics import open_run
from probes import GradNorm, Recorder, UnsupportedModelError

N, T, D = 4, 4, 3
Y = torch.arange(N) % C
ENGINES = pytest.mark.parametrize("engine", ["backpack", "fused"])


def losses_of(output, labels):
    return F.cross_entropy(output, labels, reduction="none")


def record(out, model, *batches, probe=None):
    """Norms of each batch of inputs, one after another through one recorder."""
    with Recorder(out, model, [probe or GradNorm()]) as recorder:
        for epoch, x in enumerate(batches):
            recorder.begin_epoch(epoch)
            losses = losses_of(model(x), Y[: len(x)])
            recorder.observe(losses, torch.arange(len(x)))
            losses.mean().backward()
            recorder.end_epoch()
    return open_run(out).samples().sort_values(["epoch", "sample_id"])["grad_norm"].tolist()


def expected_norms(model, *batches):
    norms = [grad_norms(model, x, Y[: len(x)], losses_of)["total"] for x in batches]
    return pytest.approx(torch.cat(norms).tolist(), rel=1e-5)


class Net(nn.Module):
    """Calls a body with its layers, and averages over positions for a head."""

    def __init__(self, forward, d=D, **layers):
        super().__init__()
        self.layers, self.run = nn.ModuleDict(layers), forward
        self.head = nn.Linear(d, C)

    def forward(self, x):
        return self.head(self.run(self.layers, x).mean(dim=1))


def sequences(n=N, t=T):
    return torch.randn(n, t, D)


@ENGINES
def test_an_in_place_activation_after_a_linear_layer_over_sequences(engine, tmp_path):
    """Its output is a view, whose hook goes when it is changed; `fused` made training raise."""
    model = Net(lambda m, x: m["a"](x).relu_(), a=nn.Linear(D, D))
    x = sequences()
    found = record(tmp_path / "run", model, x, x, probe=GradNorm(engine=engine))
    assert found == expected_norms(model, x, x)


def test_an_in_place_addition_to_the_output_of_attention(tmp_path):
    """A view as well, of a module that is differentiated."""

    def run(m, x):
        h = m["a"](x, x, x, need_weights=False)[0]
        h += x
        return h

    model = Net(run, a=nn.MultiheadAttention(D, 1, batch_first=True))
    x = sequences()
    assert record(tmp_path / "run", model, x, x) == expected_norms(model, x, x)


def test_a_named_tuple_stays_one_when_its_first_part_is_replaced(tmp_path):
    pair = namedtuple("pair", "first second")

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(D))

        def forward(self, x):
            return pair((x * self.weight).transpose(0, 1).transpose(0, 1), None)

    model = Net(lambda m, x: m["a"](x).first.relu_(), a=Own())
    x = sequences()
    assert record(tmp_path / "run", model, x) == expected_norms(model, x)


def checkpointed(function, x, reentrant):
    return (
        checkpoint(function, x, use_reentrant=reentrant) if reentrant is not None else function(x)
    )


@ENGINES
@pytest.mark.parametrize("kind", ["linear", "norm", "tied"])
def test_a_layer_used_twice_within_a_reentrant_checkpoint(kind, engine, tmp_path):
    """Its second use was lost, and such parts were not verified."""

    def make(reentrant):
        torch.manual_seed(0)

        def run(m, x):
            second = m["b"] if kind == "tied" else m["a"]
            return checkpointed(lambda h: second(m["a"](h).tanh()), m["first"](x), reentrant)

        a = nn.LayerNorm(D) if kind == "norm" else nn.Linear(D, D)
        layers = {"a": a, "b": nn.Linear(D, D)} if kind == "tied" else {"a": a}
        model = Net(run, first=nn.Linear(D, D), **layers)
        if kind == "tied":
            model.layers["b"].weight = a.weight
        return model

    x = sequences()
    found = record(tmp_path / "run", make(True), x, x, probe=GradNorm(engine=engine))
    assert found == expected_norms(make(None), x, x)


@ENGINES
def test_a_layer_used_in_two_reentrant_checkpoints_is_refused(engine, tmp_path):
    def run(m, x):
        h = checkpointed(m["a"], m["first"](x), True)
        return checkpointed(m["a"], h.tanh(), True)

    model = Net(run, first=nn.Linear(D, D), a=nn.Linear(D, D))
    with pytest.raises(
        UnsupportedModelError, match=r"`layers.a` is used more than once.*reentrant"
    ):
        record(tmp_path / "run", model, sequences(), probe=GradNorm(engine=engine))


class Positions(nn.Module):
    """A module whose second input belongs to no sample."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, D))

    def forward(self, x, positions):
        return (x + positions.unsqueeze(-1)).sin() * self.weight


def test_an_input_as_long_as_the_batch_by_chance(tmp_path):
    """With as many samples as positions, those were cut by samples, after the self-test."""
    model = Net(lambda m, x: m["a"](x, torch.arange(float(T))), a=Positions())
    batches = sequences(3), sequences(4)
    assert record(tmp_path / "run", model, *batches) == expected_norms(model, *batches)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["pairs", "pairs_by_head", "keys"])
def test_attention_masks_where_there_are_as_many_samples_as_positions(mask, batch_first, tmp_path):
    heads, hidden = 3, torch.zeros(N, T, dtype=torch.bool)
    hidden[1:, -1] = True
    causal = torch.ones(T, T, dtype=torch.bool).triu(1)

    def run(m, x):
        n = len(x)
        masks = {
            "pairs": {"attn_mask": causal},
            "pairs_by_head": {"attn_mask": causal.expand(n * heads, T, T)},
            "keys": {"key_padding_mask": hidden[1 : 1 + n] if n == 1 else hidden[:n]},
        }[mask]
        x = x if batch_first else x.transpose(0, 1)
        h = m["a"](x, x, x, need_weights=False, **masks)[0]
        return h if batch_first else h.transpose(0, 1)

    if mask == "keys":
        hidden[0, -1] = True  # as the reference, which sees one sample, takes it
    model = Net(run, a=nn.MultiheadAttention(D, heads, batch_first=batch_first))
    x = sequences()
    assert record(tmp_path / "run", model, x, x) == expected_norms(model, x, x)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_that_are_given_a_state(kind, batch_first, tmp_path):
    """It has the samples on its second axis, whatever `batch_first` says."""

    def run(m, x):
        state = torch.linspace(-1, 1, 2 * D, dtype=x.dtype).view(2, 1, D).expand(2, len(x), D)
        state = (state, 2 * state) if kind == "LSTM" else state
        x = x if batch_first else x.transpose(0, 1)
        h = m["a"](x, state)[0]
        return h if batch_first else h.transpose(0, 1)

    layer = getattr(nn, kind)(D, D, num_layers=2, batch_first=batch_first)
    model = Net(run, a=layer)
    x = sequences()
    assert record(tmp_path / "run", model, x, x) == expected_norms(model, x, x)


def test_packed_sequences_are_refused_by_name(tmp_path):
    """Training itself got an AttributeError."""

    def run(m, x):
        packed = pack_padded_sequence(x, [T] * len(x), batch_first=True)
        return pad_packed_sequence(m["a"](packed)[0], batch_first=True)[0]

    model = Net(run, a=nn.LSTM(D, D, batch_first=True))
    with pytest.raises(UnsupportedModelError, match=r"`layers.a` returns a PackedSequence"):
        record(tmp_path / "run", model, sequences())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_zero_but_for_rounding(dtype, tmp_path):
    """Of the scale of a norm over one value: sums of rounding errors were compared."""
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(1, 1, 3, dropout=0.0, batch_first=True, norm_first=True)
    model = Net(lambda m, x: m["a"](m["a"](x).tanh()), d=1, a=layer).to(dtype)
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    x = torch.randn(N, 2, 1, dtype=dtype)
    batches = x[:1], x[1:], x
    found = record(tmp_path / "run", model, *batches)
    assert found == expected_norms(model, *batches)


def test_positions_of_an_embedding_that_cancel(tmp_path):
    """Rounding left a square below 0, and its root was not a number."""
    embed = nn.Embedding(3, 5)

    class Cancels(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = embed, nn.Linear(5, C)

        def forward(self, x):
            weights = torch.tensor([0.1, 0.2, -0.3], dtype=self.head.weight.dtype)
            return self.head((self.embed(x) * weights.unsqueeze(1)).sum(1))

    model = Cancels()
    x = torch.arange(3).unsqueeze(1).expand(3, 3)
    with Recorder(tmp_path / "run", model, [GradNorm(blocks=True)]) as recorder:
        losses = losses_of(model(x), Y[:3])
        recorder.observe(losses, torch.arange(3))
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm/embed"].tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    assert (rows["status"] == 0).all()


@ENGINES
def test_a_copy_of_the_model_is_not_observed(engine, tmp_path):
    """A running average, say, copied while the hooks are on."""
    model = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, C))
    x = torch.randn(N, D)
    with Recorder(tmp_path / "run", model, [GradNorm(engine=engine)]) as recorder:
        average = copy.deepcopy(model)
        losses = losses_of(model(x), Y)
        average(3 * x).sum().backward()
        recorder.observe(losses, torch.arange(N))
        losses.mean().backward()
    found = open_run(tmp_path / "run").samples()["grad_norm"].tolist()
    assert found == expected_norms(model, x)


@ENGINES
@pytest.mark.parametrize("kind", ["tied", "twice", "lstm"])
def test_what_is_differentiated_is_so_before_the_optimiser_updates(kind, engine, tmp_path):
    """It was at the next batch, with the parameters of then; tests that never updated passed."""
    run, layers = {
        "tied": (
            lambda m, x: m["b"](m["a"](x).tanh()),
            {"a": nn.Linear(D, D), "b": nn.Linear(D, D)},
        ),
        "twice": (lambda m, x: m["a"](m["a"](x).tanh()), {"a": nn.Linear(D, D)}),
        "lstm": (lambda m, x: m["a"](x)[0], {"a": nn.LSTM(D, D, batch_first=True)}),
    }[kind]
    model = Net(run, **layers)
    if kind == "tied":
        layers["b"].weight = layers["a"].weight
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.5), sequences()
    found, norms = tmp_path / "run", []
    with Recorder(found, model, [GradNorm(engine=engine)], repeats=True) as recorder:
        for _ in range(3):
            norms.append(grad_norms(model, x, Y, losses_of)["total"])
            losses = losses_of(model(x), Y)
            recorder.observe(losses, torch.arange(N))
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = open_run(found).samples(repeats=True).sort_values(["step", "sample_id"])
    assert rows["grad_norm"].tolist() == pytest.approx(torch.cat(norms).tolist(), rel=1e-5)
