"""The study critical-period: its plan, its learning rates, and what its runs record."""

import pytest
import torch

from dynamics import open_study
from dynamics.critical_period import critical_table
from dynamics.fisher_sensitivity import clean_trace
from dynamics.plasticity import plasticity_curves
from dynamics.traces import TraceError
from studies.critical_period import CriticalPeriodConfig, build_network, plan_runs, run_configs
from studies.lab.data import load_tensors
from studies.regularisation_timing import RegularisationTimingConfig


def plan(**changed):
    arguments = {
        "data": "digits",
        "networks": ["mlp"],
        "rates": ["decayed", "fixed", "reset"],
        "until": [2, 4],
        "others": ["flip"],
        "onsets": [0, 3],
        "window": 2,
        "seeds": 1,
        "n_images": 80,
        "clean_epochs": 2,
        "width": 16,
        "n_probe": 20,
    }
    return plan_runs(**(arguments | changed))


@pytest.fixture(scope="module")
def study(tmp_path_factory, deterministic_torch):
    out = tmp_path_factory.mktemp("study") / "critical"
    assert not run_configs(out, plan(rates=["decayed", "reset"])).failures
    return open_study(out)


def test_the_plan_has_each_run_once_and_clean_runs_first():
    runs = plan()
    names = [run.run_name for run in runs]
    assert len(set(names)) == len(names) == 2 + 3 * 2 + 2 + 1
    assert [(run.deficit, run.rate) for run in runs[:2]] == [("none", "decayed"), ("none", "fixed")]
    windows = [run for run in runs if run.onset]
    assert {(run.onset, run.until, run.rate) for run in windows} == {
        (3, 5, "decayed"),
        (3, 5, "fixed"),
    }
    flip = next(run for run in runs if run.deficit == "flip")
    assert (flip.until, flip.rate) == (4, "decayed")
    assert all(run.epochs == run.until + 2 for run in runs)


def test_the_first_window_is_run_where_no_end_is_as_long():
    windows = [run for run in plan(window=3) if run.until - run.onset == 3]
    assert {run.onset for run in windows} == {0, 3}


def test_learning_rates_of_the_arms():
    def rates(rate):
        config = CriticalPeriodConfig(
            data="digits", rate=rate, until=2, seed=0, lr=1.0, lr_decay=0.5
        )
        return [config.rate_at(epoch) for epoch in range(4)]

    assert rates("fixed") == [1, 1, 1, 1]
    assert rates("decayed") == [1, 0.5, 0.25, 0.125]
    assert rates("reset") == [1, 0.5, 1, 0.5]


def test_a_window_is_deprived_from_its_onset_until_before_its_end():
    config = CriticalPeriodConfig(data="digits", onset=2, until=4, seed=0)
    assert [config.is_deprived(epoch) for epoch in range(6)] == [False] * 2 + [True] * 2 + [
        False
    ] * 2


def test_traces_and_accuracies_are_recorded_throughout(study):
    table = critical_table(study)
    assert table["ended_cleanly"].all()
    assert table["drop"].notna().all()
    run = next(run for run in study.runs if run.config["until"] == 4)
    trace = run.scalars("fisher_trace")
    assert trace.loc[trace["block"] == "total", "epoch"].tolist() == [-1, 1, 3, 5]
    accuracy = run.scalars("accuracy")
    assert set(accuracy["block"]) == {"train", "test"}
    assert accuracy["epoch"].max() == 5


def test_runs_of_a_seed_are_the_same_until_they_differ(study):
    curves = plasticity_curves(study)
    curves = curves[(curves["curve"] == "fisher_trace") & (curves["rate"] == "decayed")]
    before = curves[(curves["epoch"] < curves["onset"]) | (curves["deficit"] == "none")]
    assert (before.groupby("epoch")["value"].nunique() == 1).all()
    after = curves[(curves["epoch"] == 1) & (curves["onset"] == 0)]
    assert after["value"].nunique() == 3  # clean, blurred, flipped
    assert clean_trace(curves)["epoch"].tolist() == [-1, 1]


def test_the_reset_arm_is_the_decayed_one_until_the_deficit_ends(study):
    curves = plasticity_curves(study)
    mine = curves[(curves["deficit"] == "blur") & (curves["onset"] == 0) & (curves["until"] == 4)]
    mine = mine[mine["curve"] == "fisher_trace"]
    values = mine.groupby("epoch")["value"].nunique()
    assert (values.loc[[-1, 1, 3]] == 1).all()
    assert values.loc[5] == 2


def test_finished_runs_are_kept_and_another_recipe_is_refused(study):
    before = [run.info["run_id"] for run in study.runs]
    assert not run_configs(study.path, plan(rates=["decayed", "reset"])).failures
    assert [run.info["run_id"] for run in open_study(study.path).runs] == before
    with pytest.raises(TraceError, match="another configuration"):
        run_configs(study.path, plan(rates=["decayed", "reset"], lr=0.1))


@pytest.mark.parametrize("network", ["mlp", "mlp with batch norm", "all-cnn"])
def test_every_network_learns_and_is_probed(network, tmp_path, deterministic_torch):
    runs = plan(networks=[network], rates=["fixed"], until=[], others=[], onsets=[])
    assert len(runs) == 1
    assert not run_configs(tmp_path / "study", runs).failures
    shares = open_study(tmp_path / "study").runs[0].scalars("fisher_share")
    assert shares["value"].notna().all()
    data, _ = load_tensors("digits")
    model = build_network(runs[0], data, 10)
    assert model(data.images[:3]).shape == (3, 10)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert bool(norms) == (network != "mlp")


def test_adam_is_another_training(tmp_path, deterministic_torch):
    arguments = {"rates": ["fixed"], "until": [], "others": [], "onsets": []}
    norms = []
    for optimizer in ("sgd", "adam"):
        out = tmp_path / optimizer
        assert not run_configs(out, plan(**arguments, optimizer=optimizer, lr=0.002)).failures
        norms.append(open_study(out).runs[0].scalars("weight_norm_sq")["value"].iloc[-1])
    assert norms[0] != norms[1]


def test_both_studies_train_the_same_network():
    """So that what they measure can be put side by side."""
    critical, timing = (
        config(data="digits", seed=0)
        for config in (CriticalPeriodConfig, RegularisationTimingConfig)
    )
    for name in ("width", "depth", "lr", "momentum", "batch_size", "n_images"):
        assert getattr(critical, name) == getattr(timing, name)
