"""The one training loop of the studies, with the recorder in it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from probes import Recorder
from studies.lab.checkpoint import Checkpoint
from studies.lab.data import TensorData


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: plain SGD, or Adam.

    Attributes:
        epochs: Epochs at most.
        lr: Learning rate in the first epoch.
        momentum: Momentum.
        weight_decay: L2 penalty.
        batch_size: Samples per step.
        seed: Seed of the order of the samples.
        lr_decay: Factor on the learning rate after each epoch; 1 keeps it fixed.
        optimizer: `sgd` or `adam`; Adam takes no momentum.
    """

    epochs: int
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 128
    seed: int = 0
    lr_decay: float = 1.0
    optimizer: Literal["sgd", "adam"] = "sgd"


def train(
    model: nn.Module,
    data: TensorData,
    recipe: Recipe,
    recorder: Recorder,
    *,
    sample_ids: Tensor | None = None,
    weights: Tensor | None = None,
    before_epoch: Callable[[int, torch.optim.Optimizer], TensorData] | None = None,
    after_epoch: Callable[[int], bool] = lambda epoch: False,
    title: str = "training",
) -> int:
    """Train with cross-entropy, recording every batch.

    The loss of a batch of n samples is Σ w_i ℓ_i / n, as in Byrd and Lipton: it is not divided by
    the sum of the weights.

    Between epochs a checkpoint is saved in the recorder's folder now and then. With a recorder that
    takes a run up again training goes on from there, to the same bits as without the interruption;
    `before_epoch` and `after_epoch` must then depend on the epoch, the model and torch's global
    generator alone.

    Args:
        model: Network from images to logits; changed in place.
        data: Training images and labels.
        recipe: How to train.
        recorder: An entered recorder.
        sample_ids: Id of each training sample; its row in `data` by default.
        weights: Importance weight w_i of each training sample, shape (N,); 1 by default.
        before_epoch: Called with each epoch's index and the optimiser before it begins; returns
            what is trained on in that epoch (`data` seen through a deficit, say), row by row the
            same samples, and may change the optimiser's rate or weight decay.
        after_epoch: Called with each epoch's index when it is over; True ends training.
        title: Text of the progress bar, which shows on a terminal only.

    Returns:
        Number of epochs trained.
    """
    optimizer = _build_optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, recipe.lr_decay)
    ids = torch.arange(len(data)) if sample_ids is None else sample_ids
    generator = torch.Generator().manual_seed(recipe.seed)
    checkpoint = Checkpoint(
        recorder, {"model": model, "optimizer": optimizer, "schedule": schedule}, generator
    )
    trained = start = checkpoint.restore()
    epochs = tqdm(
        range(start, recipe.epochs),
        title,
        initial=start,
        total=recipe.epochs,
        disable=None,
        leave=False,
        unit="epoch",
    )
    for epoch in epochs:
        recorder.begin_epoch(epoch)
        seen = data if before_epoch is None else before_epoch(epoch, optimizer)
        model.train()
        for rows in shuffled_batches(len(data), recipe.batch_size, generator):
            labels = seen.labels[rows]
            logits = model(seen.images[rows])
            losses = F.cross_entropy(logits, labels, reduction="none")
            w = None if weights is None else weights[rows]
            recorder.observe(losses, ids[rows], logits=logits, labels=labels, weights=w)
            weighted = losses if w is None else w * losses
            weighted.mean().backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
        trained = epoch + 1
        is_over = after_epoch(epoch)
        recorder.end_epoch()
        if is_over:
            break
        checkpoint.save_if_due()
    epochs.close()
    checkpoint.remove()
    return trained


def _build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    decay = recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), recipe.lr, weight_decay=decay)
    return torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=decay)


def shuffled_batches(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows 0 … n − 1 in random order, a batch at a time.

    Args:
        n: Number of samples.
        batch_size: Samples per batch; the last may be smaller.
        generator: Source of the order.

    Returns:
        The batches.
    """
    return iter(torch.split(torch.randperm(n, generator=generator), batch_size))


@torch.no_grad()
def predict(model: nn.Module, data: TensorData, batch_size: int = 1024) -> Tensor:
    """Predicted class of each image, in eval mode; the model's mode is restored.

    Args:
        model: The network.
        data: Images.
        batch_size: Images per pass.

    Returns:
        Shape (N,).
    """
    was_training = model.training
    model.eval()
    parts = [model(images).argmax(1) for images in torch.split(data.images, batch_size)]
    model.train(was_training)
    return torch.cat(parts)


def record_accuracy(recorder: Recorder, block: str, predicted: Tensor, labels: Tensor) -> float:
    """Record the share of right predictions, with its binomial standard error.

    Args:
        recorder: An entered recorder.
        block: Which samples, such as test.
        predicted: Predicted classes, shape (N,).
        labels: Classes to compare with, shape (N,).

    Returns:
        The accuracy.
    """
    n = len(labels)
    accuracy = (predicted == labels).double().mean().item()
    stderr = (accuracy * (1 - accuracy) / n) ** 0.5
    recorder.record("accuracy", accuracy, block=block, stderr=stderr, n=n)
    return accuracy
