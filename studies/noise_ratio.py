"""Study `noise-ratio`: what label noise costs a network that memorises (Chen et al., ICML 2019).

Half of the noisy data is trained on until it is memorised; accuracy is then measured on the other
half, against its *noisy* labels (the law's left-hand side) and against its true ones. Runs differ
in kind of noise, ratio and seed. Everything is one fixed rate of plain SGD, so that nothing but the
noise changes.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from dynamics.noise_law import noise_table
from dynamics.traces import Study
from probes import Recorder, SampleLoss
from studies.lab.adaptive import run_until
from studies.lab.corruption import NoiseKind, corrupt_labels
from studies.lab.data import TensorData, describe_dataset, load_dataset, to_tensors
from studies.lab.executors import Executor
from studies.lab.models import build_mlp
from studies.lab.sweep import SweepResult, begun, content_of, run_sweep
from studies.lab.train import Recipe, predict, record_accuracy, train

NAME = "noise-ratio"
FACTORS = ["noise", "ratio", "seed"]
MEMORISED = 0.999
"""Training accuracy, on the noisy labels, at which a run ends."""


class NoiseRatioConfig(BaseModel):
    """One run of the study. Defaults: 8,000 images, an MLP of 1024-1024, SGD at a fixed rate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    noise: NoiseKind
    ratio: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)
    n_images: int = Field(default=8000, ge=40)
    hidden: tuple[int, ...] = (1024, 1024)
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    batch_size: int = Field(default=128, ge=1)
    max_epochs: int = Field(default=200, ge=1)

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""
        return f"{self.noise}-{self.ratio:g}-seed{self.seed}"


def plan_runs(
    *,
    data: str,
    noises: Sequence[NoiseKind],
    ratios: Sequence[float],
    seeds: int,
    n_images: int,
) -> list[NoiseRatioConfig]:
    """The runs of a study: every combination.

    Args:
        data: What `open_dataset` takes.
        noises: Kinds of noise.
        ratios: Noise ratios.
        seeds: Number of seeds, from 0.
        n_images: Images used in all, at most what there are; half of them are trained on.

    Returns:
        The configurations.
    """
    n_images = min(n_images, len(load_dataset(data).y_train))
    return [
        NoiseRatioConfig(data=data, noise=noise, ratio=ratio, seed=seed, n_images=n_images)
        for noise, ratio, seed in product(noises, ratios, range(seeds))
    ]


def run_configs(
    out: Path,
    configs: Sequence[NoiseRatioConfig],
    *,
    executor: Executor | None = None,
    until: float | None = None,
    budget: int = 0,
) -> SweepResult:
    """Run configurations that have not been run yet.

    Args:
        out: Folder of the study.
        configs: The runs.
        executor: Where they are made; one after the other in this process by default.
        until: Standard error of the mean held-out accuracy, against noisy labels, that every kind
            and ratio is to reach by adding seeds; none are added by default.
        budget: Runs in all, where `until` is given.

    Returns:
        Which runs did not end.
    """
    if until is None:
        return run_sweep(out, NAME, configs, FACTORS, run_one, executor)
    return run_until(
        out,
        NAME,
        configs,
        FACTORS,
        run_one,
        values=held_out_accuracies,
        until=until,
        budget=budget,
        executor=executor,
    )


def held_out_accuracies(study: Study) -> pd.DataFrame:
    """The accuracy on held-out noisy labels of each run that has ended.

    Args:
        study: A study named noise-ratio.

    Returns:
        One row per run: its factors and `value`.
    """
    runs = noise_table(study)
    ended = runs[runs["ended_cleanly"].astype(bool)]
    return ended[[*FACTORS, "held_out_noisy"]].rename(columns={"held_out_noisy": "value"})


def run_one(out: Path, config: NoiseRatioConfig) -> None:
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
    true = dataset.y_train[chosen].astype(np.int64)
    noisy = corrupt_labels(
        true, config.ratio, kind=config.noise, n_classes=dataset.n_classes, seed=config.seed
    )
    half = len(chosen) // 2
    images = to_tensors(dataset)[0].take(chosen).relabelled(noisy)
    train_set, held_out = images.take(np.arange(half)), images.take(np.arange(half, 2 * half))
    torch.manual_seed(config.seed)
    n_inputs = int(np.prod(images.images.shape[1:]))
    model = build_mlp(n_inputs, config.hidden, dataset.n_classes)
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
        return _evaluate(recorder, model, train_set, held_out, true[half : 2 * half]) >= MEMORISED

    recipe = Recipe(
        config.max_epochs, config.lr, config.momentum, 0.0, config.batch_size, config.seed
    )
    ids = torch.as_tensor(chosen[:half])
    with recorder:
        train(
            model,
            train_set,
            recipe,
            recorder,
            sample_ids=ids,
            after_epoch=evaluate,
            title=config.run_name,
        )


def _evaluate(
    recorder: Recorder,
    model: torch.nn.Module,
    train_set: TensorData,
    held_out: TensorData,
    true_labels: np.ndarray,
) -> float:
    """Record accuracies, label precision and label recall; return the training accuracy."""
    predicted = predict(model, held_out)
    clean = held_out.labels == torch.as_tensor(true_labels)
    selected = predicted == held_out.labels
    for name, n in (("label_precision", selected.sum()), ("label_recall", clean.sum())):
        share = ((selected & clean).sum() / n).item() if n else float("nan")
        stderr = (share * (1 - share) / n.item()) ** 0.5 if n else None
        recorder.record(name, share, block="held-out", stderr=stderr, n=int(n))
    record_accuracy(recorder, "held-out, noisy labels", predicted, held_out.labels)
    record_accuracy(recorder, "held-out, true labels", predicted, torch.as_tensor(true_labels))
    return record_accuracy(
        recorder, "train, noisy labels", predict(model, train_set), train_set.labels
    )
