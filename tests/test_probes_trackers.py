"""Dashboards: what arrives there, and that nothing they do reaches training or the trace."""

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import FisherTrace, GradNorm, Recorder, SampleLoss
from probes.trackers import feed

N = 8
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(N) % 2


class Kept:
    """A tracker that keeps what it gets, and may fail or hang from some call on."""

    def __init__(self, fails_at=None, error=RuntimeError, hangs=None):
        self.calls, self.closed = [], False
        self.fails_at, self.error, self.hangs = fails_at, error, hangs

    def log(self, values, step):
        if self.fails_at is not None and len(self.calls) >= self.fails_at:
            raise self.error("the dashboard is gone")
        if self.hangs is not None:
            self.hangs.wait()
        self.calls.append((step, dict(values)))

    def log_figure(self, name, figure, step):
        raise AssertionError

    def close(self):
        self.closed = True


def train(folder, trackers=(), epochs=3):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    probes = [SampleLoss(), GradNorm(), FisherTrace(data=X, kind="exact")]
    with Recorder(folder, model, probes, trackers=trackers) as recorder:
        for epoch in recorder.epochs(epochs):
            for rows in torch.arange(N).split(4):
                logits = model(X[rows])
                losses = F.cross_entropy(logits, Y[rows], reduction="none")
                recorder.observe(losses, rows, logits=logits, labels=Y[rows])
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            recorder.record("accuracy", 0.5 + epoch / 10, block="test", stderr=0.01, n=100)
    return model, open_run(folder)


def test_scalars_come_with_their_standard_errors_and_samples_as_quantiles_only(tmp_path):
    tracker = Kept()
    _, run = train(tmp_path / "run", [tracker])
    assert tracker.closed
    seen = {}
    for step, values in tracker.calls:
        for name, value in values.items():
            seen.setdefault(name, []).append((step, value))
    assert seen["accuracy/test"] == [(2, 0.5), (4, 0.6), (6, 0.7)]
    assert [value for _, value in seen["accuracy/test_stderr"]] == [0.01] * 3
    traces = run.scalars("fisher_trace").query("block == 'total'")
    assert [v for _, v in seen["fisher_trace/total"]] == traces["value"].tolist()
    assert [v for _, v in seen["fisher_trace/total_stderr"]] == traces["stderr"].tolist()
    rows = run.samples()
    for column in ("loss", "grad_norm", "margin"):
        for name, q in {"q05": 0.05, "q50": 0.5, "q95": 0.95}.items():
            expected = [np.quantile(rows[rows["epoch"] == e][column], q) for e in range(3)]
            assert [step for step, _ in seen[f"{column}/{name}"]] == [2, 4, 6]
            assert [v for _, v in seen[f"{column}/{name}"]] == pytest.approx(expected, rel=1e-6)
    assert not any("sample" in name for name in seen)


def assert_same_trace(run, other):
    assert run.samples().equals(other.samples())
    assert run.scalars().equals(other.scalars())
    names = [n for n in run.events()["name"] if n != "tracker_failed"]
    assert names == other.events()["name"].tolist()
    assert run.ended_cleanly


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("fails_at", [0, 3])
def test_a_tracker_that_fails_changes_nothing_and_the_others_go_on(tmp_path, fails_at, error):
    plain, expected = train(tmp_path / "plain")
    other = Kept()
    with pytest.warns(UserWarning, match="Kept is not written to any more.*the dashboard is gone"):
        model, run = train(tmp_path / "run", [Kept(fails_at, error), other])
    assert_same_trace(run, expected)
    pairs = zip(plain.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    events = run.events()
    failed = events[events["name"] == "tracker_failed"]
    assert failed["subject"].tolist() == ["Kept"]
    assert "the dashboard is gone" in failed["detail"].iloc[0]
    assert other.closed
    assert len(other.calls) > 9


def test_a_tracker_that_hangs_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(feed, "PATIENCE_S", 0.0)
    monkeypatch.setattr(feed, "_QUEUE", 2)
    _, expected = train(tmp_path / "plain")
    forever = threading.Event()
    with pytest.warns(UserWarning, match="2 calls were waiting"):
        _, run = train(tmp_path / "run", [Kept(hangs=forever)])
    forever.set()
    assert_same_trace(run, expected)


def test_a_mistake_in_the_quantiles_loses_no_row(tmp_path, monkeypatch):
    _, expected = train(tmp_path / "plain")
    monkeypatch.setattr(feed, "COLUMNS", None)
    with pytest.warns(UserWarning, match="after \\* must be an iterable"):
        _, run = train(tmp_path / "run", [Kept()])
    monkeypatch.undo()
    assert_same_trace(run, expected)


# The real ones


@pytest.fixture
def figure():
    matplotlib = pytest.importorskip("matplotlib.figure")
    made = matplotlib.Figure(figsize=(2, 2))
    made.subplots().plot([0, 1])
    return made


def test_tensorboard_reads_it_back(tmp_path, figure):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from probes.trackers.tensorboard import TensorBoard

    train(tmp_path / "run", [TensorBoard(tmp_path / "logs")])
    tracker = TensorBoard(tmp_path / "logs")
    tracker.log_figure("curves", figure, 6)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/q50", "grad_norm/q95", "accuracy/test_stderr"} <= {*tags["scalars"]}
    found = [(e.step, round(e.value, 6)) for e in events.Scalars("accuracy/test")]
    assert found == [(2, 0.5), (4, 0.6), (6, 0.7)]
    assert tags["images"] == ["curves"]
    assert "custom_scalars__config__" in tags["tensors"]


@pytest.mark.slow
def test_wandb_offline(tmp_path, figure, monkeypatch):
    pytest.importorskip("wandb")
    from probes.trackers.wandb import WandB

    monkeypatch.setenv("WANDB_SILENT", "true")
    tracker = WandB(mode="offline", dir=str(tmp_path), project="test")
    tracker.log_figure("curves", figure, 0)
    train(tmp_path / "run", [tracker])
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    content = log.read_bytes()
    assert b"accuracy/test_stderr" in content
    assert b"loss/q50" in content
    assert list((folder / "files" / "media" / "images").glob("curves*.png"))


@pytest.mark.slow
def test_mlflow_in_a_local_store(tmp_path, figure, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    from probes.trackers.mlflow import MLflow

    uri = (tmp_path / "store").as_uri()
    tracker = MLflow(uri=uri)
    tracker.log_figure("curves", figure, 0)
    tracker.log({"accuracy/train, noisy": 1.0}, 0)  # a comma is nothing that MLflow takes
    train(tmp_path / "run", [tracker])
    client = MlflowClient(uri)
    history = client.get_metric_history(tracker.run_id, "accuracy/test")
    assert [(m.step, m.value) for m in history] == [(2, 0.5), (4, 0.6), (6, 0.7)]
    assert client.get_metric_history(tracker.run_id, "accuracy/train_ noisy")[0].value == 1.0
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [a.path for a in client.list_artifacts(tracker.run_id)] == ["curves-0.png"]
