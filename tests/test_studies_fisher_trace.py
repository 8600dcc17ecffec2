"""The study fisher-trace: what its runs record, and that each setting changes one thing."""

import pytest

from dynamics import open_run, open_study
from dynamics.plasticity import plasticity_table
from dynamics.traces import TraceError
from studies.fisher_trace import SETTINGS, FisherTraceConfig, plan_runs, run_configs


def small_study(out, **changed):
    arguments = {"settings": ["reference", "wide"], "seeds": 1, "n_images": 80, "epochs": 2}
    run_configs(out, plan_runs(data="digits", **(arguments | changed)))
    return open_study(out)


@pytest.fixture(scope="module")
def study(tmp_path_factory, deterministic_torch):
    return small_study(tmp_path_factory.mktemp("study") / "fisher")


def test_both_traces_and_accuracies_are_recorded_from_before_training(study):
    run = study.runs[0]
    for name in ("fisher_trace", "empirical_fisher_trace"):
        scalars = run.scalars(name)
        total = scalars[scalars["block"] == "total"]
        assert total["epoch"].tolist() == [-1, 0, 1]
        assert (total["n"] == 80).all()
        assert (total["stderr"] > 0).all()
    accuracy = run.scalars("accuracy")
    assert set(accuracy["block"]) == {"train", "test"}
    assert run.ended_cleanly
    assert len(plasticity_table(study)) == 2


def test_a_setting_changes_one_thing(study):
    reference, wide = (run.config for run in study.runs)
    changed = {key for key in reference if reference[key] != wide[key]}
    assert changed == {"setting", "width"}
    default = FisherTraceConfig(data="digits", seed=0)
    for name, change in SETTINGS.items():
        assert len(change) == (name != "reference")
        assert all(getattr(default, key) != value for key, value in change.items())


def test_finished_runs_are_kept_and_another_configuration_is_refused(study):
    before = [run.info["run_id"] for run in study.runs]
    small_study(study.path)
    assert [open_run(run.path).info["run_id"] for run in study.runs] == before
    with pytest.raises(TraceError, match="another configuration"):
        small_study(study.path, epochs=3)


def test_an_unknown_setting_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="no setting 'fast'; there are reference, low rate"):
        small_study(tmp_path / "study", settings=["fast"])
