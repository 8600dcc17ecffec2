"""The study weight-ratio: what a run is trained on and records, its plane, and its report."""

import numpy as np
import pytest
import torch
from torch import nn

from dynamics import open_run, open_study
from dynamics.datasets import open_dataset
from reports import write_report
from studies import weight_ratio, weight_ratio_plane
from studies.commands.weight_ratio import _parse_ratios
from studies.lab.models import SmallCNN
from studies.weight_ratio import (
    ARMS,
    WeightRatioConfig,
    choose_images,
    plan_runs,
    run_configs,
    run_one,
    weights_of,
)
from studies.weight_ratio_plane import direction_of, largest_margin, separable_points

CONFIG = WeightRatioConfig(
    data="digits",
    pair=(3, 8),
    arm="none",
    log2_ratio=4,
    seed=1,
    n_images=80,
    width=4,
    epochs=2,
)


@pytest.fixture(scope="module")
def study(deterministic_torch, tmp_path_factory):
    """A small study of two arms, and its plane."""
    out = tmp_path_factory.mktemp("study")
    runs = plan_runs(
        data="digits",
        pair=(3, 8),
        arms=["none", "subsampling"],
        log2_ratios=[-4, 0, 4],
        seeds=1,
        n_images=80,
        epochs=16,
        width=4,
    )
    points = weight_ratio_plane.plan_runs(log2_ratios=[0, 4], seeds=1, steps=20)
    assert not run_configs(out, runs).failures
    assert not weight_ratio_plane.run_configs(out, points).failures
    return open_study(out)


def test_weights_are_in_ratio_and_1_on_average():
    first, second = weights_of(4).tolist()
    assert first / second == pytest.approx(16)
    assert first + second == pytest.approx(2)


def test_half_of_the_images_are_of_each_class_under_their_ids(study):
    run = next(run for run in study.runs if run.name == "none-ratio4-seed0")
    roster = run.roster()
    assert roster["label"].value_counts().to_dict() == {0: 40, 1: 40}
    truth = open_dataset("digits").y_train[roster.index]
    np.testing.assert_array_equal(roster["label"], (truth == 8).astype(int))
    rows = run.samples(columns=["weight"])
    heavy = roster["label"].reindex(rows["sample_id"]).to_numpy() == 0
    np.testing.assert_allclose(rows["weight"][heavy], 32 / 17, rtol=1e-6)
    np.testing.assert_allclose(rows["weight"][~heavy], 2 / 17, rtol=1e-6)


@pytest.mark.parametrize(("log2_ratio", "counts"), [(4, [40, 2]), (-4, [2, 40]), (0, [40, 40])])
def test_subsampling_thins_the_lighter_class_of_the_same_images(log2_ratio, counts):
    labels = open_dataset("digits").y_train
    changed = {"log2_ratio": log2_ratio, "subsampled": True}
    chosen = choose_images(labels, CONFIG.model_copy(update=changed))
    assert [(labels[chosen] == c).sum() for c in (3, 8)] == counts
    assert set(chosen) <= set(choose_images(labels, CONFIG))


def test_the_default_small_cnn_is_what_it_was():
    names = [type(m).__name__ for m in SmallCNN(1, 8, 2, 4).modules()]
    assert "Dropout" not in names
    assert "BatchNorm2d" not in names
    torch.manual_seed(0)
    plain = SmallCNN(1, 8, 2, 4).state_dict()
    torch.manual_seed(0)
    dropped = SmallCNN(1, 8, 2, 4, dropout=0.5).state_dict()
    assert all(torch.equal(plain[k], dropped[k]) for k in plain if k.startswith("features"))


@pytest.mark.parametrize("arm", ["dropout", "batch norm"])
def test_every_step_of_an_arm_is_in_train_mode(arm, deterministic_torch, tmp_path, monkeypatch):
    modes = []

    class Watched(SmallCNN):
        def forward(self, images):
            inner = [m for m in self.modules() if isinstance(m, nn.Dropout | nn.BatchNorm2d)]
            modes.append((torch.is_grad_enabled(), {m.training for m in inner}))
            return super().forward(images)

    monkeypatch.setattr(weight_ratio, "SmallCNN", Watched)
    run_one(tmp_path / "a", CONFIG.model_copy(update={"arm": arm, **ARMS[arm]}))
    assert {str(mode) for with_grad, mode in modes if with_grad} == {"{True}"}
    assert {str(mode) for with_grad, mode in modes if not with_grad} == {"{False}"}
    assert sum(with_grad for with_grad, _ in modes) == 4  # two batches in each of two epochs


def test_a_finished_run_is_left_as_it_is(study):
    run = study.runs[0]
    before = sorted((p, p.stat().st_mtime_ns) for p in run.path.rglob("*"))
    run_one(run.path, WeightRatioConfig(**{k: v for k, v in run.config.items() if k != "study"}))
    assert sorted((p, p.stat().st_mtime_ns) for p in run.path.rglob("*")) == before


def test_unknown_arms_and_pairs_are_refused():
    common = {"data": "digits", "log2_ratios": [0], "seeds": 1, "n_images": 80, "epochs": 1}
    with pytest.raises(ValueError, match="no arm 'L3'"):
        plan_runs(pair=(3, 8), arms=["L3"], **common)
    with pytest.raises(ValueError, match="A pair is two classes"):
        plan_runs(pair=(3, 3), arms=["none"], **common)


def test_the_plane_is_separated_and_the_margin_is_the_largest():
    points, labels = separable_points(100, seed=0)
    assert (points[labels == 0, 0] < -1).all()
    assert (points[labels == 1, 0] > 1).all()
    best = largest_margin(points, labels)
    signs = np.where(labels == 0, 1, -1)
    augmented = np.column_stack([points, np.ones(100)]) * signs[:, None]
    margin = (augmented @ best).min()
    rng = np.random.default_rng(0)
    others = best + 0.05 * rng.normal(size=(500, 3))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert margin > (augmented @ others.T).min(0).max() - 1e-6


def test_the_direction_of_a_linear_model_is_its_own():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        model.bias.copy_(torch.tensor([4.0, 0.0]))
    np.testing.assert_allclose(direction_of(model, torch.randn(5, 2)), [0.6, 0, 0.8], atol=1e-6)


def test_the_report_holds_every_figure_and_fits(study, tmp_path):
    path = write_report(study, tmp_path / "report.html", figures=tmp_path / "figures")
    drawn = {file.stem for file in (tmp_path / "figures").glob("*.png")}
    assert drawn == {
        "effect_size",
        "gradient_share",
        "margin_angle",
        "predicted_first",
        "weight_reach",
    }
    text = path.read_text("utf-8")
    assert "one seed" in text
    assert "Fewer than 3 seeds" in text
    assert "--ratios 1:16,1:1,16:1" in text
    assert path.stat().st_size < 2_000_000


def test_ratios_are_read_as_they_are_spoken():
    assert _parse_ratios("16:1,1:16, 1:1") == [-4, 0, 4]


def test_open_runs_have_the_problem_in_their_configuration(study):
    problems = {open_run(run.path).config["problem"] for run in study.runs}
    assert problems == {"images", "plane"}
