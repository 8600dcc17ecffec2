"""Study `regularisation-timing`: does it matter when one regularises (Golatkar et al., 2019)?

A regulariser is on until epoch t0, off until t0, or on in a window of fixed length; all runs train
equally long, from the same initial weights and in the same order of samples. The network is that of
the critical-period study, so that what the two measure can be put side by side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from probes import FisherTrace, Recorder, every
from studies.lab.data import TensorData, describe_dataset, load_dataset, load_tensors
from studies.lab.executors import Executor
from studies.lab.models import build_mlp
from studies.lab.sweep import SweepResult, begun, content_of, run_sweep
from studies.lab.train import Recipe, predict, record_accuracy, train

NAME = "regularisation-timing"
FACTORS = ["regulariser", "on_from", "on_until", "seed"]

Regulariser = Literal["none", "weight decay", "shift", "flip", "mixup"]


class RegularisationTimingConfig(BaseModel):
    """One run: a regulariser that is on from epoch `on_from` until before `on_until`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    regulariser: Regulariser = "none"
    on_from: int = Field(default=0, ge=0)
    on_until: int = Field(default=0, ge=0)
    seed: int = Field(ge=0)
    n_images: int = Field(default=1000, ge=40)
    n_test: int = Field(default=2000, ge=1)
    epochs: int = Field(default=40, ge=1)
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=5, ge=1)
    lr: float = Field(default=0.05, gt=0)
    lr_decay: float = Field(default=0.95, gt=0, le=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.003, gt=0)
    largest_shift: int = Field(default=2, ge=1)
    mixup_alpha: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=64, ge=1)
    n_probe: int = Field(default=300, ge=2)
    fisher_every: int = Field(default=2, ge=1)

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""
        name = self.regulariser.replace(" ", "-")
        return f"{name}-{self.on_from}-{self.on_until}-seed{self.seed}"

    def is_on(self, epoch: int) -> bool:
        """Whether the regulariser is on in an epoch."""
        return self.on_from <= epoch < self.on_until


def plan_runs(
    *,
    data: str,
    regularisers: Sequence[Regulariser],
    switches: Sequence[int],
    onsets: Sequence[int],
    window: int,
    epochs: int,
    seeds: int,
    n_images: int,
    **recipe: object,
) -> list[RegularisationTimingConfig]:
    """The runs of a study, in the order in which a part of them can best be reported.

    Args:
        data: What `open_dataset` takes.
        regularisers: Regularisers; `none` is always run.
        switches: Epochs t0 at which a regulariser is switched off, or on.
        onsets: First epochs of a window.
        window: Epochs of a window.
        epochs: Epochs of each run.
        seeds: Number of seeds, from 0.
        n_images: Images trained on, at most what there are.
        **recipe: Other fields of the configuration.

    Returns:
        The configurations.
    """
    inside = [t0 for t0 in switches if 0 < t0 < epochs]
    switched = [(0, epochs), *((0, t0) for t0 in inside), *((t0, epochs) for t0 in inside)]
    windows = [(onset, min(onset + window, epochs)) for onset in onsets if onset < epochs]
    spans = list(dict.fromkeys([*switched, *windows]))
    runs: list[dict[str, object]] = [{"seed": seed} for seed in range(seeds)]
    runs += [
        {"regulariser": regulariser, "on_from": start, "on_until": end, "seed": seed}
        for regulariser in regularisers
        for start, end in spans
        for seed in range(seeds)
    ]
    n_images = min(n_images, len(load_dataset(data).y_train))
    shared = {"data": data, "epochs": epochs, "n_images": n_images, **recipe}
    return [RegularisationTimingConfig.model_validate(shared | run) for run in runs]


def run_configs(
    out: Path, configs: Sequence[RegularisationTimingConfig], *, executor: Executor | None = None
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


def run_one(out: Path, config: RegularisationTimingConfig) -> None:
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
    chosen = np.random.default_rng(config.seed).permutation(len(dataset.y_train))
    chosen = chosen[: config.n_images]
    train_set, test_set = load_tensors(config.data)
    train_set = train_set.take(chosen)
    test_set = test_set.take(np.arange(min(config.n_test, len(test_set))))
    torch.manual_seed(config.seed)
    n_inputs = int(np.prod(train_set.images.shape[1:]))
    model = build_mlp(n_inputs, [config.width] * config.depth, dataset.n_classes)
    probe_set = (train_set.images[: config.n_probe], train_set.labels[: config.n_probe])
    recorder = Recorder(
        out,
        model,
        [FisherTrace(every(epochs=config.fisher_every), data=probe_set)],
        roster={"sample_id": chosen, "label": dataset.y_train[chosen].astype(np.int64)},
        data=describe_dataset(config.data),
        config=content,
        resume=started,
    )

    def begin(epoch: int, optimizer: torch.optim.Optimizer) -> TensorData:
        on = config.is_on(epoch)
        for group in optimizer.param_groups:
            decays = on and config.regulariser == "weight decay"
            group["weight_decay"] = config.weight_decay if decays else 0.0
        return regularise(train_set, config, epoch) if on else train_set

    def evaluate(epoch: int) -> bool:
        if (epoch + 1) % config.fisher_every == 0 or epoch + 1 == config.epochs:
            for block, data in (("train", train_set), ("test", test_set)):
                record_accuracy(recorder, block, predict(model, data), data.labels)
        return False

    recipe = Recipe(
        epochs=config.epochs,
        lr=config.lr,
        momentum=config.momentum,
        batch_size=config.batch_size,
        seed=config.seed,
        lr_decay=config.lr_decay,
    )
    with recorder:
        train(
            model,
            train_set,
            recipe,
            recorder,
            sample_ids=torch.as_tensor(chosen),
            before_epoch=begin,
            after_epoch=evaluate,
            title=config.run_name,
        )


def regularise(data: TensorData, config: RegularisationTimingConfig, epoch: int) -> TensorData:
    """What is trained on in an epoch while a regulariser of the data is on.

    Args:
        data: The training set; not modified.
        config: The run.
        epoch: The epoch; each is drawn anew.

    Returns:
        The data, augmented or mixed; as it is under weight decay.
    """
    generator = torch.Generator().manual_seed(1_000_003 * config.seed + epoch)
    if config.regulariser == "shift":
        return TensorData(shift(data.images, config.largest_shift, generator), data.labels)
    if config.regulariser == "flip":
        mirrored = torch.rand(len(data), generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], data.images.flip(-1), data.images)
        return TensorData(images, data.labels)
    if config.regulariser == "mixup":
        return mix(data, config.mixup_alpha, generator)
    return data


def shift(images: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to some pixels along both sides, its edge repeated.

    Args:
        images: Shape (N, channels, H, W).
        largest: Largest shift, in pixels.
        generator: Source of the shifts.

    Returns:
        Images of the same shape.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, [largest] * 4, mode="replicate")
    down, right = torch.randint(2 * largest + 1, (2, n), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    samples = torch.arange(n)[:, None, None, None]
    return padded[samples, torch.arange(channels)[None, :, None, None], rows, columns]


def mix(data: TensorData, alpha: float, generator: torch.Generator) -> TensorData:
    """Mixup with one label per image: λ x + (1 − λ) x′, labelled y with probability λ, else y′.

    Cross-entropy is linear in its target, so over the draw of the label the expected gradient is
    that of mixup with the soft label λ y + (1 − λ) y′.

    Args:
        data: Images and labels; not modified.
        alpha: λ is drawn from Beta(alpha, alpha).
        generator: Source of partners, λ and labels.

    Returns:
        The mixed data, row by row.

    Reference:
        Zhang, Cisse, Dauphin and Lopez-Paz, ICLR 2018.
    """
    n = len(data)
    partner = torch.randperm(n, generator=generator)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    drawn = np.random.default_rng(seed).beta(alpha, alpha, n).astype(np.float32)
    share = torch.as_tensor(drawn)
    keeps = torch.rand(n, generator=generator) < share
    weight = share[:, None, None, None]
    images = weight * data.images + (1 - weight) * data.images[partner]
    return TensorData(images, torch.where(keeps, data.labels, data.labels[partner]))
