"""Modules that no list of layers mentions, and parameters used more than once, by name."""

import torch
from cases import C
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

T, D = 4, 5


class Net(nn.Module):
    """A body over sequences (N, T, D), averaged, and a head."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.head = nn.Linear(D, C)

    def forward(self, x):
        h = self.body(x)
        h = h[0] if isinstance(h, tuple) else h
        return self.head(h.mean(dim=1))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, D))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x * self.factor + self.offset


class OwnLinear(nn.Linear):
    """A subclass may do anything, so it has no rule."""

    def forward(self, x):
        return F.linear(x, self.weight.abs(), self.bias)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight**3

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * weight**3, (grad * x * 3 * weight**2).sum((0, 1))


class CubeLayer(nn.Module):
    """A custom autograd function that vmap does not know."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, D))

    def forward(self, x):
        return Cube.apply(x, self.weight)


class SelfAttention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 1, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        h = self.attention(x, x, x, need_weights=False)[0]
        return h if self.batch_first else h.transpose(0, 1)


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(self.layer(x).tanh())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(D, D, bias=False)
        self.decode = nn.Linear(D, D, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(self.encode(x).tanh())


class EmbeddingTied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, D)
        self.head = nn.Linear(D, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens).tanh())


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first = nn.Linear(D, D)
        self.layers = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.LayerNorm(D))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return checkpoint(self.layers, self.first(x), use_reentrant=self.use_reentrant)


BODIES = {
    "bare_parameters": Scale,
    "subclass": lambda: OwnLinear(D, D),
    "custom_function": CubeLayer,
    "weight_norm": lambda: weight_norm(nn.Linear(D, D)),
    "attention": lambda: SelfAttention(True),
    "attention_time_first": lambda: SelfAttention(False),
    "lstm": lambda: nn.LSTM(D, D, batch_first=True),
    "gru": lambda: nn.GRU(D, D, num_layers=2, batch_first=True),
    "encoder_layer": lambda: nn.TransformerEncoderLayer(D, 1, 8, dropout=0.0, batch_first=True),
    "used_twice": lambda: Twice(nn.Linear(D, D)),
    "scale_used_twice": lambda: Twice(Scale()),
    "norm_used_twice": lambda: Twice(nn.LayerNorm(D)),
    "tied": Tied,
    "checkpointed": lambda: Checkpointed(False),
    "checkpointed_reentrant": lambda: Checkpointed(True),
}
