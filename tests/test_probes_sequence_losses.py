"""`sequence_losses`: padded batches give the norms of the sequences alone."""

import pytest
import torch
from reference import grad_norms
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import GradNorm, OutputGradNorm, Recorder, sequence_losses

V, T, D = 7, 6, 4
LENGTHS = (6, 4, 1, 2)
N = len(LENGTHS)
IDS = torch.arange(N)


class Causal(nn.Module):
    """Embeddings, LayerNorms, attention and an MLP; with a mask, attention is not causal."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, D, padding_idx=0), nn.Embedding(T, D)
        self.norm, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(D, 8), nn.ReLU(inplace=True), nn.Linear(8, D))
        self.head = nn.Linear(D, V)

    def forward(self, x, is_padding=None):
        t = x.shape[1]
        h = self.tokens(x) + self.positions(torch.arange(t).expand(len(x), t))
        causal = torch.ones(t, t, dtype=torch.bool).triu(1) if is_padding is None else None
        masks = {"attn_mask": causal, "key_padding_mask": is_padding}
        g = self.norm(h)
        h = h + self.attention(g, g, g, need_weights=False, **masks)[0]
        return self.head(h + self.mlp(self.norm2(h)))


def batch():
    torch.manual_seed(2)
    model = Causal()
    x = torch.randint(1, V, (N, T))
    y = torch.randint(0, V, (N, T))
    for i, length in enumerate(LENGTHS):
        x[i, length:] = 0
        y[i, length:] = -100
    return model, x, y


def token_losses(logits, labels):
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def alone(model, x, y, reduction):
    """Norm of each sequence by itself, without its padding."""
    reduced = {"sum": torch.sum, "mean": torch.mean}[reduction]

    def loss(logits, labels):
        return reduced(token_losses(logits, labels), dim=1)

    rows = [(x[i : i + 1, :length], y[i : i + 1, :length]) for i, length in enumerate(LENGTHS)]
    return [grad_norms(model, *row, loss)["total"].item() for row in rows]


@pytest.mark.parametrize("engine", ["backpack", "fused"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_padded_batch_gives_the_norms_of_the_sequences_alone(reduction, engine, tmp_path):
    model, x, y = batch()
    expected = alone(model, x, y, reduction)
    with Recorder(tmp_path / "run", model, [GradNorm(engine=engine)]) as recorder:
        losses = sequence_losses(token_losses(model(x), y), y != -100, reduction=reduction)
        recorder.observe(losses, IDS)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)


def test_attention_both_ways_with_a_padding_mask(tmp_path):
    """Through `key_padding_mask`, which has the samples on its own axis."""
    model, x, y = batch()

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x, x == 0)

    expected = alone(Masked(), x, y, "sum")
    with Recorder(tmp_path / "run", Masked(), [GradNorm()]) as recorder:
        losses = sequence_losses(token_losses(recorder.model(x), y), y != -100)
        recorder.observe(losses, IDS)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_norm_at_the_output_counts_real_tokens_only(tmp_path):
    model, x, y = batch()
    logits = model(x)
    residual = logits.softmax(-1) - F.one_hot(y.clamp(min=0), V)
    expected = (residual.square().sum(-1) * (y != -100)).sum(1).sqrt().tolist()
    with Recorder(tmp_path / "run", model, [OutputGradNorm()]) as recorder:
        losses = sequence_losses(token_losses(model(x), y), y != -100)
        recorder.observe(losses, IDS)
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["output_grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)


def test_masked_values_do_not_matter_and_get_no_gradient():
    values = torch.tensor([[1.0, 2.0, torch.nan], [4.0, torch.inf, 6.0], [7.0, 8.0, 9.0]])
    values.requires_grad_()
    mask = torch.tensor([[True, True, False], [True, False, True], [False, False, False]])
    for reduction, expected, slopes in (
        ("sum", [3.0, 10.0, 0.0], [1.0, 1.0]),
        ("mean", [1.5, 5.0, 0.0], [0.5, 0.5]),
    ):
        losses = sequence_losses(values, mask, reduction=reduction)
        assert losses.tolist() == expected
        (gradient,) = torch.autograd.grad(losses.sum(), values)
        assert gradient[mask].tolist() == 2 * slopes
        assert not gradient[~mask].any()


def test_an_empty_sequence_has_loss_and_norm_zero(tmp_path):
    model, x, y = batch()
    y[1] = -100
    with Recorder(tmp_path / "run", model, [GradNorm(), OutputGradNorm()]) as recorder:
        losses = sequence_losses(token_losses(model(x), y), y != -100, reduction="mean")
        recorder.observe(losses, IDS)
        losses.mean().backward()
    row = open_run(tmp_path / "run").samples().set_index("sample_id").loc[1]
    assert (row["grad_norm"], row["output_grad_norm"], row["status"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("losses", "mask", "kwargs", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 2, dtype=torch.bool), {}, "one shape"),
        (torch.ones(2), torch.ones(2, dtype=torch.bool), {}, "reduction='none'"),
        (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), {}, "labels != -100"),
        (torch.ones(2, 3), torch.ones(2, 3).bool(), {"reduction": "max"}, "sum or mean"),
    ],
)
def test_wrong_inputs_are_refused(losses, mask, kwargs, message):
    with pytest.raises(ValueError, match=message):
        sequence_losses(losses, mask, **kwargs)
