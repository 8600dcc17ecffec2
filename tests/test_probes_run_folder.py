"""The folder of a run: what it says, which one is refused, what the user adds."""

import json

import pytest
import torch
from torch import nn

from dynamics import open_run
from dynamics.traces import TraceError
from probes import FisherTrace, GradNorm, Recorder, SampleLoss, WeightEffect


def make_model():
    return nn.Linear(5, 3)


def test_record_and_event(tmp_path):
    with Recorder(tmp_path / "run", make_model(), [SampleLoss()]) as recorder:
        recorder.record("accuracy", 0.75, block="test", stderr=0.01, n=100)
        recorder.record("broken", float("nan"))
        recorder.event("deficit_off", "blur", "after 3 epochs")
    run = open_run(tmp_path / "run")
    accuracy = run.scalars("accuracy").iloc[0]
    assert (accuracy["value"], accuracy["stderr"], accuracy["n"]) == (0.75, 0.01, 100)
    assert (accuracy["block"], accuracy["step"], accuracy["epoch"]) == ("test", 0, 0)
    assert run.scalars("broken")["value"].isna().all()
    events = run.events()
    assert events["name"].tolist() == ["non_finite", "deficit_off"]
    assert events["subject"].tolist() == ["broken", "blur"]
    assert events["detail"].iloc[1] == "after 3 epochs"


def test_run_json_describes_the_run(tmp_path):
    model = make_model()
    probes = [SampleLoss(), GradNorm(), FisherTrace(data=torch.ones(2, 5)), WeightEffect()]
    roster = {"label": [0, 1, 2], "true_label": [0, 2, 2], "group": [5, 5, 6]}
    kwargs = {"roster": roster, "data": {"name": "toy"}, "config": {"lr": 0.1}}
    with Recorder(tmp_path / "run", model, probes, **kwargs) as recorder:
        recorder.record("accuracy", 1.0)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["n_samples"] == 3
    assert info["config"] == open_run(tmp_path / "run").config == {"lr": 0.1}
    assert info["data"] == {"name": "toy"}
    assert info["model"]["n_parameters"] == sum(p.numel() for p in model.parameters())
    assert {probe["probe"] for probe in info["probes"]} == {type(p).__name__ for p in probes}
    assert info["versions"]["torch"]
    stored = open_run(tmp_path / "run").roster()
    assert {name: stored[name].tolist() for name in roster} == roster


def test_a_folder_with_rows_is_refused(tmp_path):
    with Recorder(tmp_path / "run", make_model(), [SampleLoss()]) as recorder:
        recorder.record("accuracy", 1.0)
    with pytest.raises(TraceError, match="already holds a run"):
        Recorder(tmp_path / "run", make_model(), [SampleLoss()])


def test_a_folder_of_a_run_without_rows_is_taken(tmp_path):
    with Recorder(tmp_path / "run", make_model(), [SampleLoss()]):
        pass
    with Recorder(tmp_path / "run", make_model(), [SampleLoss()]) as recorder:
        recorder.record("accuracy", 1.0)
    assert len(open_run(tmp_path / "run").scalars()) == 1


@pytest.mark.parametrize("name", ["..", "a b", "CON", ".hidden", "ü"])
def test_names_that_are_no_folder_of_a_run_are_refused(name, tmp_path):
    with pytest.raises(TraceError, match="cannot be the name of a run"):
        Recorder(f"{tmp_path}/{name}", make_model(), [SampleLoss()])


def test_a_symbolic_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TraceError, match="symbolic link"):
        Recorder(tmp_path / "run", make_model(), [SampleLoss()])
