"""The fused engine and the sketch: against the loop over samples, and against plain training."""

import time

import pytest
import torch
from cases import NAMES, N, build
from reference import grad_norms
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from dynamics.traces import Status
from probes import GradNorm, Recorder
from probes.engines.backpack import BackpackEngine
from probes.engines.batch_l2 import complete_batch_l2
from probes.engines.fused import FusedEngine, fastest
from probes.engines.layer_rules import conv_gradients, conv_gram
from probes.engines.sketch import FusedSketchEngine, SketchEngine


def run_engine(engine, case, scale=1.0):
    """Norms of one pass in double precision, and the gradients that training got."""
    engine.attach()
    engine.armed = True
    losses = case.losses()
    capture = engine.take()
    engine.begin_backward(capture)
    (scale * losses).sum().backward()
    assert engine.finish(capture, len(losses)) == []
    engine.detach()
    gradients = {k: p.grad.clone() for k, p in case.model.named_parameters() if p.grad is not None}
    case.model.zero_grad()
    return capture, gradients


@pytest.mark.parametrize("name", NAMES)
def test_fused_norms_equal_the_loop_and_gradients_equal_training(name):
    case = build(name, torch.float64)
    expected = grad_norms(case.model, case.x, case.y, case.loss)
    case.losses().sum().backward()
    plain = {k: p.grad.clone() for k, p in case.model.named_parameters() if p.grad is not None}
    case.model.zero_grad()
    engine = FusedEngine(case.model)
    for _ in range(2):
        capture, gradients = run_engine(engine, case)
        total = sum(capture.norms_sq.values()).sqrt()
        torch.testing.assert_close(total.cpu(), expected["total"], rtol=1e-9, atol=0)
        assert gradients.keys() == plain.keys()
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, plain[key], rtol=1e-9, atol=1e-12)
    assert not any("forward" in vars(module) for module in case.model.modules())


def test_both_routes_of_a_layer_agree(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Flatten(), nn.Linear(256, 3)).double()
    x, y = torch.randn(N, 8, 4, 4, dtype=torch.float64), torch.arange(N) % 3
    found = []
    for route in (0, -1):
        monkeypatch.setattr("probes.engines.fused.fastest", lambda key, routes: routes[route]())  # noqa: B023
        engine = FusedEngine(model)
        engine.attach()
        engine.armed = True
        losses = F.cross_entropy(model(x), y, reduction="none")
        capture = engine.take()
        engine.begin_backward(capture)
        losses.sum().backward()
        assert engine.finish(capture, N) == []
        engine.detach()
        found.append((sum(capture.norms_sq.values()), model[0].weight.grad.clone()))
        model.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(3, 5, (3, 2), stride=2, padding=(0, 1)),
        nn.Conv2d(3, 5, 5, stride=(1, 3), padding="valid"),
        nn.Conv2d(3, 5, 1, stride=2),
        nn.Conv2d(3, 5, 2, stride=3),
        nn.Conv2d(3, 5, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(3, 5, (3, 5), padding="same"),
        nn.Conv2d(3, 5, 3, stride=2, padding=2, padding_mode="circular"),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(7, 9), (8, 6)])
def test_pairs_of_pixels_give_the_norm_of_the_formed_gradient(layer, size, monkeypatch):
    monkeypatch.setattr("probes.engines.layer_rules.MEMORY_BUDGET", 2**14)  # some samples at a time
    torch.manual_seed(0)
    layer = layer.double()
    x = torch.randn(N, 3, *size, dtype=torch.float64)
    grad = torch.randn_like(layer(x)).detach()
    expected = conv_gradients(layer, x, grad).flatten(1).square().sum(1)
    torch.testing.assert_close(conv_gram(layer, x, grad), expected, rtol=1e-11, atol=0)


def test_forming_gradients_one_by_one_is_the_same_too(monkeypatch):
    monkeypatch.setattr("probes.engines.fused._LARGE", 0)
    monkeypatch.setattr("probes.engines.fused.fastest", lambda key, routes: routes[-1]())
    case = build("sequence", torch.float64)
    expected = grad_norms(case.model, case.x, case.y, case.loss)["total"]
    plain = torch.autograd.grad(case.losses().sum(), list(case.model.parameters()))
    capture, gradients = run_engine(FusedEngine(case.model), case)
    total = sum(capture.norms_sq.values()).sqrt()
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(list(gradients.values()), list(plain), rtol=1e-9, atol=1e-12)


def test_a_fused_sketch_stays_exact_where_that_is_faster(monkeypatch):
    monkeypatch.setattr("probes.engines.fused.fastest", lambda key, routes: routes[0]())
    case = build("cnn", torch.float64)
    expected = grad_norms(case.model, case.x, case.y, case.loss)["total"]
    capture, _ = run_engine(FusedSketchEngine(case.model), case)
    assert not capture.variances
    total = sum(capture.norms_sq.values()).sqrt()
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=0)


def test_the_fastest_route_is_measured_once_and_remembered(monkeypatch):
    monkeypatch.setattr("probes.engines.fused._ROUTES", {})
    ran = []

    def route(name, seconds):
        def run():
            ran.append(name)
            end = time.thread_time() + seconds
            while time.thread_time() < end:
                pass
            return name

        return run

    routes = [route("slow", 0.02), route("fast", 0.001)]
    assert fastest("key", routes) == "fast"
    assert ran.count("slow") > 1
    ran.clear()
    assert fastest("key", routes) == "fast"
    assert ran == ["fast"]


@pytest.mark.parametrize("engine_class", [SketchEngine, FusedSketchEngine])
@pytest.mark.parametrize("kind", ["conv", "sequence"])
def test_a_sketch_is_unbiased_and_knows_its_error(kind, engine_class, monkeypatch):
    monkeypatch.setattr("probes.engines.fused.fastest", lambda key, routes: routes[-1]())
    torch.manual_seed(0)
    if kind == "conv":
        model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3))
        x = torch.randn(N, 3, 6, 6)
    else:
        model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 32))
        x = torch.randn(N, 7, 6)
    model = model.double()
    x = x.double()

    def norms_sq(engine):
        engine.attach()
        engine.armed = True
        losses = model(x).square().flatten(1).sum(1)
        capture = engine.take()
        engine.begin_backward(capture)
        losses.sum().backward()
        assert engine.finish(capture, N) == []
        engine.detach()
        variances = sum(capture.variances.values(), torch.zeros(N))
        return sum(capture.norms_sq.values()), variances

    exact, none = norms_sq(BackpackEngine(model))
    assert not none.any()
    drawn, variances = zip(
        *(norms_sq(engine_class(model, seed=s)) for s in range(200)), strict=True
    )
    drawn, variances = torch.stack(drawn), torch.stack(variances)
    stderr = drawn.std(0) / 200**0.5
    assert ((drawn.mean(0) - exact).abs() < 4 * stderr).all()
    assert stderr.min() > 0
    ratio = variances.mean(0) / drawn.var(0)
    assert ratio.min() > 0.6
    assert ratio.max() < 1.6


def test_sketched_norms_are_marked_with_their_standard_error(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3))
    x, y = torch.randn(N, 1, 6, 6), torch.arange(N) % 3
    with Recorder(tmp_path / "run", model, [GradNorm(kind="sketch")]) as recorder:
        losses = F.cross_entropy(model(x), y, reduction="none")
        recorder.observe(losses, torch.arange(N))
        (1024 * losses).mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert ((rows["status"] & int(Status.ESTIMATED)) != 0).all()
    assert (rows["grad_norm_stderr"] > 0).all()
    assert (rows["grad_norm_stderr"] < rows["grad_norm"]).all()


@pytest.mark.parametrize("engine", ["backpack", "fused"])
def test_under_bfloat16_autocast_norms_are_those_of_its_gradients(engine, tmp_path):
    """Against a loop under the same autocast; bfloat16 keeps 8 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    x, y = torch.randn(N, 1, 6, 6), torch.arange(N) % 3

    def losses_of(rows):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x[rows])
        return F.cross_entropy(output.float(), y[rows], reduction="none")

    expected = []
    for i in range(N):
        gradients = torch.autograd.grad(losses_of([i]).sum(), list(model.parameters()))
        expected.append(sum(g.float().square().sum() for g in gradients).sqrt().item())
    with Recorder(tmp_path / "run", model, [GradNorm(engine=engine)]) as recorder:
        losses = losses_of(list(range(N)))
        recorder.observe(losses, torch.arange(N))
        losses.mean().backward()
    rows = open_run(tmp_path / "run").samples()
    assert rows["grad_norm"].tolist() == pytest.approx(expected, rel=0.03)


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="engine must be one of backpack, fused"):
        GradNorm(engine="opacus")
    with pytest.raises(ValueError, match="mode='eval' takes exact norms"):
        GradNorm(mode="eval", kind="sketch")


def test_our_rules_serve_backpack_itself():
    """`complete_batch_l2` is BackPACK's extension with our rules registered in it."""
    from backpack import backpack, extend
    from backpack.context import CTX

    torch.manual_seed(0)
    model = extend(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.LayerNorm(16)))
    x = torch.randn(N, 2, 4, 4, requires_grad=True)
    weights = torch.randn(N, 16)
    with backpack(complete_batch_l2()):
        (model(x) * weights).sum().backward()
    total = sum(p.batch_l2 for p in model.parameters())
    CTX.remove_hooks()
    for i in range(N):
        gradients = torch.autograd.grad(
            (model(x[i : i + 1]) * weights[i]).sum(), list(model.parameters())
        )
        assert total[i].item() == pytest.approx(
            sum(g.square().sum().item() for g in gradients), rel=1e-4
        )
