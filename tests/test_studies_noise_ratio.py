"""The study noise-ratio: what a run is, that it is taken up where it was left, and its factors."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from pydantic import ValidationError

from dynamics import open_run, open_study
from dynamics.datasets import open_dataset
from dynamics.noise_table import noise_table
from dynamics.traces import TraceError
from studies import noise_ratio
from studies.noise_ratio import NoiseRatioConfig, plan_runs, run_configs, run_one

CONFIG = NoiseRatioConfig(
    data="digits",
    noise="symmetric",
    ratio=0.4,
    seed=1,
    n_images=200,
    width=64,
    lr=0.03,
    batch_size=16,
    max_epochs=60,
)


@pytest.fixture(scope="module")
def digits(deterministic_torch):
    return open_dataset("digits")


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A run that has come to its end."""
    out = tmp_path_factory.mktemp("study") / CONFIG.run_name
    run_one(out, CONFIG)
    return out


def files(folder):
    """Every file with its time and bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in paths]


def test_a_run_ends_when_its_noisy_labels_are_memorised(finished):
    run = open_run(finished)
    accuracy = run.scalars("accuracy")
    train = accuracy[accuracy["block"] == "train, noisy labels"]["value"].to_numpy()
    assert train[-1] >= 0.999
    assert (train[:-1] < 0.999).all()
    assert len(train) < 60
    assert run.ended_cleanly
    assert run.config == {"study": "noise-ratio", **CONFIG.model_dump(mode="json")}


def test_half_of_the_images_are_trained_on_under_their_ids_in_the_full_set(finished, digits):
    run = open_run(finished)
    roster = run.roster()
    assert len(roster) == 100
    np.testing.assert_array_equal(roster["true_label"], digits.y_train[roster.index])
    assert roster.index.max() > 200  # ids of the full set, not rows of the subset
    assert set(run.samples(columns=[])["sample_id"]) == set(roster.index)
    assert 20 <= (roster["label"] != roster["true_label"]).sum() <= 60


def test_exactly_the_ratio_of_the_images_is_noisy_over_both_halves(finished):
    run = open_run(finished)
    scalars = run.scalars()
    clean_held_out = scalars[scalars["name"] == "label_recall"]["n"].iloc[0]
    roster = run.roster()
    assert clean_held_out + (roster["label"] == roster["true_label"]).sum() == 0.6 * 200


def test_the_last_epoch_holds_what_the_noise_table_reads(finished):
    scalars = open_run(finished).scalars()
    last = scalars[scalars["epoch"] == scalars["epoch"].max()].set_index(["name", "block"])
    n = last["n"]
    assert n["accuracy", "train, noisy labels"] == n["accuracy", "held-out, noisy labels"] == 100
    value, held_out = last["value"], "held-out"
    hits = value["label_recall", held_out] * n["label_recall", held_out]
    selected = value["label_precision", held_out] * n["label_precision", held_out]
    assert hits == pytest.approx(selected)  # both count clean labels that were predicted
    right = value["accuracy", "held-out, noisy labels"] * 100
    assert n["label_precision", held_out] == pytest.approx(right)
    assert value["accuracy", "held-out, true labels"] > 0.4


def test_a_finished_run_is_left_as_it_is(finished, digits):
    before = files(finished)
    run_one(finished, CONFIG)
    assert files(finished) == before


def test_an_interrupted_run_is_taken_up_again_and_read_once(finished, digits, tmp_path):
    out = tmp_path / CONFIG.run_name
    shutil.copytree(finished, out)
    shutil.rmtree(out / "end")
    assert not open_run(out).ended_cleanly
    run_one(out, CONFIG)
    again, first = open_run(out), open_run(finished)
    assert again.ended_cleanly
    assert len(again.attempts) == 2
    assert not again.samples(repeats=True).duplicated(["epoch", "sample_id"]).any()
    assert again.samples().equals(first.samples())  # trained again from the same seed
    assert again.scalars().equals(first.scalars())
    assert again.roster().equals(first.roster())


def test_a_run_that_was_only_begun_is_taken_up(digits, tmp_path, finished):
    out = tmp_path / CONFIG.run_name
    (out / "attempts").mkdir(parents=True)
    shutil.copy(finished / "run.json", out)
    run_one(out, CONFIG)
    assert open_run(out).ended_cleanly
    assert len(open_run(out).roster()) == 100


def test_a_folder_with_another_configuration_is_refused(finished, digits):
    before = files(finished)
    with pytest.raises(TraceError, match="another configuration"):
        run_one(finished, CONFIG.model_copy(update={"lr": 0.2}))
    assert files(finished) == before


def test_seeds_differ_in_images_and_noise_and_kinds_in_noise_only(digits, tmp_path):
    rosters = {}
    for noise, seed in (("symmetric", 0), ("asymmetric", 0), ("symmetric", 2)):
        config = CONFIG.model_copy(update={"noise": noise, "seed": seed, "max_epochs": 1})
        run_one(tmp_path / config.run_name, config)
        rosters[noise, seed] = open_run(tmp_path / config.run_name).roster()
    symmetric, asymmetric = rosters["symmetric", 0], rosters["asymmetric", 0]
    assert symmetric.index.equals(asymmetric.index)
    assert not symmetric.index.equals(rosters["symmetric", 2].index)
    wrong = asymmetric[asymmetric["label"] != asymmetric["true_label"]]
    assert ((wrong["true_label"] + 1) % 10 == wrong["label"]).all()
    assert len(wrong) > 10


@pytest.mark.parametrize(
    "changed",
    [{"ratio": 1.0}, {"ratio": -0.1}, {"noise": "pairwise"}, {"n_images": 10}, {"typo": 1}],
)
def test_a_configuration_out_of_range_is_refused(changed):
    with pytest.raises(ValidationError):
        NoiseRatioConfig(**{**CONFIG.model_dump(), **changed})


SAME = {"true_class": ["excluded"], "arm": ["plain"], "width": [8]}


def run_study(out, **levels):
    assert run_configs(out, plan_runs(**levels)).failures == []


@pytest.fixture
def small_runs(monkeypatch):
    """Runs of a small network for two epochs."""
    small = partial(NoiseRatioConfig, max_epochs=2)
    monkeypatch.setattr(noise_ratio, "NoiseRatioConfig", small)


def test_a_study_runs_every_combination_and_grows_with_its_levels(small_runs, tmp_path):
    out = tmp_path / "deep" / "study"
    run_study(
        out, data="digits", noises=["symmetric"], ratios=[0.4], seeds=1, n_images=80, widths=[8]
    )
    assert open_study(out).factors == SAME | {"noise": ["symmetric"], "ratio": [0.4], "seed": [0]}
    before = files(out / "symmetric-0.4-width8-seed0")
    kinds = ["asymmetric", "symmetric"]
    run_study(out, data="digits", noises=kinds, ratios=[0.2], seeds=2, n_images=80, widths=[8])
    run_study(
        out, data="digits", noises=["symmetric"], ratios=[0.4], seeds=1, n_images=80, widths=[8]
    )
    study = open_study(out)
    assert study.name == "noise-ratio"
    assert study.factors == SAME | {"noise": kinds, "ratio": [0.2, 0.4], "seed": [0, 1]}
    assert [run.name for run in study.runs] == [
        "asymmetric-0.2-width8-seed0",
        "asymmetric-0.2-width8-seed1",
        "symmetric-0.2-width8-seed0",
        "symmetric-0.2-width8-seed1",
        "symmetric-0.4-width8-seed0",
    ]
    assert files(out / "symmetric-0.4-width8-seed0") == before
    table = noise_table(study)
    assert table["ended_cleanly"].all()
    assert table.drop(columns=["label_precision"]).notna().all(axis=None)
    assert json.loads((out / "study.json").read_text())["schema_version"]


def test_more_images_than_there_are_are_refused_or_not_claimed(small_runs, tmp_path):
    """The record of a run must not say 8,000 images where 1,500 were used."""
    levels = {"noises": ["symmetric"], "ratios": [0.4], "seeds": 1}
    try:
        run_study(tmp_path / "study", data="digits", **levels, n_images=8000, widths=[8])
    except ValueError:
        return
    (run,) = open_study(tmp_path / "study").runs
    assert len(run.roster()) == run.config["n_images"] // 2


def test_regularised_arms_run_at_their_ratios_only_and_after_the_plain_one():
    arms = ["weight decay", "plain"]
    levels = {"noises": ["symmetric"], "ratios": [0, 0.2], "seeds": 1, "n_images": 80}
    planned = plan_runs(data="digits", arms=arms, **levels)
    assert [(c.arm, c.ratio) for c in planned] == [
        ("plain", 0), ("plain", 0.2), ("weight decay", 0.2),
    ]  # fmt: skip
    assert planned[-1].max_epochs == noise_ratio.REGULARISED_EPOCHS


def test_folds_of_the_held_out_half_add_up_to_it_and_the_confusion_is_of_the_last_epoch(finished):
    scalars = open_run(finished).scalars()
    last = scalars[scalars["epoch"] == scalars["epoch"].max()]
    accuracy = last[last["name"] == "accuracy"].set_index("block")["value"]
    folds = [accuracy[f"held-out {fold}, noisy labels"] for fold in "ab"]
    assert np.mean(folds) == pytest.approx(accuracy["held-out, noisy labels"])
    confusion = scalars[scalars["name"] == "confusion"]
    assert set(confusion["epoch"]) == {scalars["epoch"].max()}
    assert len(confusion) == 100
    right = confusion[confusion["block"].isin([f"{c} as {c}" for c in range(10)])]
    share = (right["value"] * right["n"]).sum() / right["n"].sum()
    assert share == pytest.approx(accuracy["held-out, true labels"])
