"""Study `example-weighting`: what schemes do to the pull of clean, noisy and rare samples.

Two tasks. `noise`: all classes, a share of the labels wrong; does a scheme keep wrong labels from
being memorised? `imbalance`: two classes, the first outnumbered by the given ratio; does a scheme
learn it? Runs of one seed see the same images, labels, initial weights and, but for schemes that
draw their own batches, the same order, so that schemes are compared pair by pair. A few balanced
images with true labels are held out of all runs for the schemes that learn from them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import thread_time
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from probes import OutputGradNorm, Recorder, SampleLoss
from studies.lab.corruption import corrupt_labels
from studies.lab.data import TensorData, describe_dataset, load_dataset, to_tensors
from studies.lab.executors import Executor
from studies.lab.models import SmallCNN, build_mlp
from studies.lab.sweep import SweepResult, begun, content_of, run_sweep
from studies.lab.train import Recipe, predict, record_accuracy
from studies.weighting.scheme import Setup
from studies.weighting.schemes import SCHEMES
from studies.weighting.train import train_weighted

NAME = "example-weighting"
FACTORS = ["task", "level", "scheme", "seed"]
PAIR = (4, 9)
"""The two classes of the task imbalance; the first is the rare one."""

Task = Literal["noise", "imbalance"]


class WeightingConfig(BaseModel):
    """One run of the study. Defaults: the task noise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    task: Task
    level: float = Field(ge=0)
    scheme: str
    seed: int = Field(ge=0)
    n_images: int = Field(default=4000, ge=40)
    n_validation: int = Field(default=100, ge=2)
    hidden: tuple[int, ...] = (256,)
    width: int = Field(default=0, ge=0)
    epochs: int = Field(default=40, ge=1)
    warm_up: int = Field(default=5, ge=0)
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    batch_size: int = Field(default=128, ge=1)

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""
        return f"{self.task}-{self.level:g}-{self.scheme}-seed{self.seed}"


def plan_runs(
    *,
    data: str,
    task: Task,
    levels: Sequence[float],
    schemes: Sequence[str],
    seeds: Iterable[int],
    n_images: int,
    epochs: int,
) -> list[WeightingConfig]:
    """The runs of a study: every combination, seed by seed.

    Args:
        data: What `open_dataset` takes.
        task: What is made hard about the data.
        levels: Noise ratios, or how many of the one class there are for each of the other.
        schemes: Names of schemes, keys of `SCHEMES`; `all` for every one.
        seeds: Seeds.
        n_images: Images trained on, at most what there are.
        epochs: Epochs of each run.

    Returns:
        The configurations.

    Raises:
        ValueError: If a task or scheme is unknown, or a level does not fit the task.
    """
    if task not in get_args(Task):
        raise ValueError(f"There is no task {task!r}; there are {' and '.join(get_args(Task))}.")
    if unknown := [scheme for scheme in schemes if scheme not in {*SCHEMES, "all"}]:
        raise ValueError(
            f"There is no scheme {unknown[0]!r}; there are {', '.join(SCHEMES)}, and all."
        )
    _check_levels(task, levels)
    chosen = list(SCHEMES) if "all" in schemes else list(dict.fromkeys(schemes))
    settings = _settings(data, task, n_images, epochs)
    return [
        WeightingConfig(data=data, task=task, level=level, scheme=scheme, seed=seed, **settings)
        for seed, level, scheme in product(seeds, levels, chosen)
    ]


def run_configs(
    out: Path, configs: Sequence[WeightingConfig], *, executor: Executor | None = None
) -> SweepResult:
    """Run configurations that have not been run yet.

    Args:
        out: Folder of the study.
        configs: The runs.
        executor: Where they are made; one after the other in this process by default.

    Returns:
        Which runs did not end.
    """
    return run_sweep(out, NAME, configs, FACTORS, run_one, executor)


def plan_quick_runs() -> list[WeightingConfig]:
    """Both tasks on digits, with one scheme of each kind and two seeds."""
    noise = ["uniform", "random", "dm", "selfie", "bootstrap-hard", "co-teaching", "reweight"]
    rare = ["uniform", "random", "class-ratio", "reweight"]
    told: dict[str, Any] = {"data": "digits", "seeds": range(2), "n_images": 1000, "epochs": 20}
    return [
        *plan_runs(task="noise", levels=[0.4], schemes=noise, **told),
        *plan_runs(task="imbalance", levels=[20], schemes=rare, **told),
    ]


def _check_levels(task: Task, levels: Sequence[float]) -> None:
    for level in levels:
        if task == "noise" and not 0 <= level < 1:
            raise ValueError(f"A noise ratio lies from 0 to below 1, but --levels has {level:g}.")
        if task == "imbalance" and level < 1:
            raise ValueError(
                f"A class ratio is 1 or more, as 100 for 100:1, but --levels has {level:g}."
            )


def _settings(data: str, task: Task, n_images: int, epochs: int) -> dict[str, Any]:
    """What depends on the task and on the size of the images."""
    labels = load_dataset(data).y_train
    is_large = load_dataset(data).x_train.shape[1] >= 28
    if task == "noise":
        n_images = min(n_images, len(labels) - 100)
        settings = {"lr": 0.02} if is_large else {"lr": 0.05, "batch_size": 32}
        return {"n_images": n_images, "epochs": epochs, **settings}
    n_images = min(n_images, int((labels == PAIR[1]).sum()) - 5)
    settings = {"width": 8, "lr": 0.002, "batch_size": 100} if is_large else {"batch_size": 20}
    return {"n_images": n_images, "n_validation": 10, "epochs": epochs, **settings}


@dataclass(frozen=True)
class Material:
    """The images of a run.

    Attributes:
        train: Trained on, with labels as given.
        validation: Held out for schemes, with true labels.
        test: Test images.
        rows: Row in the full training set of each image trained on.
        true: True label of each image trained on.
        n_classes: Number of classes.
    """

    train: TensorData
    validation: TensorData
    test: TensorData
    rows: np.ndarray
    true: np.ndarray
    n_classes: int


def prepare(config: WeightingConfig) -> Material:
    """Draw a run's images by its seed.

    Args:
        config: What to run.

    Returns:
        The images.
    """
    dataset = load_dataset(config.data)
    train, test = to_tensors(dataset)
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(train))
    if config.task == "imbalance":
        return _pick_pair(config, train, test, order)
    labels = dataset.y_train.astype(np.int64)
    held = _balanced(labels[order], config.n_validation, dataset.n_classes)
    chosen = order[~held][: config.n_images]
    noisy = corrupt_labels(
        labels[chosen],
        config.level,
        kind="symmetric",
        n_classes=dataset.n_classes,
        seed=config.seed,
    )
    return Material(
        train.take(chosen).relabelled(noisy),
        train.take(order[held]),
        test,
        chosen,
        labels[chosen],
        dataset.n_classes,
    )


def _pick_pair(
    config: WeightingConfig, train: TensorData, test: TensorData, order: np.ndarray
) -> Material:
    """Two classes, 0 the rare one: n/(r + 1) of it, at least one."""
    labels = train.labels.numpy()
    order = order[np.isin(labels[order], PAIR)]
    held = _balanced((labels[order] == PAIR[1]).astype(np.int64), config.n_validation, 2)
    free = order[~held]
    n_rare = max(round(config.n_images / (config.level + 1)), 1)
    rare = free[labels[free] == PAIR[0]][:n_rare]
    common = free[labels[free] == PAIR[1]][: config.n_images - n_rare]
    chosen = np.concatenate([rare, common])
    tested = np.flatnonzero(np.isin(test.labels.numpy(), PAIR))
    learned, kept, asked = (
        part.relabelled((part.labels.numpy() == PAIR[1]).astype(np.int64))
        for part in (train.take(chosen), train.take(order[held]), test.take(tested))
    )
    return Material(learned, kept, asked, chosen, learned.labels.numpy(), 2)


def _balanced(labels: np.ndarray, n: int, n_classes: int) -> np.ndarray:
    """Which of the labels are the first n/C of each class."""
    held = np.zeros(len(labels), dtype=bool)
    for c in range(n_classes):
        held[np.flatnonzero(labels == c)[: n // n_classes]] = True
    return held


def run_one(out: Path, config: WeightingConfig) -> None:
    """Run one combination, unless it has been run.

    A run that was interrupted starts again from its first step, in the same folder.

    Args:
        out: Folder of the run.
        config: What to run.
    """
    content = content_of(NAME, config)
    started = begun(out, content)
    if started is None:
        return
    material = prepare(config)

    def build_model(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            channels, size = material.train.images.shape[1:3]
            if config.width:
                return SmallCNN(channels, size, material.n_classes, config.width)
            return build_mlp(channels * size * size, config.hidden, material.n_classes)

    model = build_model(config.seed)
    labels = material.train.labels.numpy()
    roster = {"sample_id": material.rows, "label": labels, "true_label": material.true}
    recorder = Recorder(
        out,
        model,
        [SampleLoss(), OutputGradNorm()],
        roster=roster,
        data=describe_dataset(config.data),
        config=content,
        resume=started,
        repeats=config.scheme == "importance",
    )
    with recorder:
        setup = Setup(
            data=material.train,
            validation=material.validation,
            n_classes=material.n_classes,
            noise_ratio=config.level if config.task == "noise" else 0.0,
            warm_up=config.warm_up,
            recipe=Recipe(
                config.epochs, config.lr, config.momentum, 0.0, config.batch_size, config.seed
            ),
            build_model=build_model,
            record=lambda name, value, block: recorder.record(name, value, block=block),
        )
        seconds = -thread_time()
        scheme = SCHEMES[config.scheme](setup)
        recorder.record("prepare_seconds", seconds + thread_time())
        train_weighted(
            model,
            setup,
            scheme,
            recorder,
            sample_ids=torch.as_tensor(material.rows),
            after_epoch=lambda epoch: _evaluate(recorder, model, material, scheme.corrected()),
            title=config.run_name,
        )


def _evaluate(
    recorder: Recorder, model: nn.Module, material: Material, corrected: Tensor | None
) -> None:
    """Record accuracies on the test set, in all and by class, and on the training set."""
    predicted, labels = predict(model, material.test), material.test.labels
    record_accuracy(recorder, "test", predicted, labels)
    if material.n_classes == 2:
        rare = labels == 0
        record_accuracy(recorder, "test, rare class", predicted[rare], labels[rare])
    seen, true = predict(model, material.train), torch.as_tensor(material.true)
    record_accuracy(recorder, "train, given labels", seen, material.train.labels)
    record_accuracy(recorder, "train, true labels", seen, true)
    if corrected is not None:
        known = corrected >= 0
        recorder.record("corrected_fraction", known.double().mean().item(), n=len(known))
        if known.any():
            record_accuracy(recorder, "corrected labels", corrected[known], true[known])
