"""What a scheme is: which weight, or which loss, each sample of a step gets.

A scheme that only weights is a function `weights(view) -> (N,)`. One that corrects labels gives
per-sample losses too; one that chooses its samples gives the batches. `Scheme` bundles these, with
plain training as the default of each, and a scheme that remembers is an object whose methods go
into the bundle. No scheme sees a true label, but for those of the validation images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.lab.data import TensorData
from studies.lab.train import Recipe, shuffled_batches


@dataclass(frozen=True)
class StepView:
    """What a scheme sees of a step, after the forward pass and before the backward pass.

    Attributes:
        epoch: Epoch in progress.
        rows: Rows of the samples in the training set, shape (N,).
        images: Images as the network saw them.
        labels: Labels as given, shape (N,).
        logits: The network's outputs, shape (N, C), with their graph.
        model: The network. Passes of a scheme's own go through another one of the same build
            (`Setup.build_model` and `torch.func.functional_call`): probes hang on this one.
    """

    epoch: int
    rows: Tensor
    images: Tensor
    labels: Tensor
    logits: Tensor
    model: nn.Module

    @cached_property
    def losses(self) -> Tensor:
        """Cross-entropy of each sample at its given label, shape (N,), with its graph."""
        return F.cross_entropy(self.logits, self.labels, reduction="none")

    @cached_property
    def p_true(self) -> Tensor:
        """Probability of each sample's given label, shape (N,), without a graph."""
        return (-self.losses.detach()).exp()


@dataclass(frozen=True)
class Setup:
    """What a scheme is built from.

    Attributes:
        data: Training images with their given labels.
        validation: A few balanced images with true labels, which are not trained on.
        n_classes: Number of classes C.
        noise_ratio: Share of wrong labels, as told to schemes that need it; 0 without noise.
        warm_up: Epochs of plain training before a scheme may trust the network.
        recipe: How the network is trained.
        build_model: A fresh network with the initial weights of the given seed.
        record: Records a value of the scheme's own: name, value, block.
    """

    data: TensorData
    validation: TensorData
    n_classes: int
    noise_ratio: float
    warm_up: int
    recipe: Recipe
    build_model: Callable[[int], nn.Module]
    record: Callable[[str, float, str], None]


class Weights(Protocol):
    """How much each sample counts; the loss of a batch is Σ w_i ℓ_i / N."""

    def __call__(self, view: StepView, /) -> Tensor:
        """Weights, shape (N,), non-negative and without a graph."""


class Losses(Protocol):
    """What each sample is trained for."""

    def __call__(self, view: StepView, /) -> Tensor:
        """Losses, shape (N,), with their graph; asked for before the weights."""


def uniform(view: StepView) -> Tensor:
    """Plain training: every sample counts the same.

    Args:
        view: The step.

    Returns:
        Ones, shape (N,).
    """
    return torch.ones(len(view.rows))


def at_given_labels(view: StepView) -> Tensor:
    """Plain training: cross-entropy at the given labels.

    Args:
        view: The step.

    Returns:
        Losses, shape (N,).
    """
    return view.losses


def shuffled(setup: Setup) -> Callable[[nn.Module], Iterator[Tensor]]:
    """Plain training: every sample once an epoch, in random order.

    Args:
        setup: What is trained on, and the seed of its order.

    Returns:
        A function from the network, which it does not look at, to the rows of an epoch's batches.
    """
    generator = torch.Generator().manual_seed(setup.recipe.seed)
    return lambda model: shuffled_batches(len(setup.data), setup.recipe.batch_size, generator)


@dataclass(frozen=True)
class Scheme:
    """A scheme: what it changes in plain training.

    Attributes:
        weights: How much each sample of a step counts.
        losses: What each sample of a step is trained for.
        images: What the network sees instead of a batch of images.
        batches: From the network to the rows of an epoch's batches, drawn as training goes on;
            `shuffled` by default.
        before_epoch: Called with each epoch's index and the network before it begins.
        corrected: The labels that the scheme has put in the place of the given ones so far, shape
            (N_train,), −1 where it has not; None for a scheme that corrects none for good.
        has_repeats: Whether a batch may hold a sample more than once.
    """

    weights: Weights = uniform
    losses: Losses = at_given_labels
    images: Callable[[Tensor], Tensor] = lambda images: images
    batches: Callable[[nn.Module], Iterator[Tensor]] | None = None
    before_epoch: Callable[[int, nn.Module], None] = lambda epoch, model: None
    corrected: Callable[[], Tensor | None] = lambda: None
    has_repeats: bool = False


def to_mean_one(weights: Tensor) -> Tensor:
    """Weights divided by their mean, so that a step is as long as without them.

    Args:
        weights: Shape (N,), non-negative.

    Returns:
        Shape (N,), of mean 1; all 0 where all are 0, as in Ren et al.
    """
    total = weights.sum()
    return weights * (len(weights) / total) if total > 0 else torch.zeros_like(weights)
