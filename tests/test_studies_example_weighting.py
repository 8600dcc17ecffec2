"""The study example-weighting: what a run is trained on and records, and how runs compare."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dynamics import open_run, open_study
from dynamics.weighting import weighting_table
from studies import example_weighting
from studies.cli import app
from studies.example_weighting import (
    WeightingConfig,
    plan_quick_runs,
    plan_runs,
    prepare,
    run_configs,
    run_one,
)
from studies.weighting.schemes import SCHEMES

NOISE = {"data": "digits", "task": "noise", "level": 0.4, "seed": 0, "n_images": 200}
NOISE |= {"hidden": (16,), "epochs": 3, "warm_up": 1, "batch_size": 50}
RARE = {"data": "digits", "task": "imbalance", "level": 9, "seed": 0, "n_images": 100}
RARE |= {"hidden": (16,), "epochs": 2, "n_validation": 10, "batch_size": 25}


def config(scheme, told=NOISE, **changed):
    return WeightingConfig(scheme=scheme, **told | changed)


@pytest.fixture(scope="module")
def runs(deterministic_torch, tmp_path_factory):
    """A run of each scheme."""
    folder = tmp_path_factory.mktemp("study")
    for scheme in SCHEMES:
        run_one(folder / scheme, config(scheme))
    return {scheme: open_run(folder / scheme) for scheme in SCHEMES}


def test_the_noise_task_has_the_ratio_of_wrong_labels_and_clean_validation_images():
    material = prepare(config("uniform"))
    assert (material.train.labels.numpy() != material.true).mean() == 0.4
    assert np.bincount(material.validation.labels.numpy()).tolist() == [10] * 10
    assert len(set(material.rows)) == 200
    held = {image.numpy().tobytes() for image in material.validation.images}
    assert not held & {image.numpy().tobytes() for image in material.train.images}


def test_the_imbalance_task_is_two_classes_the_first_one_rare():
    material = prepare(config("uniform", RARE))
    assert np.bincount(material.train.labels.numpy()).tolist() == [10, 90]
    assert np.bincount(material.validation.labels.numpy()).tolist() == [5, 5]
    assert len(material.test) == (material.test.labels < 2).sum() > 40
    assert material.n_classes == 2


def test_every_scheme_ends_and_records_weights_norms_and_accuracy(runs):
    for scheme, run in runs.items():
        assert run.ended_cleanly, scheme
        rows = run.samples(columns=["weight", "output_grad_norm", "p_true"])
        assert rows["weight"].notna().all(), scheme
        assert (rows["weight"] >= 0).all(), scheme
        assert rows.loc[rows["weight"] > 0, "output_grad_norm"].notna().all(), scheme
        accuracy = run.scalars("accuracy")
        assert (accuracy["block"] == "test").sum() == 3, scheme
        assert (run.scalars("step_seconds")["n"] == 4).all(), scheme


def test_schemes_of_one_seed_see_the_same_samples_and_labels(runs):
    rosters = [run.roster() for run in runs.values()]
    assert all(roster.equals(rosters[0]) for roster in rosters)
    plain = runs["uniform"].samples(columns=["step"], epochs=[0])
    for scheme in set(SCHEMES) - {"importance"}:
        assert runs[scheme].samples(columns=["step"], epochs=[0]).equals(plain), scheme


def test_under_plain_training_the_norm_recorded_is_that_of_cross_entropy(runs):
    rows = runs["uniform"].samples(columns=["weight", "output_grad_norm", "el2n"])
    assert (rows["weight"] == 1).all()
    np.testing.assert_allclose(rows["output_grad_norm"], rows["el2n"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", ["mae", "gce", "mse"])
def test_robust_losses_weight_the_same_cross_entropy(runs, scheme):
    rows = runs[scheme].samples(columns=["weight", "p_true", "output_grad_norm", "el2n"])
    p = rows["p_true"].to_numpy()
    expected = {"mae": p, "gce": p**0.7, "mse": 2 * p * (1 - p)}[scheme]
    np.testing.assert_allclose(rows["weight"], expected, atol=1e-5)
    np.testing.assert_allclose(rows["output_grad_norm"], rows["el2n"], rtol=1e-3, atol=1e-5)


def test_weights_that_select_sum_to_the_batch(runs):
    for scheme in ("co-teaching", "selfie", "random", "reweight", "data-weighting"):
        rows = runs[scheme].samples(columns=["step", "weight"])
        sums = rows.groupby("step")["weight"].sum()
        np.testing.assert_allclose(sums, 50, rtol=1e-4, err_msg=scheme)


def test_until_their_warm_up_is_over_label_correctors_train_plainly(runs):
    plain = runs["uniform"].samples(columns=["p_true"])
    for scheme in ("selfie", "bootstrap-hard", "bootstrap-soft"):
        rows = runs[scheme].samples(columns=["p_true"])
        same = (rows["p_true"] == plain["p_true"]).groupby(rows["epoch"]).mean()
        assert same[0] == 1, scheme
        assert same[2] < 0.5, scheme


def test_what_schemes_have_to_say_is_recorded(runs):
    names = {scheme: set(run.scalars()["name"]) for scheme, run in runs.items()}
    assert {"tau", "sampling_fraction"} <= names["importance"]
    assert {"estimated_noise_ratio", "selected_fraction"} <= names["incv"]
    assert "corrected_fraction" in names["selfie"]
    assert "corrected_fraction" not in names["uniform"]


def test_a_run_is_the_same_when_it_is_run_again_and_left_alone_when_it_has_ended(runs, tmp_path):
    run_one(tmp_path / "again", config("data-weighting"))
    again, first = open_run(tmp_path / "again"), runs["data-weighting"]
    assert again.samples().equals(first.samples())
    before = first.path.stat().st_mtime_ns
    run_one(first.path, config("data-weighting"))
    assert first.path.stat().st_mtime_ns == before
    assert len(first.attempts) == 1


def test_recording_and_schemes_leave_the_global_generator_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    run_one(tmp_path / "run", config("co-teaching", epochs=1))
    assert torch.rand(1) == expected


def test_the_rare_class_has_an_accuracy_of_its_own(tmp_path):
    run_one(tmp_path / "run", config("reweight", RARE))
    rare = open_run(tmp_path / "run").scalars("accuracy").query("block == 'test, rare class'")
    assert len(rare) == 2
    assert rare["n"].iloc[0] == (prepare(config("reweight", RARE)).test.labels == 0).sum()


def test_a_study_has_both_tasks_in_one_folder_and_grows(monkeypatch, tmp_path):
    small = {"n_images": 100, "n_validation": 10, "batch_size": 50, "epochs": 1, "hidden": (8,)}
    monkeypatch.setattr(example_weighting, "_settings", lambda *told: small)
    told = {"data": "digits", "n_images": 100, "epochs": 1}
    noise = plan_runs(task="noise", levels=[0.4], schemes=["gce", "uniform"], seeds=[0], **told)
    run_configs(tmp_path, noise)
    rare = plan_runs(task="imbalance", levels=[9], schemes=["uniform"], seeds=[0, 1], **told)
    run_configs(tmp_path, rare)
    study = open_study(tmp_path)
    assert study.name == "example-weighting"
    assert study.factors["task"] == ["imbalance", "noise"]
    assert len(weighting_table(study)) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schemes": ["guess"]}, "no scheme 'guess'; there are uniform, random"),
        ({"task": "blur"}, "no task 'blur'"),
        ({"levels": [1.0]}, "below 1"),
        ({"task": "imbalance", "levels": [0.5]}, "1 or more"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(changed, message):
    told = {"data": "digits", "task": "noise", "levels": [0.4], "schemes": ["uniform"]}
    told |= {"seeds": [0], "n_images": 100, "epochs": 1}
    with pytest.raises(ValueError, match=message):
        plan_runs(**told | changed)


def command(*told):
    return CliRunner().invoke(app, ["study", "example-weighting", *map(str, told)])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["--levels", "many"], "--levels takes numbers separated by commas"),
        (["--levels", "1.5"], "below 1"),
        (["--scheme", "guess"], "there are uniform, random"),
    ],
)
def test_the_command_explains_what_it_cannot_run(tmp_path, told, message):
    result = command("--out", tmp_path / "study", *told)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")


@pytest.mark.slow
def test_the_command_runs_reports_and_tells_the_table(tmp_path):
    told = ["--scheme", "uniform", "--scheme", "gce", "--seeds", 1, "--n-images", 100]
    result = command("--out", tmp_path, *told, "--epochs", 2)
    assert result.exit_code == 0, result.output
    assert "gce" in result.output
    assert (tmp_path / "report.html").is_file()


@pytest.mark.slow
def test_quick_runs_both_tasks_and_corrects_labels_rightly(tmp_path):
    result = command("--out", tmp_path, "--quick")
    assert result.exit_code == 0, result.output
    table = weighting_table(open_study(tmp_path))
    means = table[table["task"] == "noise"].groupby("scheme")["drop"].mean()
    assert set(table["task"]) == {"noise", "imbalance"}
    assert means["uniform"] > means[["dm", "selfie", "bootstrap-hard"]].max()


def test_quick_is_both_tasks_on_digits_with_the_controls():
    runs = plan_quick_runs()
    assert len(runs) == 22
    assert {run.data for run in runs} == {"digits"}
    for task in ("noise", "imbalance"):
        assert {"uniform", "random"} < {run.scheme for run in runs if run.task == task}
