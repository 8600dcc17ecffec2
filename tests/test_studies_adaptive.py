"""A sweep that adds seeds where its estimate is uncertain, on runs that are not trained."""

import numpy as np
import pandas as pd
import pytest
from recorded import write_run
from sweep_runs import plan

from dynamics import open_study
from studies import noise_ratio
from studies.lab.adaptive import parse_until, run_until
from studies.lab.executors.serial import SerialExecutor
from studies.lab.sweep import content_of
from studies.noise_ratio import FACTORS, held_out_accuracies, run_configs

SPREAD = {0.2: 0.001, 0.4: 0.05}


def value_of(config):
    return np.random.default_rng([config.seed, int(10 * config.ratio), 3]).normal(
        1 - config.ratio, SPREAD[config.ratio]
    )


def made_up(out, config):
    """A run that was not trained."""
    if config.ratio == 0.2 and config.seed == 1:
        raise OSError("no luck")
    about = {"config": content_of("noise-ratio", config)}
    row = {"name": "value", "value": value_of(config), "epoch": 0, "step": 1, "block": "total"}
    write_run(out, {"scalars": [{k: [v] for k, v in row.items()}]}, about=about)


def values(study):
    rows = [
        {**{f: run.config[f] for f in FACTORS}, "value": run.scalars("value")["value"].iloc[0]}
        for run in study.runs
    ]
    return pd.DataFrame(rows)


def until(out, bound, budget, workers=1):
    class Executor(SerialExecutor):
        pass

    return run_until(
        out,
        "noise-ratio",
        plan(seeds=3),
        FACTORS,
        made_up,
        values=values,
        until=bound,
        budget=budget,
        executor=Executor(workers),
    )


def test_seeds_are_added_where_the_spread_is_and_a_failed_run_counts(tmp_path, capsys):
    out = tmp_path / "study"
    result = until(out, 0.01, 100)
    (failure,) = result.failures
    assert failure.run == "symmetric-0.2-width8-seed1"
    n = open_study(out).table().groupby("ratio").size()
    assert n[0.4] > 4 * n[0.2] >= 12
    assert result.n_runs == n.sum() + 1
    seeds = open_study(out).table().query("ratio == 0.4")["seed"]
    assert sorted(seeds) == [*range(n[0.4])]
    said = capsys.readouterr().err
    assert "(noise symmetric, ratio 0.4, true_class excluded" in said
    assert "wanted 0.01" in said


def test_the_budget_ends_it_and_a_second_call_goes_on_from_there(tmp_path, capsys):
    out = tmp_path / "study"
    assert until(out, 1e-5, 9, workers=2).n_runs == 9
    assert len(open_study(out).runs) == 8
    assert "the budget is spent" in capsys.readouterr().err
    until(out, 1e-5, 12, workers=2)
    assert len(open_study(out).runs) == 11


@pytest.mark.parametrize(
    ("text", "bound"), [("se<=0.01", 0.01), (" SE < 1e-3 ", 1e-3), ("se <= 2", 2.0)]
)
def test_the_bound_is_read(text, bound):
    assert parse_until(text) == bound


@pytest.mark.parametrize("text", ["", "0.01", "se>=0.01", "se<=0", "se<=-1", "se<=1.2.3", "sd<=1"])
def test_another_form_is_refused(text):
    with pytest.raises(ValueError, match="--until takes a standard error"):
        parse_until(text)


def test_noise_ratio_serves_its_held_out_accuracy(tmp_path):
    out = tmp_path / "study"
    result = run_configs(out, plan(seeds=2), until=1e-6, budget=7)
    assert result.failures == []
    assert result.n_runs == 7
    study = open_study(out)
    assert study.table().groupby("ratio").size().min() == 3
    found = held_out_accuracies(study)
    assert [*found] == [*noise_ratio.FACTORS, "value"]
    assert found["value"].between(0, 1).all()
    assert len(found) == 7
