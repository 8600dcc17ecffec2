"""Study `noise-ratio`: what label noise costs a network that memorises (Chen et al., ICML 2019).

Half of the noisy data is trained on until it is memorised; accuracy is then measured on the other
half, against its *noisy* labels (the law's left-hand side) and against its true ones. Runs differ
in kind of noise, ratio, arm, width and seed. Everything is one fixed rate of plain SGD, so that
nothing but the noise changes.

Arms: `plain` trains to full memorisation, `weight decay` and `dropout` are regularised. Early
stopping is no arm of its own: every epoch of a plain run is measured on two folds of the held-out
half, so that an analysis can choose an epoch on one fold and measure on the other.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dynamics.noise_law import NoiseKind
from probes import Recorder, SampleLoss
from studies.lab.corruption import TrueClass, corrupt_labels
from studies.lab.data import describe_dataset, load_dataset, to_tensors
from studies.lab.models import build_mlp
from studies.lab.sweep import begun, content_of, run_sweep
from studies.lab.train import Recipe, predict, record_accuracy, train

NAME = "noise-ratio"
MEMORISED = 0.999
"""Training accuracy, on the noisy labels, at which a run ends."""

Arm = Literal["plain", "weight decay", "dropout"]
"""What keeps the network from memorising."""

ARMS: tuple[Arm, ...] = get_args(Arm)

REGULARISED_EPOCHS = 30
"""Epochs of a regularised run, which may never memorise."""

DROPOUT = 0.5


class NoiseRatioConfig(BaseModel):
    """One run of the study. Defaults: 8,000 images, an MLP of 1024-1024, SGD at a fixed rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    noise: NoiseKind
    ratio: float = Field(ge=0, lt=1)
    true_class: TrueClass = "excluded"
    arm: Arm = "plain"
    seed: int = Field(ge=0)
    n_images: int = Field(default=8000, ge=40)
    width: int = Field(default=1024, ge=1)
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    batch_size: int = Field(default=128, ge=1)
    max_epochs: int = Field(default=200, ge=1)

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""
        parts = [self.noise, f"{self.ratio:g}"]
        parts += ["included"] if self.true_class == "included" else []
        parts += [self.arm.replace(" ", "-")] if self.arm != "plain" else []
        return "-".join([*parts, f"width{self.width}", f"seed{self.seed}"])


def run_study(
    out: Path,
    *,
    data: str,
    noises: Sequence[NoiseKind],
    ratios: Sequence[float],
    arms: Sequence[Arm] = ("plain",),
    arm_ratios: Sequence[float] = (0.2, 0.4, 0.6),
    widths: Sequence[int] = (1024,),
    true_class: TrueClass = "excluded",
    seeds: int,
    n_images: int,
) -> None:
    """Run every combination that has not been run yet, the plain arm first.

    Args:
        out: Folder of the study.
        data: What `open_dataset` takes.
        noises: Kinds of noise.
        ratios: Noise ratios.
        arms: Arms; plain and regularised.
        arm_ratios: Those of the ratios at which regularised arms are run.
        widths: Widths of both hidden layers.
        true_class: Whether a drawn label may be the true one.
        seeds: Number of seeds, from 0.
        n_images: Images used in all, at most what there are; half of them are trained on.
    """
    n_images = min(n_images, len(load_dataset(data).y_train))
    cells = product([a for a in ARMS if a in arms], widths, noises, ratios, range(seeds))
    configs = [
        NoiseRatioConfig(
            data=data,
            noise=noise,
            ratio=ratio,
            true_class=true_class,
            arm=arm,
            width=width,
            seed=seed,
            n_images=n_images,
            **({} if arm == "plain" else {"max_epochs": REGULARISED_EPOCHS}),
        )
        for arm, width, noise, ratio, seed in cells
        if arm == "plain" or ratio in arm_ratios
    ]
    run_sweep(
        out,
        NAME,
        configs,
        ["noise", "ratio", "true_class", "arm", "width", "seed"],
        run_one,
    )


def run_one(out: Path, config: NoiseRatioConfig) -> None:
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
    dataset = load_dataset(config.data)
    chosen = np.random.default_rng(config.seed).permutation(len(dataset.y_train))
    chosen = chosen[: config.n_images]
    true = dataset.y_train[chosen].astype(np.int64)
    noisy = corrupt_labels(
        true,
        config.ratio,
        kind=config.noise,
        n_classes=dataset.n_classes,
        seed=config.seed,
        true_class=config.true_class,
    )
    half = len(chosen) // 2
    images = to_tensors(dataset)[0].take(chosen).relabelled(noisy)
    train_set, held_out = images.take(np.arange(half)), images.take(np.arange(half, 2 * half))
    true_held_out = torch.as_tensor(true[half : 2 * half])
    torch.manual_seed(config.seed)
    model = _build(config, int(np.prod(images.images.shape[1:])), dataset.n_classes)
    recorder = Recorder(
        out,
        model,
        [SampleLoss()],
        roster={"sample_id": chosen[:half], "label": noisy[:half], "true_label": true[:half]},
        data=describe_dataset(config.data),
        config=content,
        resume=started,
    )

    def evaluate(epoch: int) -> bool:
        predicted = predict(model, held_out)
        _record_folds(recorder, predicted, held_out.labels, true_held_out)
        fitted = predict(model, train_set)
        reached = record_accuracy(recorder, "train, noisy labels", fitted, train_set.labels)
        ends = reached >= MEMORISED
        if ends or epoch + 1 == config.max_epochs:
            _record_confusion(recorder, predicted, true_held_out, dataset.n_classes)
        return ends

    with recorder:
        train(
            model,
            train_set,
            _recipe(config),
            recorder,
            sample_ids=torch.as_tensor(chosen[:half]),
            after_epoch=evaluate,
            title=config.run_name,
        )


def _build(config: NoiseRatioConfig, n_inputs: int, n_classes: int) -> nn.Module:
    model = build_mlp(n_inputs, (config.width, config.width), n_classes)
    if config.arm != "dropout":
        return model
    layers: list[nn.Module] = []
    for layer in model:
        layers += [layer, nn.Dropout(DROPOUT)] if isinstance(layer, nn.ReLU) else [layer]
    return nn.Sequential(*layers)


def _recipe(config: NoiseRatioConfig) -> Recipe:
    return Recipe(
        config.max_epochs,
        config.lr,
        config.momentum,
        config.weight_decay if config.arm == "weight decay" else 0.0,
        config.batch_size,
        config.seed,
    )


def _record_folds(recorder: Recorder, predicted: Tensor, noisy: Tensor, true: Tensor) -> None:
    """Record accuracies, label precision and label recall, held-out and of its two folds."""
    everything = slice(None)
    folds = {
        "held-out": everything,
        "held-out a": slice(0, None, 2),
        "held-out b": slice(1, None, 2),
    }
    for block, rows in folds.items():
        guess, label, truth = predicted[rows], noisy[rows], true[rows]
        clean, selected = label == truth, guess == label
        for name, n in (("label_precision", selected.sum()), ("label_recall", clean.sum())):
            share = ((selected & clean).sum() / n).item() if n else float("nan")
            stderr = (share * (1 - share) / n.item()) ** 0.5 if n else None
            recorder.record(name, share, block=block, stderr=stderr, n=int(n))
        record_accuracy(recorder, f"{block}, noisy labels", guess, label)
        record_accuracy(recorder, f"{block}, true labels", guess, truth)


def _record_confusion(recorder: Recorder, predicted: Tensor, true: Tensor, n_classes: int) -> None:
    """Record the share of each class's held-out samples that is predicted as each class."""
    counts = torch.bincount(true * n_classes + predicted, minlength=n_classes**2)
    counts = counts.reshape(n_classes, n_classes)
    for label, row in enumerate(counts.tolist()):
        for guess, count in enumerate(row):
            share = count / sum(row) if sum(row) else float("nan")
            recorder.record("confusion", share, block=f"{label} as {guess}", n=sum(row))
