"""Hypothesis strategies for small networks of every kind of layer, with everything drawn.

A network is a list of parts, each a layer and what is done around it: an activation (in place or
not), a shortcut, a second use, checkpointing. Shapes are followed by running each layer on zeros.
"""

import math
import warnings
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

VOCABULARY, N_CLASSES = 5, 3


class Scale(nn.Module):
    """Bare parameters: a scale, an offset, or both, broadcast against a sample."""

    def __init__(self, scale, offset):
        super().__init__()
        self.scale = None if scale is None else nn.Parameter(torch.ones(scale))
        self.offset = None if offset is None else nn.Parameter(torch.zeros(offset))

    def forward(self, x):
        x = x if self.scale is None else x * self.scale
        return x if self.offset is None else x + self.offset


class TiedLinear(nn.Module):
    """Two linear layers, one weight."""

    def __init__(self, d, bias):
        super().__init__()
        self.encode, self.decode = nn.Linear(d, d, bias=bias), nn.Linear(d, d, bias=bias)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(self.encode(x).tanh())


class SelfAttention(nn.Module):
    def __init__(self, causal, need_weights, batch_first, **kwargs):
        super().__init__()
        self.causal, self.need_weights, self.batch_first = causal, need_weights, batch_first
        self.attention = nn.MultiheadAttention(batch_first=batch_first, **kwargs)

    def forward(self, x):
        t = x.shape[1]
        mask = torch.ones(t, t, dtype=torch.bool).triu(1) if self.causal else None
        x = x if self.batch_first else x.transpose(0, 1)
        h = self.attention(x, x, x, attn_mask=mask, need_weights=self.need_weights)[0]
        return h if self.batch_first else h.transpose(0, 1)


class Recurrent(nn.Module):
    def __init__(self, kind, batch_first, **kwargs):
        super().__init__()
        self.batch_first = batch_first
        self.layer = getattr(nn, kind)(batch_first=batch_first, **kwargs)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        h = self.layer(x)[0]
        return h if self.batch_first else h.transpose(0, 1)


OWN = {kind.__name__: kind for kind in (Scale, TiedLinear, SelfAttention, Recurrent)}


@dataclass(frozen=True)
class Part:
    """A layer by class name and arguments, and what is done around it."""

    kind: str
    kwargs: tuple
    activation: str = "none"
    shortcut: bool = False
    twice: bool = False
    checkpointed: str = "no"
    frozen: str = "no"

    def build(self):
        return (OWN.get(self.kind) or getattr(nn, self.kind))(**dict(self.kwargs))


@dataclass(frozen=True)
class Network:
    """What a network is built from; the same seed gives the same network and batch."""

    parts: tuple
    tokens: bool
    shape: tuple
    n: int
    by_token: bool
    head_frozen: bool
    seed: int


def part(kind, /, **kwargs):
    return Part(kind, tuple(kwargs.items()))


@st.composite
def networks(draw):
    """A network of one to three layers and a linear head, with a batch size."""
    tokens = draw(st.booleans()) and draw(st.booleans())
    rank = 1 if tokens else draw(st.sampled_from([1, 2, 2, 3, 3, 4]))
    channels_first = rank > 2 or (rank == 2 and draw(st.booleans()))
    shape = tuple(draw(st.integers(1 if axis else 2, 5)) for axis in range(rank))
    first = shape
    parts = []
    if tokens:
        parts.append(draw(embeddings()))
        shape = shape_after(parts[0], torch.zeros(2, *shape, dtype=torch.int64))
    for _ in range(draw(st.integers(1, 3))):
        new = draw(layers(shape, channels_first and len(shape) == rank))
        before, shape = shape, shape_after(new, torch.zeros(2, *shape))
        parts.append(draw(surroundings(new, same=before == shape, first=not parts)))
    by_token = len(shape) == 2 and draw(st.booleans())
    if all(p.frozen == "all" for p in parts):
        parts[-1] = replace(parts[-1], frozen="no")
    head_frozen = draw(st.booleans())
    n, seed = draw(st.integers(1, 4)), draw(st.integers(0, 1000))
    return Network(tuple(parts), tokens, first, n, by_token, head_frozen, seed)


def shape_after(new, x):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slow paths; the tests say which
        return tuple(new.build().eval()(x).shape[1:])


@st.composite
def surroundings(draw, new, *, same, first):
    # Reentrant checkpoints pass a gradient on only if their input has one, and autograd lets
    # nothing change their output in place where that is a view.
    checkpointed = draw(st.sampled_from(["no", "no", "yes"] + ["reentrant"] * (not first)))
    activations = ["none", "tanh", "relu", "relu_"][: 3 if checkpointed == "reentrant" else 4]
    return replace(
        new,
        activation=draw(st.sampled_from(activations)),
        shortcut=same and draw(st.booleans()),
        twice=same and draw(st.booleans()),
        checkpointed=checkpointed,
        frozen=draw(st.sampled_from(["no", "no", "some", "all"])),
    )


@st.composite
def embeddings(draw):
    padding = draw(st.none() | st.integers(-VOCABULARY, VOCABULARY - 1))
    kwargs = {"num_embeddings": VOCABULARY, "embedding_dim": draw(st.integers(1, 4))}
    kind = draw(st.sampled_from(["Embedding", "Embedding", "EmbeddingBag"]))
    if kind == "EmbeddingBag":
        kwargs["mode"] = draw(st.sampled_from(["sum", "mean"]))
    frozen = draw(st.sampled_from(["no", "no", "all"]))
    return replace(part(kind, padding_idx=padding, **kwargs), frozen=frozen)


def layers(shape, channels_first):
    """Layers that take samples of a shape."""
    kinds = [linears(shape), norms_of_last_axes(shape), scales(shape), prelus(shape)]
    if len(shape) == 1 or channels_first:
        kinds.append(batch_norms(shape))
        if math.prod(shape) > 1:  # torch normalises no single value
            kinds.append(group_norms(shape))
    if channels_first:
        kinds += [convolutions(shape), convolutions(shape), transposed(shape)]
        if math.prod(shape[1:]) > 1:
            kinds.append(instance_norms(shape))
    elif len(shape) == 2:
        kinds += [attentions(shape), recurrents(shape)]
        if shape[1] > 1:  # of a single value, a LayerNorm makes zero but for rounding
            kinds.append(encoders(shape))
    return st.one_of(kinds)


@st.composite
def linears(draw, shape):
    bias = draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        return part("TiedLinear", d=shape[-1], bias=bias)
    d_out = draw(st.integers(1, 5) | st.just(shape[-1]))
    return part("Linear", in_features=shape[-1], out_features=d_out, bias=bias)


@st.composite
def norms_of_last_axes(draw, shape):
    last = shape[draw(st.integers(0, len(shape) - 1)) :]
    if draw(st.booleans()) or math.prod(last) == 1:
        return part("RMSNorm", normalized_shape=last)
    return part("LayerNorm", normalized_shape=last, bias=draw(st.booleans()))


@st.composite
def scales(draw, shape):
    sizes = st.sampled_from([(), shape[-1:], shape, (shape[0], *[1] * (len(shape) - 1))])
    scale, offset = draw(st.none() | sizes), draw(st.none() | sizes)
    scale = () if scale is None and offset is None else scale
    return part("Scale", scale=scale, offset=offset)


@st.composite
def prelus(draw, shape):
    return part("PReLU", num_parameters=draw(st.sampled_from([1, shape[0]])))


@st.composite
def batch_norms(draw, shape):
    kind = f"BatchNorm{max(len(shape) - 1, 1)}d"
    return part(kind, num_features=shape[0], eps=draw(st.sampled_from([1e-5, 0.1])))


@st.composite
def group_norms(draw, shape):
    groups = draw(st.sampled_from([g for g in range(1, shape[0] + 1) if shape[0] % g == 0]))
    groups = groups if math.prod(shape) > groups else 1  # torch refuses groups of one value
    return part("GroupNorm", num_groups=groups, num_channels=shape[0])


@st.composite
def instance_norms(draw, shape):
    tracked = draw(st.booleans())
    kind = f"InstanceNorm{len(shape) - 1}d"
    return part(kind, num_features=shape[0], affine=True, track_running_stats=tracked)


@st.composite
def channel_counts(draw, d_in):
    """Groups that divide both, and output channels."""
    groups = draw(st.sampled_from([g for g in range(1, d_in + 1) if d_in % g == 0]))
    return groups, groups * draw(st.integers(1, 3))


@st.composite
def convolutions(draw, shape):
    axes = range(len(shape) - 1)
    groups, d_out = draw(channel_counts(shape[0]))
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    stride = tuple(draw(st.integers(1, 3)) for _ in axes)
    dilation = tuple(draw(st.integers(1, 2)) for _ in axes)
    # the paddings that repeat the input may not reach beyond it
    most = [size - 1 if mode == "reflect" else size for size in shape[1:]]
    padding = tuple(draw(st.integers(0, min(2, m))) for m in most)
    spans = [(s + 2 * p - 1) // d + 1 for s, p, d in zip(shape[1:], padding, dilation, strict=True)]
    kernel = tuple(draw(st.integers(1, min(3, span))) for span in spans)
    fits_same = all(d * (k - 1) <= m for d, k, m in zip(dilation, kernel, most, strict=True))
    if set(stride) == {1} and (mode == "zeros" or fits_same) and draw(st.booleans()):
        padding = "same"
    elif not any(padding) and draw(st.booleans()):
        padding = "valid"
    return part(
        f"Conv{len(axes)}d",
        in_channels=shape[0],
        out_channels=d_out,
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )


@st.composite
def transposed(draw, shape):
    axes = range(len(shape) - 1)
    groups, d_out = draw(channel_counts(shape[0]))
    kernel, stride, dilation = (
        tuple(draw(st.integers(1, most)) for _ in axes) for most in (3, 3, 2)
    )
    extra = tuple(draw(st.integers(0, max(stride[a], dilation[a]) - 1)) for a in axes)
    lengths = [
        (shape[a + 1] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + extra[a] + 1 for a in axes
    ]
    padding = tuple(draw(st.integers(0, min(2, (length - 1) // 2))) for length in lengths)
    return part(
        f"ConvTranspose{len(axes)}d",
        in_channels=shape[0],
        out_channels=d_out,
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        output_padding=extra,
        groups=groups,
        bias=draw(st.booleans()),
        dilation=dilation,
    )


@st.composite
def attentions(draw, shape):
    heads = draw(st.sampled_from([h for h in range(1, shape[1] + 1) if shape[1] % h == 0]))
    names = ("causal", "need_weights", "batch_first", "bias", "add_bias_kv")
    options = {name: draw(st.booleans()) for name in names}
    if options["add_bias_kv"]:
        options["causal"] = False
    return part("SelfAttention", embed_dim=shape[1], num_heads=heads, **options)


@st.composite
def recurrents(draw, shape):
    kwargs = {name: draw(st.booleans()) for name in ("batch_first", "bidirectional", "bias")}
    kwargs |= {"hidden_size": draw(st.integers(1, 3)), "num_layers": draw(st.integers(1, 2))}
    kind = draw(st.sampled_from(["RNN", "LSTM", "GRU"]))
    if kind == "LSTM" and kwargs["hidden_size"] > 1 and draw(st.booleans()):
        kwargs["proj_size"] = kwargs["hidden_size"] - 1
    return part("Recurrent", kind=kind, input_size=shape[1], **kwargs)


@st.composite
def encoders(draw, shape):
    return part(
        "TransformerEncoderLayer",
        d_model=shape[1],
        nhead=1,
        dim_feedforward=draw(st.integers(1, 4)),
        dropout=0.0,
        batch_first=True,
        norm_first=draw(st.booleans()),
    )


class Built(nn.Module):
    """The network in torch; `plain` leaves checkpoints away, for the reference."""

    def __init__(self, network):
        super().__init__()
        self.network, self.plain = network, False
        self.parts = nn.ModuleList(p.build() for p in network.parts)
        shape = network.shape
        zeros = torch.zeros(2, *shape, dtype=torch.int64 if network.tokens else None)
        for layer in self.parts:
            zeros = layer.eval()(zeros)
        features = zeros.shape[-1] if network.by_token else zeros[0].numel()
        self.head = nn.Linear(features, N_CLASSES)

    def forward(self, x):
        for spec, layer in zip(self.network.parts, self.parts, strict=True):
            x = self._around(spec, layer, x)
        return self.head(x if self.network.by_token else x.flatten(1))

    def _around(self, spec, layer, x):
        def run(h):
            return layer(layer(h).tanh()) if spec.twice else layer(h)

        wanted = spec.checkpointed != "no" and not self.plain
        reentrant = spec.checkpointed == "reentrant" and x.requires_grad
        h = checkpoint(run, x, use_reentrant=reentrant) if wanted else run(x)
        h = x + h if spec.shortcut else h
        if spec.activation == "relu_":
            return h.relu_()
        return h if spec.activation == "none" else getattr(h, spec.activation)()


def build(network):
    """The model in double precision, its inputs, labels and per-sample loss."""
    torch.manual_seed(network.seed)
    model = Built(network).double().eval()
    for name, p in model.named_parameters():  # norms start at 1 and 0, which hides mistakes
        p.data += 0.3 * torch.randn_like(p)
        own = network.parts[int(name.split(".")[1])].frozen if name.startswith("parts") else None
        frozen = (
            network.head_frozen
            if own is None
            else own == "all" or (own == "some" and torch.rand(()) < 0.5)
        )
        p.requires_grad_(not frozen)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 2)
    if not any(p.requires_grad for p in model.parameters()):
        model.head.requires_grad_(True)
    n, shape = network.n, network.shape
    x = (
        torch.randint(VOCABULARY, (n, *shape))
        if network.tokens
        else torch.randn(n, *shape).double()
    )
    y = torch.randint(N_CLASSES, model(x).shape[:-1])
    return model, x, y


def sample_losses(output, labels):
    """Cross-entropy; of a sequence, the sum over its tokens."""
    if output.dim() == 2:
        return F.cross_entropy(output, labels, reduction="none")
    return (
        F.cross_entropy(output.flatten(0, 1), labels.flatten(), reduction="none")
        .view(labels.shape)
        .sum(1)
    )
