"""Rows of many batches at once are those of each batch alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from dynamics.traces import Status
from probes import GradNorm, Recorder, SampleLoss, every
from probes.sample_loss import score_logits


@pytest.mark.parametrize("kept_bytes", [0, 2**18])
def test_put_off_scores_are_those_of_each_batch_and_missing_columns_stay_missing(
    kept_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr("probes.sample_loss._KEPT_BYTES", kept_bytes)
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with Recorder(tmp_path / "run", model, [SampleLoss(), GradNorm(every(steps=2))]) as recorder:
        for step in range(4):
            n = 6 + step
            x, y = torch.randn(n, 5), torch.arange(n) % 3
            logits = model(x)[:, : 3 + step % 2]  # the number of classes changes too
            losses = F.cross_entropy(logits, y, reduction="none")
            weights = torch.ones(n)
            weights[0] = 0
            recorder.observe(losses, torch.arange(n) + 20 * step, logits=logits, labels=y)
            expected += score_logits(logits, y)["el2n"].tolist()
            (weights * losses).mean().backward()
            with torch.no_grad():
                logits.zero_()
            y.zero_()
            optimizer.step()
            optimizer.zero_grad()
    rows = open_run(tmp_path / "run").samples().sort_values("sample_id")
    assert rows["el2n"].tolist() == [float(v) for v in expected]
    due = rows["step"] % 2 == 0
    zero = rows["sample_id"] % 20 == 0
    assert rows["grad_norm"].notna().tolist() == (due & ~zero).tolist()
    assert ((rows["status"] & int(Status.ZERO_WEIGHT)) != 0).tolist() == zero.tolist()
    assert not (rows["status"] & int(Status.NON_FINITE_GRAD_NORM)).any()
    assert rows.loc[zero, "weight"].tolist() == [0.0] * 4
