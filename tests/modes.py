"""Ways to train, each with every probe: what is recorded, beside a plain loop in float64.

`judge` trains twice in one mode, with a probe and without, and says how far the recorded values are
from those of single samples in float64, and whether training was bit-identical.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from reference import fisher_traces, grad_norms
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dynamics import open_run
from probes import (
    FisherTrace,
    GradNorm,
    OutputGradNorm,
    Recorder,
    SampleLoss,
    UnsupportedModelError,
    every,
)

N, D, C, STEPS, SIZE = 8, 6, 4, 4, 4
X = torch.randn(N, D, generator=torch.Generator().manual_seed(5))
IMAGES = torch.randn(N, 3, 6, 6, generator=torch.Generator().manual_seed(6))
TOKENS = torch.randint(0, D, (N, 5), generator=torch.Generator().manual_seed(7))
Y = torch.arange(N) % C

OVERFLOWS = 1  # the batch whose scaled gradients are infinite


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


PROBES = {
    "SampleLoss": lambda x: SampleLoss(),
    "GradNorm": lambda x: GradNorm(),
    "GradNorm fused": lambda x: GradNorm(engine="fused"),
    "GradNorm eval": lambda x: GradNorm(mode="eval"),
    "OutputGradNorm": lambda x: OutputGradNorm(),
    "FisherTrace": lambda x: FisherTrace(every(steps=1), data=x, kind="exact"),
}


@dataclass(frozen=True)
class Mode:
    """A way to train.

    Attributes:
        make: The network.
        x: Its inputs.
        prepare: Called with the network once the recorder is entered; what is called in the loop.
        before: The same, before the recorder is entered.
        autocast: Type of autocast, if any.
        scaled: Whether with a GradScaler, one of whose steps overflows.
        accumulate: Batches for each update.
        clip: Whether gradients are clipped.
        twin: The same network as one that can be differentiated sample by sample, if it is not.
    """

    make: Callable[[], nn.Module]
    x: torch.Tensor = field(default_factory=lambda: X)
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    before: Callable[[nn.Module], nn.Module] = lambda model: model
    autocast: torch.dtype | None = None
    scaled: bool = False
    accumulate: int = 1
    clip: bool = False
    twin: Callable[[], nn.Module] | None = None


def mlp(**options):
    first, second = nn.Linear(D, 10), nn.Linear(10, 10)
    return nn.Sequential(first, nn.ReLU(**options), second, nn.Tanh(), nn.Linear(10, C))


def frozen():
    model = mlp()
    model[0].requires_grad_(False)
    return model


class LowRank(nn.Module):
    """A frozen linear layer and a trained product of two narrow ones beside it."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + 0.5 * self.up(self.down(x))


def adapted():
    return nn.Sequential(LowRank(nn.Linear(D, 10)), nn.ReLU(), LowRank(nn.Linear(10, C)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(D, C), nn.Linear(C, C)
        self.head = nn.Linear(C, D, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.embed(x).mean(1))))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first, self.last = nn.Linear(D, 10), nn.Linear(10, C)
        self.inner = nn.Sequential(nn.ReLU(), nn.Linear(10, 10), nn.Tanh())
        self.use_reentrant = use_reentrant

    def forward(self, x):
        h = checkpoint(self.inner, self.first(x), use_reentrant=self.use_reentrant)
        return self.last(h)


def convolutional():
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 3)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, C))


def normalised():
    return nn.Sequential(nn.Linear(D, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, C))


def compiled(model):
    return torch.compile(model, backend="aot_eager")


def compiled_and_called(model):
    network = compiled(model)
    network(X)
    return network


CHANNELS_LAST = IMAGES.to(memory_format=torch.channels_last)
MODES = {
    "plain loop": Mode(mlp),
    "gradient accumulation": Mode(mlp, accumulate=2),
    "gradient clipping": Mode(mlp, clip=True),
    "autocast bfloat16": Mode(mlp, autocast=torch.bfloat16),
    "autocast float16, GradScaler": Mode(mlp, autocast=torch.float16, scaled=True),
    "GradScaler": Mode(mlp, scaled=True),
    "checkpointing, reentrant": Mode(lambda: Checkpointed(True), twin=lambda: Checkpointed(False)),
    "checkpointing, non-reentrant": Mode(lambda: Checkpointed(False)),
    "frozen layers": Mode(frozen),
    "low-rank adapters (LoRA)": Mode(adapted),
    "tied weights": Mode(Tied, TOKENS),
    "channels last": Mode(
        lambda: convolutional().to(memory_format=torch.channels_last), CHANNELS_LAST
    ),
    "in-place activations": Mode(lambda: mlp(inplace=True)),
    "BatchNorm in training": Mode(normalised),
    "torch.compile after entering": Mode(mlp, prepare=compiled),
    "torch.compile, called before entering": Mode(mlp, before=compiled_and_called),
}


@dataclass(frozen=True)
class Verdict:
    """What a mode does to a probe.

    Attributes:
        kind: exact, rounding or refused.
        error: Largest relative distance from float64; None if refused.
        identical: Whether training ended with the same bits as without the probe.
        reason: Why it is refused, first line.
    """

    kind: str
    error: float | None = None
    identical: bool | None = None
    reason: str | None = None


def judge(name, probe, folder):
    """Train in a mode with a probe and without."""
    mode, expected = MODES[name], []
    try:
        model = train(mode, folder, probe, expected)
    except UnsupportedModelError as error:
        lines = str(error).splitlines()
        return Verdict("refused", reason=(lines[1] if len(lines) > 1 else lines[0]).strip(" -"))
    pairs = zip(train(mode).parameters(), model.parameters(), strict=True)
    identical = all(torch.equal(a, b) for a, b in pairs)
    error = largest_error(open_run(folder), expected)
    return Verdict("exact" if identical and error < 1e-5 else "rounding", error, identical)


def train(mode, folder=None, probe=None, expected=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mode.make()
    network = mode.before(model)
    if folder is None:
        loop(mode, model, mode.prepare(network))
        return model
    made = PROBES[probe](mode.x)
    probes = [made] if probe == "SampleLoss" else [SampleLoss(), made]
    with Recorder(folder, model, probes) as recorder:
        loop(mode, model, mode.prepare(network), recorder, probe, expected)
    return model


def loop(mode, model, network, recorder=None, probe=None, expected=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=mode.scaled, init_scale=128.0)
    for batch in range(STEPS):
        rows = torch.arange(N)[batch % 2 :: 2]
        x, y = mode.x[rows], Y[rows]
        with torch.autocast("cpu", dtype=mode.autocast, enabled=mode.autocast is not None):
            logits = network(x)
            losses = F.cross_entropy(logits, y, reduction="none")
        if recorder is not None:
            expected.append(reference(mode, model, probe, x, y, batch, recorder.step))
            recorder.observe(losses, batch * SIZE + torch.arange(SIZE), logits=logits, labels=y)
        overflow = math.inf if mode.scaled and batch == OVERFLOWS else 1.0
        scaler.scale(losses.mean() * overflow / mode.accumulate).backward()
        if (batch + 1) % mode.accumulate:
            continue
        scaler.unscale_(optimizer)
        if mode.clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


@dataclass(frozen=True)
class Expected:
    """What a probe should have recorded at a batch: values of samples by column, or a trace."""

    sample_id: list
    column: str
    values: list
    step: int


def reference(mode, model, probe, x, y, batch, step):
    """The same network as it is now, in float64, by itself."""
    twin = (mode.twin or mode.make)()
    twin.load_state_dict(model.state_dict())
    ids = [batch * SIZE + i for i in range(SIZE)]
    if probe == "FisherTrace":
        return Expected([], "fisher_trace", [fisher_traces(twin, mode.x)["total"].mean()], step)
    if probe.startswith("GradNorm"):
        twin.train(probe != "GradNorm eval")
        norms = grad_norms(twin, x, y, cross_entropy)["total"].tolist()
        lost = mode.scaled and batch == OVERFLOWS and probe != "GradNorm eval"
        return Expected(ids, "grad_norm", [math.nan] * SIZE if lost else norms, step)
    logits = twin.double()(x.double() if x.is_floating_point() else x)
    if probe == "OutputGradNorm":
        error = logits.softmax(1) - F.one_hot(y, logits.shape[1])
        lost = mode.scaled and batch == OVERFLOWS
        norms = error.norm(dim=1).tolist()
        return Expected(ids, "output_grad_norm", [math.nan] * SIZE if lost else norms, step)
    return Expected(ids, "loss", cross_entropy(logits, y).tolist(), step)


def largest_error(run, expected):
    """Largest relative distance of a recorded value from float64; what is missing must be so."""
    rows, scalars = run.samples().set_index("sample_id"), run.scalars("fisher_trace")
    errors = []
    for part in expected:
        if part.column == "fisher_trace":
            here = scalars[(scalars["step"] == part.step) & (scalars["block"] == "total")]
            found = here["value"].tolist()
        else:
            found = rows.loc[part.sample_id, part.column].tolist()
        for value, wanted in zip(found, part.values, strict=True):
            if math.isnan(wanted):
                errors.append(0.0 if math.isnan(value) else math.inf)
            else:
                errors.append(abs(value - float(wanted)) / float(wanted))
    return max(error if error == error else math.inf for error in errors)
