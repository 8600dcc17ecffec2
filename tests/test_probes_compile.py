"""Under `torch.compile`, whichever way: norms are exact, and a model compiled before is refused."""

import shutil

import pytest
import torch
from cases import C, N
from reference import grad_norms
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dynamics import open_run
from probes import FisherTrace, GradNorm, OutputGradNorm, Recorder, UnsupportedModelError, every

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # within torch's compiler
    # which after any graph break looks at the `.grad` of what it goes on with
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]

T, D, IDS = 3, 20, torch.arange(N)
Y = torch.arange(N) % C
X = torch.randn(N, T, D, generator=torch.Generator().manual_seed(5))
BACKENDS = [
    "aot_eager",
    pytest.param("eager", marks=pytest.mark.slow),
    pytest.param(
        "inductor",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler"),
        ],
    ),
]
PROBES = {
    "backpack": GradNorm,
    "fused": lambda **kwargs: GradNorm(engine="fused", **kwargs),
    "eval": lambda **kwargs: GradNorm(mode="eval", **kwargs),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Body(nn.Module):
    """A sketched layer, a normalisation, a checkpoint, tied weights, a module without a rule."""

    def __init__(self, use_reentrant=False):
        super().__init__()
        self.first, self.norm = nn.Linear(D, D), nn.LayerNorm(D)
        self.tied = nn.Linear(D, D, bias=False)
        self.tied.weight = self.first.weight
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, D))
        self.inner = nn.Sequential(nn.Linear(D, D), nn.ReLU(inplace=True))
        self.use_reentrant = use_reentrant

    def forward(self, x):
        h = self.norm(self.first(x)).relu_()
        h = self.tied(checkpoint(self.inner, h, use_reentrant=self.use_reentrant))
        return h * self.scale


class Net(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.body, self.head = Body(**kwargs), nn.Linear(D, C)

    def forward(self, x):
        return self.head(self.body(x).mean(dim=1))


def make(kind="whole"):
    torch.manual_seed(0)
    if kind == "whole":
        return Net()
    layers = nn.Linear(D, D), nn.ReLU(inplace=True), nn.LayerNorm(D), nn.Linear(D, D)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(T * D, C))


def losses_of(output, labels):
    return F.cross_entropy(output, labels, reduction="none")


def train(network, model, steps, recorder=None):
    """SGD; returns the reference norms before each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for step in range(steps):
        losses = losses_of(network(X + 0.1 * step), Y)
        if recorder is not None:
            twin = make("whole" if isinstance(model, Net) else "plain")
            twin.load_state_dict(model.state_dict())
            expected.append(grad_norms(twin, X + 0.1 * step, Y, losses_of)["total"].tolist())
            recorder.observe(losses, IDS, labels=Y)
        (1024 * losses).mean().backward()
        for p in model.parameters():
            p.grad /= 1024
        optimizer.step()
        optimizer.zero_grad()
    return expected


def compiled(way, model, backend):
    if way == "in place":
        model.compile(backend=backend)
        return model
    return torch.compile(model, backend=backend)


def record(out, way, backend, probes, *, steps=4, kind="whole"):
    """Train a compiled network; returns the run, the reference norms, and the model."""
    model = make(kind)
    handed = torch.compile(model, backend=backend) if way == "handed over" else model
    with Recorder(out, handed, probes, repeats=True) as recorder:
        network = handed if way == "handed over" else compiled(way, model, backend)
        expected = train(network, model, steps, recorder)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert not any(p._backward_hooks for p in model.parameters())
    return open_run(out), expected, model


def assert_norms(run, expected, column="grad_norm", every_step=1):
    rows = run.samples(repeats=True)
    for step, norms in enumerate(expected):
        found = rows[rows["step"] == step].sort_values("sample_id")[column]
        if step % every_step:
            assert found.isna().all()
        else:
            assert found.tolist() == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", ["wrapped", "in place", "handed over"])
@pytest.mark.parametrize("name", PROBES)
def test_norms_are_exact(name, way, backend, tmp_path):
    probes = [PROBES[name](when=every(steps=2), blocks=True)]
    run, expected, _ = record(tmp_path / "run", way, backend, probes)
    assert_norms(run, expected, every_step=2)
    assert "grad_norm/head" in run.samples()  # and not `_orig_mod.head`


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sketch_is_that_of_the_model_as_it_was_written(backend, tmp_path):
    found = []
    for name, way in (("plain", None), ("compiled", "wrapped")):
        model = make("plain")
        with Recorder(tmp_path / name, model, [GradNorm(kind="sketch")]) as recorder:
            network = model if way is None else compiled(way, model, backend)
            train(network, model, 1, recorder)
        found.append(open_run(tmp_path / name).samples())
    for column in ("grad_norm", "grad_norm_stderr"):
        assert found[0][column].tolist() == pytest.approx(found[1][column].tolist(), rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", ["wrapped", "in place", "handed over"])
def test_the_norm_at_the_output_and_a_fisher_trace(way, backend, tmp_path):
    fisher = FisherTrace(every(steps=2), data=(X, Y), kind="empirical")
    probes = [OutputGradNorm(every(steps=2)), fisher]
    run, _, _ = record(tmp_path / "run", way, backend, probes, steps=3)
    twin, expected = make(), []
    for step in range(3):
        output = twin(X + 0.1 * step)
        residual = output.softmax(1) - F.one_hot(Y, C)
        expected.append(residual.norm(dim=1).tolist())
        losses_of(output, Y).mean().backward()
        with torch.no_grad():
            for p in twin.parameters():
                p -= 0.1 * p.grad
        twin.zero_grad()
    assert_norms(run, expected, "output_grad_norm", every_step=2)
    traces = run.scalars("empirical_fisher_trace")
    assert (traces[traces["block"] == "total"]["value"] > 0).sum() == 2
    assert not traces["block"].str.contains("_orig_mod").any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PROBES)
def test_training_is_the_same_to_rounding(name, backend, tmp_path):
    """Not bit for bit: graphs that are cut at the hooks may fuse, and so round, differently."""
    plain = make()
    train(torch.compile(plain, backend=backend), plain, 10)
    torch._dynamo.reset()
    probes = [PROBES[name](when=every(steps=3))]
    _, _, model = record(tmp_path / "run", "wrapped", backend, probes, steps=10)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_steps_that_are_not_due_run_as_one_graph(tmp_path):
    """Hooks cut the graph where they are armed, and nothing is compiled again and again."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = make("plain")
    with Recorder(tmp_path / "run", model, [GradNorm(every(steps=4))], repeats=True) as recorder:
        network = torch.compile(model, backend=count)
        train(network, model, 6, recorder)  # armed while verified, not armed, armed ever after
        once = len(graphs)
        train(network, model, 7, recorder)
    assert once > 1
    assert len(graphs) == once


def test_a_model_compiled_and_called_before_is_refused(tmp_path):
    model = make("plain")
    network = torch.compile(model, backend="eager")
    network(X)

    def record_late():
        with Recorder(tmp_path / "run", model, [OutputGradNorm()]) as recorder:
            train(network, model, 1, recorder)

    with pytest.raises(UnsupportedModelError, match="no gradient arrived"):
        record_late()
