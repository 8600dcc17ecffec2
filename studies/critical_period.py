"""Study `critical-period`: do early deficits harm for good (Achille et al., ICLR 2019)?

A network sees its training images through a deficit, until epoch t0 or in a window, and then the
clean images for the same number of epochs, whatever t0. Arms differ in the learning rate alone:
fixed, decaying throughout (as in the paper), or set back to its first value when the deficit ends.
With a rate that goes on decaying, a long deficit leaves little of it for the clean images: the
other two arms tell whether that, and not the deficit, is what harms.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from probes import FisherTrace, Recorder, every
from studies.lab.data import TensorData, describe_dataset, load_dataset, load_tensors
from studies.lab.deficits import DeficitKind, apply_deficit
from studies.lab.executors import Executor
from studies.lab.models import build_all_cnn, build_mlp
from studies.lab.sweep import SweepResult, begun, content_of, run_sweep
from studies.lab.train import Recipe, predict, record_accuracy, train

NAME = "critical-period"
FACTORS = ["network", "deficit", "rate", "onset", "until", "seed"]

Network = Literal["mlp", "mlp with batch norm", "all-cnn"]
Rate = Literal["fixed", "decayed", "reset"]


class CriticalPeriodConfig(BaseModel):
    """One run of the study: a deficit from epoch `onset` until before epoch `until`.

    `width` is that of the hidden layers; the All-CNN's first convolution has an eighth of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    network: Network = "mlp"
    deficit: DeficitKind = "none"
    rate: Rate = "decayed"
    onset: int = Field(default=0, ge=0)
    until: int = Field(default=0, ge=0)
    seed: int = Field(ge=0)
    n_images: int = Field(default=1000, ge=40)
    clean_epochs: int = Field(default=20, ge=1)
    width: int = Field(default=128, ge=1)
    depth: int = Field(default=5, ge=1)
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    lr_decay: float = Field(default=0.93, gt=0, le=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    n_test: int = Field(default=2000, ge=1)
    n_probe: int = Field(default=300, ge=2)
    fisher_every: int = Field(default=2, ge=1)

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""
        network = self.network.replace(" ", "-")
        deficit = self.deficit.replace(" ", "-")
        return f"{network}-{deficit}-{self.rate}-{self.onset}-{self.until}-seed{self.seed}"

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return self.until + self.clean_epochs

    def is_deprived(self, epoch: int) -> bool:
        """Whether an epoch is trained through the deficit."""
        return self.onset <= epoch < self.until

    def rate_at(self, epoch: int) -> float:
        """Learning rate of an epoch."""
        if self.rate == "fixed":
            return self.lr
        after_reset = self.rate == "reset" and epoch >= self.until
        return self.lr * self.lr_decay ** (epoch - self.until if after_reset else epoch)


def plan_runs(
    *,
    data: str,
    networks: Sequence[Network],
    rates: Sequence[Rate],
    until: Sequence[int],
    others: Sequence[DeficitKind],
    onsets: Sequence[int],
    window: int,
    seeds: int,
    n_images: int,
    **recipe: object,
) -> list[CriticalPeriodConfig]:
    """The runs of a study, in the order in which a part of them can best be reported.

    For each seed first the runs without a deficit and with blur until t0, then blur in windows,
    then the other deficits until the largest t0, at the decayed rate. The reset arm has no run
    without a deficit: it would be that of the decayed arm.

    Args:
        data: What `open_dataset` takes.
        networks: Networks.
        rates: Rate arms.
        until: Ends t0 of a deficit from the first epoch on; 0 for none is always run.
        others: Deficits besides blur.
        onsets: First epochs of blur in a window.
        window: Epochs of a window.
        seeds: Number of seeds, from 0.
        n_images: Images trained on, at most what there are.
        **recipe: Other fields of the configuration.

    Returns:
        The configurations.
    """
    ends = sorted({end for end in until if end > 0})
    runs: list[dict[str, object]] = []
    for network in networks:
        without_reset = [rate for rate in rates if rate != "reset"]
        clean: list[dict[str, object]] = [{"rate": rate} for rate in without_reset]
        blurred: list[dict[str, object]] = [
            {"rate": rate, "deficit": "blur", "until": end} for rate in rates for end in ends
        ]
        windows: list[dict[str, object]] = [
            {"rate": rate, "deficit": "blur", "onset": onset, "until": onset + window}
            for rate in without_reset
            for onset in onsets
            if onset or window not in ends  # the first window is a deficit until its end
        ]
        last: list[dict[str, object]] = [
            {"deficit": kind, "until": end} for kind in others for end in ends[-1:]
        ]
        series = ([*clean, *blurred], windows, last)
        runs += [
            {"network": network, "seed": seed, **run}
            for part in series
            for seed in range(seeds)
            for run in part
        ]
    shared = {"data": data, "n_images": min(n_images, len(load_dataset(data).y_train)), **recipe}
    return [CriticalPeriodConfig.model_validate(shared | run) for run in runs]


def run_configs(
    out: Path, configs: Sequence[CriticalPeriodConfig], *, executor: Executor | None = None
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


def run_one(out: Path, config: CriticalPeriodConfig) -> None:
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
    deprived = apply_deficit(
        train_set, config.deficit, n_classes=dataset.n_classes, seed=config.seed
    )
    torch.manual_seed(config.seed)
    model = build_network(config, train_set, dataset.n_classes)
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
        for group in optimizer.param_groups:
            group["lr"] = config.rate_at(epoch)
        return deprived if config.is_deprived(epoch) else train_set

    def evaluate(epoch: int) -> bool:
        if (epoch + 1) % config.fisher_every == 0 or epoch + 1 == config.epochs:
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
        optimizer=config.optimizer,
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


def build_network(config: CriticalPeriodConfig, data: TensorData, n_classes: int) -> nn.Module:
    """The network of a run.

    Args:
        config: The run.
        data: Its training set, for the images' shape.
        n_classes: Number of outputs.

    Returns:
        The network.
    """
    channels, height, width = data.images.shape[1:]
    if config.network == "all-cnn":
        return build_all_cnn(channels, n_classes, max(config.width // 8, 1))
    hidden = [config.width] * config.depth
    batch_norm = config.network == "mlp with batch norm"
    return build_mlp(channels * height * width, hidden, n_classes, batch_norm=batch_norm)
