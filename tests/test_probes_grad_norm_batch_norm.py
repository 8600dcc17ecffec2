"""`GradNorm(mode="eval")` beside training with BatchNorm: a ResNet-18, and a fixed set."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from cases import cross_entropy, squared_error
from reference import grad_norms
from torch import nn
from torch.utils.data import Subset, TensorDataset

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss, every, with_sample_ids

N, STEPS = 6, 5
IDS = torch.arange(N)


def benchmark_networks():
    """By path: `benchmarks` is no package, and others install one of that name."""
    path = Path(__file__).parents[1] / "benchmarks" / "networks.py"
    spec = importlib.util.spec_from_file_location("benchmark_networks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_resnet():
    torch.manual_seed(0)
    model, _, _ = benchmark_networks().resnet18(width=4, batch=1)
    return model.train()


def batches(shape):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(STEPS, N, *shape, generator=generator)
    return x, torch.randint(0, 3, (STEPS, N), generator=generator)


def train(model, data, recorder=None, see=lambda step: None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)
    for step, (x, y) in enumerate(zip(*data, strict=True)):
        if recorder is not None:
            recorder.begin_epoch(step)
        losses = cross_entropy(model(x), y)
        see(step)
        if recorder is not None:
            recorder.observe(losses, IDS, labels=y)
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if recorder is not None:
            recorder.end_epoch()


def reference_in_eval_mode(model, x, y, loss=cross_entropy):
    return grad_norms(copy.deepcopy(model).eval(), x, y, loss)["total"].tolist()


def assert_same_state(model, plain):
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():  # parameters, running statistics, batch counts
        assert torch.equal(model.state_dict()[name], value), name
    assert all(module.training for module in model.modules())


def test_a_resnet_18_in_training(tmp_path):
    data = batches((3, 8, 8))
    plain, model = small_resnet(), small_resnet()
    train(plain, data)
    expected = {}

    def see(step):
        if step % 2 == 0:  # after the forward pass has moved the statistics
            expected[step] = reference_in_eval_mode(model, data[0][step], data[1][step])

    probes = [SampleLoss(), GradNorm(mode="eval", when=every(steps=2))]
    with Recorder(tmp_path / "run", model, probes) as recorder:
        train(model, data, recorder, see)
    rows = open_run(tmp_path / "run").samples()
    for step in range(STEPS):
        found = rows[rows["step"] == step].sort_values("sample_id")["grad_norm"]
        if step % 2:
            assert found.isna().all()
        else:
            assert found.tolist() == pytest.approx(expected[step], rel=1e-4)
    assert_same_state(model, plain)


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 3))


def set_norms(run, epoch):
    rows = run.scalars("grad_norm")
    return rows[rows["epoch"] == epoch].set_index("block")


@pytest.mark.parametrize("make", [normalised, small_resnet])
def test_a_fixed_set_beside_training(make, tmp_path):
    data = batches((5,) if make is normalised else (3, 8, 8))
    own_x, own_y = data[0][0] + 1, data[1][0]
    probe_set = Subset(with_sample_ids(TensorDataset(own_x, own_y)), [4, 1, 3])
    plain, model = make(), make()
    train(plain, data)
    probe = GradNorm(mode="eval", data=probe_set, when=every(epochs=2))
    with Recorder(tmp_path / "run", model, [SampleLoss(), probe]) as recorder:
        expected = reference_in_eval_mode(model, own_x[[4, 1, 3]], own_y[[4, 1, 3]])
        train(model, data, recorder)
    assert_same_state(model, plain)
    run = open_run(tmp_path / "run")
    assert sorted(run.scalars("grad_norm")["epoch"].unique()) == [-1, 1, 3]
    rows = set_norms(run, -1)
    blocks = ["sample 4", "sample 1", "sample 3"]
    assert rows["value"][blocks].tolist() == pytest.approx(expected, rel=1e-4)
    total = rows.loc["total"]
    norms = torch.tensor(expected, dtype=torch.float64)
    assert total["value"] == pytest.approx(norms.mean().item(), rel=1e-4)
    assert total["stderr"] == pytest.approx(norms.std().item() / 3**0.5, rel=1e-3)
    assert (total["n"], total["mode"], total["label_source"]) == (3, "eval", "data")
    assert len(rows) == 4
    assert run.samples()["grad_norm"].isna().all()


def test_the_last_measurement_is_of_the_network_as_it_is_then(tmp_path):
    data = batches((5,))
    model = normalised()
    probe = GradNorm(mode="eval", data=(data[0][1], data[1][1]), when=every(epochs=1), blocks=True)
    with Recorder(tmp_path / "run", model, [probe]) as recorder:
        train(model, data, recorder)
    rows = set_norms(open_run(tmp_path / "run"), STEPS - 1)
    expected = reference_in_eval_mode(model, data[0][1], data[1][1])
    assert rows["value"][[f"sample {i}" for i in range(N)]].tolist() == pytest.approx(
        expected, rel=1e-5
    )
    own = grad_norms(copy.deepcopy(model).eval(), data[0][1], data[1][1], cross_entropy)
    for block in ("0", "1", "3"):
        assert rows["value"][block] == pytest.approx(own[block].mean().item(), rel=1e-5)
    described = json.loads((tmp_path / "run" / "run.json").read_text())["probes"][0]
    assert (described["n"], described["mode"]) == (N, "eval")


def test_it_goes_beside_one_that_rides_along(tmp_path):
    model = nn.Linear(5, 3)
    x, y = torch.randn(N, 5), torch.arange(N) % 3
    targets = torch.randn(3, 3)
    expected = reference_in_eval_mode(model, x, targets[y], squared_error)
    probes = [
        GradNorm(),
        GradNorm(
            mode="eval",
            data=(x, y),
            when=every(steps=1),
            losses=lambda output, labels: squared_error(output, targets[labels]),
        ),
    ]
    with Recorder(tmp_path / "run", model, probes) as recorder:
        losses = squared_error(model(x), targets[y])
        recorder.observe(losses, IDS)
        losses.mean().backward()
    run = open_run(tmp_path / "run")
    assert run.samples()["grad_norm"].tolist() == pytest.approx(expected, rel=1e-5)
    assert run.scalars("grad_norm")["value"].tolist()[1:] == pytest.approx(expected, rel=1e-5)


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="needs mode='eval'"):
        GradNorm(data=(torch.ones(2, 5), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="needs labels"):
        GradNorm(mode="eval", data=torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"every\(steps=k\)"):
        GradNorm(mode="eval", when=every(epochs=1))
