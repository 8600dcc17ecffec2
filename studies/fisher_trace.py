"""Study `fisher-trace`: does the Fisher trace rise to a peak and fall (Achille et al., ICLR 2019)?

A small CNN is trained on clean labels until it fits them, with the trace of the model's Fisher and
of the empirical one on a fixed part of the training set, before training and after every epoch. The
reference setting is run with several seeds; each of the others changes one thing
(learning rate, its decay, weight decay, momentum, width), to see what the shape depends on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from probes import FisherTrace, Recorder
from studies.lab.data import describe_dataset, load_dataset, to_tensors
from studies.lab.executors import Executor
from studies.lab.models import SmallCNN
from studies.lab.sweep import SweepResult, begun, content_of, run_sweep
from studies.lab.train import Recipe, predict, record_accuracy, train

NAME = "fisher-trace"

Setting = Literal[
    "reference", "low rate", "high rate", "fixed rate", "no weight decay", "no momentum", "wide"
]
"""What is changed against the reference."""

SETTINGS: dict[str, dict[str, float]] = {
    "reference": {},
    "low rate": {"lr": 0.004},
    "high rate": {"lr": 0.1},
    "fixed rate": {"lr_decay": 1.0},
    "no weight decay": {"weight_decay": 0.0},
    "no momentum": {"momentum": 0.0},
    "wide": {"width": 32},
}


class FisherTraceConfig(BaseModel):
    """One run of the study. Defaults: the reference setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    setting: Setting = "reference"
    seed: int = Field(ge=0)
    n_images: int = Field(default=6000, ge=40)
    width: int = Field(default=16, ge=1)
    lr: float = Field(default=0.02, gt=0)
    lr_decay: float = Field(default=0.97, gt=0, le=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0005, ge=0)
    batch_size: int = Field(default=128, ge=1)
    epochs: int = Field(default=40, ge=1)
    n_probe: int = Field(default=1000, ge=2)

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""
        return f"{self.setting.replace(' ', '-')}-seed{self.seed}"


def plan_runs(
    *,
    data: str,
    settings: Sequence[str],
    seeds: int,
    n_images: int,
    epochs: int,
) -> list[FisherTraceConfig]:
    """The runs of a study: every combination of setting and seed.

    Args:
        data: What `open_dataset` takes; images of a size divisible by 4.
        settings: Settings, keys of `SETTINGS`; `all` for every one.
        seeds: Number of seeds, from 0.
        n_images: Images trained on, at most what there are; drawn anew with each seed.
        epochs: Epochs of each run.

    Returns:
        The configurations.

    Raises:
        ValueError: If a setting is unknown.
    """
    if unknown := [setting for setting in settings if setting not in {*SETTINGS, "all"}]:
        raise ValueError(
            f"There is no setting {unknown[0]!r}; there are {', '.join(SETTINGS)}, and all."
        )
    chosen = list(SETTINGS) if "all" in settings else list(dict.fromkeys(settings))
    n_images = min(n_images, len(load_dataset(data).y_train))
    return [
        FisherTraceConfig(
            data=data,
            setting=setting,
            seed=seed,
            n_images=n_images,
            n_probe=min(1000, n_images),
            epochs=epochs,
            **SETTINGS[setting],
        )
        for setting in chosen
        for seed in range(seeds)
    ]


def run_configs(
    out: Path, configs: Sequence[FisherTraceConfig], *, executor: Executor | None = None
) -> SweepResult:
    """Run configurations that have not been run yet.

    Args:
        out: Folder of the study.
        configs: The runs.
        executor: Where they are made; one after the other in this process by default.

    Returns:
        Which runs did not end.
    """
    return run_sweep(out, NAME, configs, ["setting", "seed"], run_one, executor)


def run_one(out: Path, config: FisherTraceConfig) -> None:
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
    train_set, test_set = to_tensors(dataset)
    train_set = train_set.take(chosen)
    torch.manual_seed(config.seed)
    channels, size = train_set.images.shape[1:3]
    model = SmallCNN(channels, size, dataset.n_classes, config.width)
    probe_set = (train_set.images[: config.n_probe], train_set.labels[: config.n_probe])
    recorder = Recorder(
        out,
        model,
        [FisherTrace(data=probe_set), FisherTrace(data=probe_set, kind="empirical")],
        roster={"sample_id": chosen, "label": dataset.y_train[chosen].astype(np.int64)},
        data=describe_dataset(config.data),
        config=content,
        resume=started,
    )

    def evaluate(epoch: int) -> bool:
        for block, data in (("train", train_set), ("test", test_set)):
            record_accuracy(recorder, block, predict(model, data), data.labels)
        return False

    recipe = Recipe(
        epochs=config.epochs,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
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
            after_epoch=evaluate,
            title=config.run_name,
        )
