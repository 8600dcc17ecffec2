"""Small models with inputs, labels and a loss, by name; and the loop that records them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamics import open_run
from probes import Recorder

N, C = 6, 4


def cross_entropy(outputs, labels):
    return F.cross_entropy(outputs, labels, reduction="none")


def squared_error(outputs, targets):
    return (outputs - targets).square().sum(dim=1)


@dataclass
class Case:
    model: nn.Module
    x: Tensor
    y: Tensor
    loss: object = cross_entropy

    def losses(self, rows=slice(None)):
        return self.loss(self.model(self.x[rows]), self.y[rows])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, C)

    def forward(self, x):
        h = self.stem(x)
        h = h + self.conv(F.relu(self.norm(h), inplace=True))
        return self.head(h.mean(dim=(2, 3)))


class Sequence(nn.Module):
    """(N, T, d) through linear layers, then the mean over T."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, C)

    def forward(self, x):
        return self.second(self.first(x).tanh()).mean(dim=1)


class Embedded(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.embed = nn.Embedding(7, 5, **kwargs)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, C)

    def forward(self, x):
        return self.head(self.norm(self.embed(x)).tanh().mean(dim=1))


def mlp(*, bias=True):
    return nn.Sequential(
        nn.Linear(5, 8, bias=bias),
        nn.ReLU(inplace=True),
        nn.Linear(8, 6, bias=bias),
        nn.ReLU(inplace=True),
        nn.Linear(6, C, bias=bias),
    )


def frozen():
    model = mlp()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def batch_norm_eval():
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    model = nn.Sequential(conv, norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, C))
    model.append(nn.BatchNorm1d(C))
    for layer in (norm, model[-1]):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    return model.eval()


def flat(*layers, features):
    """Layers, then a linear head on what they return, flattened."""
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, C))


IMAGE, SIGNAL, VOLUME = (3, 8, 8), (3, 9), (2, 5, 4, 4)

_MODELS = {
    # name: (model, shape of an input, or "tokens")
    "mlp": (mlp, (5,)),
    "no_bias": (lambda: mlp(bias=False), (5,)),
    "frozen": (frozen, (5,)),
    "linear_alone": (lambda: nn.Linear(5, C), (5,)),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, 3, dilation=2, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(20, C),
        ),
        IMAGE,
    ),
    "grouped": (
        lambda: flat(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(True), features=216),
        IMAGE,
    ),
    "circular": (
        lambda: flat(nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), features=128),
        IMAGE,
    ),
    "same": (lambda: flat(nn.Conv2d(3, 2, 3, padding="same"), features=128), IMAGE),
    "conv1d": (lambda: flat(nn.Conv1d(3, 4, 3, stride=2), nn.ReLU(True), features=16), SIGNAL),
    "conv3d": (lambda: flat(nn.Conv3d(2, 3, 2, padding=1), nn.ReLU(True), features=450), VOLUME),
    "transposed1d": (
        lambda: flat(nn.ConvTranspose1d(3, 2, 3, stride=2), nn.ReLU(True), features=38),
        SIGNAL,
    ),
    "transposed2d": (
        lambda: flat(nn.ConvTranspose2d(3, 3, 2, stride=2, groups=3), features=768),
        IMAGE,
    ),
    "transposed3d": (lambda: flat(nn.ConvTranspose3d(2, 2, 2), features=300), VOLUME),
    "embedding": (Embedded, "tokens"),
    "embedding_padded": (lambda: Embedded(padding_idx=2), "tokens"),
    "sequence": (Sequence, (3, 5)),
    "residual": (Residual, IMAGE),
    "layer_norm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, C)),
        (5,),
    ),
    "group_norm": (
        lambda: flat(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(True), features=144),
        IMAGE,
    ),
    "instance_norm": (
        lambda: flat(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), features=144),
        IMAGE,
    ),
    "instance_norm_tracked": (
        lambda: flat(nn.InstanceNorm2d(3, affine=True, track_running_stats=True), features=192),
        IMAGE,
    ),
    "rms_norm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, C)),
        (5,),
    ),
    "prelu": (
        lambda: flat(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.PReLU(), features=144),
        IMAGE,
    ),
    "batch_norm_eval": (batch_norm_eval, IMAGE),
    "regression": (lambda: mlp(), (5,)),
    "batch_of_one": (mlp, (5,)),
}

NAMES = tuple(_MODELS)


def build(name, dtype=torch.float32, device="cpu"):
    """The case of that name, always the same."""
    make, shape = _MODELS[name]
    n = 1 if name == "batch_of_one" else N
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, name)))
        model = make()
        x = torch.randint(7, (n, 5)) if shape == "tokens" else torch.randn(n, *shape)
        y = torch.randint(C, (n,))
        for p in model.parameters():  # norms start at 1 and 0, which hides mistakes
            if p.dim() == 1:
                p.data += 0.3 * torch.randn_like(p)
        loss = squared_error if name == "regression" else cross_entropy
        y = torch.randn(n, C) if name == "regression" else y
    x = x.to(dtype) if x.is_floating_point() else x
    y = y.to(dtype) if y.is_floating_point() else y
    return Case(model.to(device, dtype), x.to(device), y.to(device), loss)


def permuted_ids(n):
    """Sample ids that are not 0, 1, 2, … in order."""
    return torch.arange(n).flip(0) * 3 + 1


def record(out, case, probes, total=torch.mean, **kwargs):
    """Record one batch; `total` makes the loss that is back-propagated. Returns rows by position.

    The model is not updated.
    """
    ids = permuted_ids(len(case.x))
    with Recorder(out, case.model, probes, **kwargs) as recorder:
        losses = case.losses()
        recorder.observe(losses, ids)
        total(losses).backward()
    case.model.zero_grad()
    return open_run(out).samples().set_index("sample_id").loc[ids.tolist()]
