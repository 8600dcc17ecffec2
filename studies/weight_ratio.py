"""Study `weight-ratio`: do importance weights still matter once a network fits its training data?

A pair of classes is trained on with weights in a ratio from 1:256 to 256:1 (Byrd & Lipton, ICML
2019), and after every epoch the share of inputs assigned to each class is measured on in-class test
images, on images of other classes, and on noise. Arms differ in one thing from plain SGD at a fixed
rate: an L2 penalty, dropout, batch normalisation, or a subsampled class in the place of weights.
Early stopping has no runs of its own: it is a rule on the runs that went on, as its runs would be
the same up to where they stop. The same question where the answer is known is in
`studies.weight_ratio_plane`.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field

from dynamics.datasets import Dataset
from probes import OutputGradNorm, Recorder, SampleLoss, WeightEffect
from studies.lab.data import TensorData, describe_dataset, load_dataset, to_tensors
from studies.lab.executors import Executor
from studies.lab.models import SmallCNN
from studies.lab.sweep import SweepResult, begun, content_of, run_sweep
from studies.lab.train import Recipe, predict, record_accuracy, train

NAME = "weight-ratio"
FACTORS = ["problem", "arm", "log2_ratio", "seed"]
N_EVALUATED = 500
"""In-class test images that are evaluated, at most; as many more are held out, and half as many
off-class and noise inputs are evaluated each."""
TRAIN_ACCURACY_EVERY = 10
"""Epochs between two measurements of the training accuracy, which needs a pass of its own."""

ARMS: dict[str, dict[str, float | bool]] = {
    "none": {},
    "L2 0.001": {"weight_decay": 1e-3},
    "L2 0.01": {"weight_decay": 1e-2},
    "dropout": {"dropout": 0.5},
    "batch norm": {"batch_norm": True},
    "subsampling": {"subsampled": True},
}
"""What is changed against plain SGD at a fixed rate."""


class WeightRatioConfig(BaseModel):
    """One run of the study. Defaults: 2,000 images, a small CNN, SGD at a fixed rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str = "images"
    data: str
    pair: tuple[int, int]
    arm: str
    log2_ratio: float = Field(ge=-16, le=16)
    seed: int = Field(ge=0)
    n_images: int = Field(default=2000, ge=20)
    width: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    batch_norm: bool = False
    subsampled: bool = False
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    epochs: int = Field(default=150, ge=1)

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""
        return f"{self.arm.replace(' ', '-')}-ratio{self.log2_ratio:g}-seed{self.seed}"


def plan_runs(
    *,
    data: str,
    pair: tuple[int, int],
    arms: Sequence[str],
    log2_ratios: Sequence[float],
    seeds: int,
    n_images: int,
    epochs: int,
    width: int = 32,
) -> list[WeightRatioConfig]:
    """The runs of a study: every combination, seed by seed.

    Args:
        data: What `open_dataset` takes; images of a size divisible by 4.
        pair: The two classes; the first one's weight is 2^`log2_ratio` times the second one's.
        arms: Arms, keys of `ARMS`; `all` for every one.
        log2_ratios: Logarithms to base 2 of the weight ratio.
        seeds: Number of seeds, from 0.
        n_images: Images trained on, half of each class, at most what there are.
        epochs: Epochs of each run.
        width: Channels of the network's first convolution.

    Returns:
        The configurations.

    Raises:
        ValueError: If an arm is unknown, or the data lack a class of the pair.
    """
    if unknown := [arm for arm in arms if arm not in {*ARMS, "all"}]:
        raise ValueError(f"There is no arm {unknown[0]!r}; there are {', '.join(ARMS)}, and all.")
    chosen = list(ARMS) if "all" in arms else list(dict.fromkeys(arms))
    counts = [int((load_dataset(data).y_train == c).sum()) for c in pair]
    if pair[0] == pair[1] or min(counts) < 10:
        raise ValueError(
            f"A pair is two classes with 10 images or more each, but {data} has {counts[0]} of "
            f"class {pair[0]} and {counts[1]} of class {pair[1]}."
        )
    return [
        WeightRatioConfig(
            data=data,
            pair=pair,
            arm=arm,
            log2_ratio=log2_ratio,
            seed=seed,
            n_images=2 * min(n_images // 2, *counts),
            epochs=epochs,
            width=width,
            **ARMS[arm],
        )
        for seed, arm, log2_ratio in product(range(seeds), chosen, log2_ratios)
    ]


def run_configs(
    out: Path, configs: Sequence[WeightRatioConfig], *, executor: Executor | None = None
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


def run_one(out: Path, config: WeightRatioConfig) -> None:
    """Run one combination, unless it has been run.

    A run that was interrupted goes on from its checkpoint, in the same folder.

    Args:
        out: Folder of the run.
        config: What to run.
    """
    content = content_of(NAME, config)
    started = begun(out, content)
    if started is None:
        return
    dataset = load_dataset(config.data)
    chosen = choose_images(dataset.y_train, config)
    images, test_images = to_tensors(dataset)
    train_set = images.take(chosen).relabelled(_second(dataset.y_train[chosen], config))
    evaluation, held_out = _evaluation_sets(test_images, dataset, config)
    torch.manual_seed(config.seed)
    channels, size = train_set.images.shape[1:3]
    model = SmallCNN(
        channels, size, 2, config.width, dropout=config.dropout, batch_norm=config.batch_norm
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on CPUs
    recorder = Recorder(
        out,
        model,
        [SampleLoss(), OutputGradNorm(), WeightEffect(evaluation, batch_size=64)],
        roster={"sample_id": chosen, "label": train_set.labels.numpy()},
        data=describe_dataset(config.data),
        config=content,
        resume=started,
    )
    class_weights = weights_of(config.log2_ratio)

    def evaluate(epoch: int) -> bool:
        _record_held_out(recorder, model, held_out, class_weights)
        if (epoch + 1) % TRAIN_ACCURACY_EVERY == 0 or epoch in (0, config.epochs - 1):
            record_accuracy(recorder, "train", predict(model, train_set), train_set.labels)
        return False

    recipe = Recipe(
        config.epochs,
        config.lr,
        config.momentum,
        config.weight_decay,
        config.batch_size,
        config.seed,
    )
    weights = torch.ones(2) if config.subsampled else class_weights
    with recorder:
        train(
            model,
            train_set,
            recipe,
            recorder,
            sample_ids=torch.as_tensor(chosen),
            weights=weights[train_set.labels],
            after_epoch=evaluate,
            title=config.run_name,
        )


def weights_of(log2_ratio: float) -> torch.Tensor:
    """Weights of the two classes: in the ratio asked for, and 1 on average over equal classes.

    Args:
        log2_ratio: Logarithm to base 2 of first over second.

    Returns:
        Shape (2,), summing to 2, so that the ratio and not the size of a step differs between runs.
    """
    ratio = 2.0**log2_ratio
    return torch.tensor([2 * ratio / (1 + ratio), 2 / (1 + ratio)])


def choose_images(labels: np.ndarray, config: WeightRatioConfig) -> np.ndarray:
    """Rows trained on: as many of each class, or of the lighter one a share where it is subsampled.

    Args:
        labels: All training labels.
        config: Which classes, how many images, and whether one class is subsampled.

    Returns:
        Rows, in random order; with the same seed a subsampled run has a part of the others' images.
    """
    rng = np.random.default_rng(config.seed)
    rows = [rng.permutation(np.flatnonzero(labels == c)) for c in config.pair]
    n = [config.n_images // 2] * 2
    if config.subsampled:
        lighter = int(config.log2_ratio > 0)
        n[lighter] = max(round(n[lighter] / 2 ** abs(config.log2_ratio)), 1)
    return rng.permutation(np.concatenate([rows[0][: n[0]], rows[1][: n[1]]]))


def _second(labels: np.ndarray, config: WeightRatioConfig) -> np.ndarray:
    """Labels within the pair: 0 for its first class, 1 for its second."""
    return (labels == config.pair[1]).astype(np.int64)


def _evaluation_sets(
    test: TensorData, dataset: Dataset, config: WeightRatioConfig
) -> tuple[dict[str, torch.Tensor], TensorData]:
    """Inputs by name for `WeightEffect`, and in-class test images that are held out of them."""
    in_class = np.isin(dataset.y_test, config.pair)
    rows = np.flatnonzero(in_class)[: 2 * N_EVALUATED]
    rng = np.random.default_rng(0)  # the same inputs in every run
    off = rng.permutation(np.flatnonzero(~in_class))[: N_EVALUATED // 2]
    noise = rng.integers(0, dataset.peak + 1, (N_EVALUATED // 2, *dataset.x_test.shape[1:]))
    as_test_set = replace(dataset, x_test=noise.astype(np.uint8), y_test=np.zeros(len(noise)))
    sets = {
        "in-class test": test.images[rows[::2]],
        "off-class": test.images[off],
        "noise": to_tensors(as_test_set)[1].images,
    }
    return sets, test.take(rows[1::2]).relabelled(_second(dataset.y_test[rows[1::2]], config))


@torch.no_grad()
def _record_held_out(
    recorder: Recorder, model: torch.nn.Module, data: TensorData, class_weights: torch.Tensor
) -> None:
    """Record accuracy and weighted loss; the loss is what early stopping looks at."""
    model.eval()
    logits = model(data.images)
    record_accuracy(recorder, "held-out", logits.argmax(1), data.labels)
    losses = F.cross_entropy(logits, data.labels, reduction="none") * class_weights[data.labels]
    n = len(losses)
    stderr = losses.std().item() / n**0.5
    recorder.record("weighted_loss", losses.mean().item(), block="held-out", stderr=stderr, n=n)
