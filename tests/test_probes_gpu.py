"""On a GPU the values are the same, and the training stream is never waited for."""

import numpy as np
import pytest
import torch
from cases import N, build, permuted_ids, record
from reference import fisher_traces, grad_norms
from reference import losses as reference_losses
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss, WeightEffect, fisher_trace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def full_precision():
    torch.use_deterministic_algorithms(False)  # pooling has no deterministic backward pass there
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "embedding_padded", "layer_norm"])
def test_norms_and_losses_equal_the_reference(name, tmp_path):
    expected = build(name)
    norms = grad_norms(expected.model, expected.x, expected.y, expected.loss)["total"]
    losses = reference_losses(expected.model, expected.x, expected.y, expected.loss)
    probes = [SampleLoss(), GradNorm()]
    case = build(name, device="cuda")
    rows = record(tmp_path / "run", case, probes, lambda ls: ls.mean() * 1024)
    np.testing.assert_allclose(rows["grad_norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(rows["loss"], losses, rtol=1e-5)


def test_training_does_not_wait_for_the_device(tmp_path):
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(N, 5, device="cuda"), (torch.arange(N) % 4).cuda()
    ids = permuted_ids(N).cuda()
    probes = [SampleLoss(), GradNorm(blocks=True), WeightEffect(class_weights=torch.ones(4).cuda())]

    def step(recorder):
        logits = model(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        recorder.observe(losses, ids, logits=logits, labels=y)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with Recorder(tmp_path / "run", model, probes) as recorder:
        for epoch in recorder.epochs(2):
            step(recorder)
            if epoch == 0:
                continue  # the first steps set things up
            torch.cuda.set_sync_debug_mode("error")
            try:
                step_ids, ids = ids, ids + 100
                step(recorder)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                ids = step_ids
    rows = open_run(tmp_path / "run").samples()
    assert len(rows) == 3 * N
    assert rows["grad_norm"].notna().all()


def test_fisher_trace_is_unbiased_on_the_device():
    case = build("mlp", device="cuda")
    exact = fisher_traces(build("mlp").model, build("mlp").x)["total"].mean().item()
    state = torch.cuda.get_rng_state()
    values = [fisher_trace(case.model, case.x, seed=seed).value for seed in range(40)]
    assert abs(np.mean(values) - exact) <= 3 * np.std(values, ddof=1) / 40**0.5
    assert torch.equal(torch.cuda.get_rng_state(), state)
