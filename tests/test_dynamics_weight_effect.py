"""What weights still do in a run, on a run recorded by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dynamics import open_run
from dynamics.weight_effect import judge_weighting, weighting_over_epochs
from probes import OutputGradNorm, Recorder, SampleLoss
from reports.run_report import build_run_report


def record(out, weights, scales, probes):
    """A run of two samples a class whose logits are ± scale / 2, one scale an epoch."""
    labels = torch.tensor([0, 0, 1, 1])
    x = 1.0 - 2.0 * labels[:, None]
    model = torch.nn.Linear(1, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with Recorder(out, model, probes) as recorder:
        for epoch in recorder.epochs(len(scales)):
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[0.5], [-0.5]]) * scales[epoch])
            logits = model(x)
            losses = F.cross_entropy(logits, labels, reduction="none")
            w = None if weights is None else torch.tensor(weights)
            recorder.observe(losses, torch.arange(4), logits=logits, labels=labels, weights=w)
            (losses if w is None else w * losses).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return open_run(out)


def test_shares_sample_size_and_reach_of_a_known_run(tmp_path):
    weights = [3.0, 3.0, 1.0, 1.0]
    run = record(tmp_path / "a", weights, [0.5, 5.0], [SampleLoss(), OutputGradNorm()])
    table = weighting_over_epochs(run)
    assert table["epoch"].tolist() == [0, 1]
    np.testing.assert_allclose(table["weight_share"], 6 / 8)
    np.testing.assert_allclose(table["gradient_share"], 6 / 8, rtol=1e-5)  # equal norms
    np.testing.assert_allclose(table["effective_sample_size"], 8**2 / 20)
    np.testing.assert_allclose(table["log_ratio"], np.log(3))
    assert table["in_reach"].tolist() == [1, 0]  # margins .5 and 5 about log 3 = 1.1
    assert set(table["gradient"]) == {"output_grad_norm"}


def test_the_gradient_share_falls_back_on_el2n_and_margins_may_be_missing(tmp_path):
    run = record(tmp_path / "a", [3.0, 3.0, 1.0, 1.0], [0.5], [SampleLoss()])
    assert weighting_over_epochs(run)["gradient"].tolist() == ["el2n"]


@pytest.mark.parametrize("weights", [None, [2.0, 2.0, 2.0, 2.0]])
def test_without_differing_weights_there_is_no_table_no_verdict_and_no_panel(tmp_path, weights):
    run = record(tmp_path / "a", weights, [0.5], [SampleLoss()])
    table = weighting_over_epochs(run)
    assert table.empty
    assert judge_weighting(table) is None
    page = build_run_report(run)
    assert "Weights" not in [section.title for section in page.sections]


def test_weights_have_stopped_from_the_epoch_after_the_last_in_reach(tmp_path):
    run = record(tmp_path / "a", [3.0, 3.0, 1.0, 1.0], [0.5, 5.0], [SampleLoss()])
    table = weighting_over_epochs(run)
    many = table.assign(n_margin=1000, n_in_reach=[900, 10])
    assert judge_weighting(many).stopped_from == 1
    assert judge_weighting(many.assign(n_in_reach=[10, 900])).stopped_from is None
    assert judge_weighting(many.assign(n_in_reach=[10, 45])).stopped_from is None  # high end .06
    assert judge_weighting(table).stopped_from is None  # 0 of 4 proves nothing


def test_on_the_threshold_stopped_is_said_in_7_percent_at_most(tmp_path):
    table = weighting_over_epochs(
        record(tmp_path / "a", [3.0, 3.0, 1.0, 1.0], [0.5], [SampleLoss()])
    )
    counts = np.random.default_rng(0).binomial(1000, 0.05, 500)
    verdicts = [judge_weighting(table.assign(n_margin=1000, n_in_reach=k)) for k in counts]
    assert np.mean([verdict.stopped_from is not None for verdict in verdicts]) <= 0.07


def test_the_report_of_a_run_says_what_its_weights_still_do(tmp_path):
    run = record(tmp_path / "a", [3.0, 3.0, 1.0, 1.0], [0.5, 5.0], [SampleLoss()])
    page = build_run_report(run)
    assert "effective sample size is 3 of 4" in " ".join(page.verdict)
    assert [p.name for s in page.sections if s.title == "Weights" for p in s.panels] == [
        "weighting"
    ]
    assert "share of the weight" in page.to_html()
