"""The budget: measured time kept under a share by leaving out passes, never by the test's clock."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import Probe, Recorder, SampleLoss, Scalar, every
from probes.budget import Budget
from reports.provenance import describe_provenance


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


class Pass(Probe):
    """A probe whose pass takes so many seconds."""

    when = every(steps=1)

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def measure(self, model, *, step, epoch):
        self.clock.spend(self.seconds)
        yield Scalar("pass", float(step))


def measured(limit, cost, training, occasions=40):
    """Which occasions are taken, the events, and the share of the time that passes took."""
    clock = Clock()
    budget, probe = Budget(limit, clock=clock), Pass(clock, cost)
    taken, events = [], []
    for occasion in range(occasions):
        clock.spend(training)
        for chosen in budget.choose([probe]):
            with budget.measuring(chosen):
                clock.spend(cost)
            taken.append(occasion)
        events += budget.findings()
    return taken, events, len(taken) * cost / (clock.now - 100)


def test_passes_within_the_budget_are_all_taken():
    taken, events, _ = measured(0.05, cost=0.05, training=1.0)  # 4.8 % of the time
    assert taken == list(range(40))
    assert events == []


def test_dearer_ones_are_taken_every_second_fourth_eighth_time():
    # c / (s T + c) ≤ 0.05: s ≥ 19 c / T
    taken, events, share = measured(0.05, cost=0.2, training=1.0)  # s ≥ 3.8
    assert taken == [0, 1, *range(4, 40, 4)]
    assert [event.name for event in events] == ["schedule_stretched"]
    assert events[0].subject == "Pass"
    assert "every 4." in events[0].detail
    assert "17% of the time, where the budget for all passes is 5%" in events[0].detail
    assert share < 0.06


@pytest.mark.parametrize("training", [0.0, 1e-9])
def test_training_that_takes_no_time_leaves_the_first_two(training):
    assert measured(0.05, cost=1.0, training=training)[0] == [0, 1]


def test_two_probes_share_the_limit():
    clock = Clock()
    budget, probes = Budget(0.1, clock=clock), [Pass(clock, 0.1), Pass(clock, 0.001)]
    taken = {probe: 0 for probe in probes}
    for _ in range(64):
        clock.spend(1.0)
        for probe in budget.choose(probes):
            with budget.measuring(probe):
                clock.spend(probe.seconds)
            taken[probe] += 1
        budget.findings()
    assert taken[probes[1]] == 64
    assert taken[probes[0]] == 2 + 31  # its half, 5 %, allows every second


def test_time_within_observe_that_a_probe_takes_is_the_probes():
    clock = Clock()
    budget = Budget(0.5, clock=clock)
    with budget.timed():
        clock.spend(1.0)
        with budget.timed("Pass"):
            clock.spend(5.0)
        clock.spend(2.0)
    clock.spend(2.0)
    costs = {(c.name, c.block): c.value for c in budget.costs()}
    assert costs == {
        ("recorder_time_s", "observe"): 3.0,
        ("recorder_time_s", "Pass"): 5.0,
        ("wall_time_s", "total"): 10.0,
    }


@pytest.mark.parametrize("wrong", [0, -0.1, 1.5, float("nan")])
def test_a_limit_is_a_share(wrong):
    with pytest.raises(ValueError, match=r"above 0 and at most 1.*budget=0.05"):
        Budget(wrong)


def train(folder, budget, counts_epochs=True):
    clock, model = Clock(), nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(folder, model, [SampleLoss(), Pass(clock, 0.2)], budget=budget)
    recorder._budget._clock, recorder._budget._start = clock, clock.now

    def steps(n):
        for i in range(n):
            ids = torch.tensor([2 * i, 2 * i + 1])
            losses = F.cross_entropy(model(torch.ones(2, 3)), ids % 2, reduction="none")
            recorder.observe(losses, ids)
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            clock.spend(1.0)

    with recorder:
        if counts_epochs:
            for _ in recorder.epochs(2):
                steps(10)
        else:
            steps(10)
    return open_run(folder)


def test_a_run_says_what_was_left_out_and_what_recording_cost(tmp_path):
    run = train(tmp_path / "run", 0.05)
    assert run.scalars("pass")["step"].tolist() == [0, 1, 4, 8, 12, 16]
    events = run.events()
    assert events[events["name"] == "schedule_stretched"]["subject"].tolist() == ["Pass"]
    cost = run.cost()
    passes = cost[cost["block"] == "Pass"]
    assert passes["epoch"].tolist() == [0, 1]
    assert passes["seconds"].tolist() == pytest.approx([0.8, 1.2])
    assert passes["wall_seconds"].tolist() == pytest.approx([10.8, 21.2])
    assert passes["share"].tolist() == pytest.approx([0.8 / 10.8, 1.2 / 21.2])
    text = describe_provenance(run)["Cost of recording"]
    assert text == "of 21 s: observe 0.0%, Pass 5.7%"


def test_without_epochs_the_cost_stands_at_the_end(tmp_path):
    cost = train(tmp_path / "run", 0.05, counts_epochs=False).cost()
    assert cost["block"].tolist() == ["observe", "Pass"]


def test_without_a_budget_nothing_is_timed_or_left_out(tmp_path):
    run = train(tmp_path / "run", None)
    assert len(run.scalars("pass")) == 20
    assert run.cost().empty
    assert set(run.scalars()["name"]) == {"pass"}
    assert "Cost of recording" not in describe_provenance(run)
