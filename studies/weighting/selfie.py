"""SELFIE: labels that the network has predicted alike again and again are refurbished."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.weighting.scheme import Scheme, Setup, StepView

EPSILON = 0.05
"""Largest predictive uncertainty of a refurbishable sample."""


def selfie(setup: Setup) -> Scheme:
    """Train on the small-loss samples as labelled, and on refurbishable ones as predicted.

    Of a batch, C are the (1 − ε) share of smallest losses, R the refurbishable samples: those
    whose last q predictions have uncertainty F ≤ 0.05, and any that were so before, which keep
    their label. The loss is (1/|R ∪ C|)(Σ_R ℓ(x, y_refurb) + Σ_{C∖R} ℓ(x, y)). Plain training in
    the warm-up. The paper's warm-up is 25 epochs and q = 15; here q is the warm-up.

    Args:
        setup: What is trained on; ε is its noise ratio.

    Returns:
        The scheme.

    Reference:
        Song, Kim and Lee, ICML 2019, Sec. 3.
    """
    state = Selfie(setup)
    return Scheme(state.weights, state.losses, corrected=lambda: state.refurbished)


class Selfie:
    """The last q predictions for each sample, and the labels refurbished so far.

    Args:
        setup: What is trained on.
    """

    def __init__(self, setup: Setup) -> None:
        self._n_classes = setup.n_classes
        self._noise_ratio = setup.noise_ratio
        self._warm_up = setup.warm_up
        self._history = torch.full((len(setup.data), max(setup.warm_up, 2)), -1)
        self.refurbished = torch.full((len(setup.data),), -1)

    def losses(self, view: StepView) -> Tensor:
        """Remember the predictions, refurbish what can be, and take losses at the labels in force.

        Args:
            view: The step.

        Returns:
            Losses, shape (N,).
        """
        history = self._history[view.rows].roll(1, 1)
        history[:, 0] = view.logits.detach().argmax(1)
        self._history[view.rows] = history
        if view.epoch < self._warm_up:
            return view.losses
        uncertainty, predicted = prediction_uncertainty(history, self._n_classes)
        known = self.refurbished[view.rows]
        renewed = torch.where((known < 0) & (uncertainty <= EPSILON), predicted, known)
        self.refurbished[view.rows] = renewed
        labels = torch.where(renewed >= 0, renewed, view.labels)
        return F.cross_entropy(view.logits, labels, reduction="none")

    def weights(self, view: StepView) -> Tensor:
        """n/|R ∪ C| for the samples trained on, 0 for the others.

        Args:
            view: The step.

        Returns:
            Weights, shape (N,).
        """
        n = len(view.rows)
        if view.epoch < self._warm_up:
            return torch.ones(n)
        used = self.refurbished[view.rows] >= 0
        small = view.losses.detach().argsort()[: round((1 - self._noise_ratio) * n)]
        used[small] = True
        return used.float() * (n / max(int(used.sum()), 1))


def prediction_uncertainty(history: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """How undecided a network has been about each sample.

    Args:
        history: Last q predicted classes, shape (N, q); −1 where there are fewer yet.
        n_classes: Number of classes C.

    Returns:
        F = −Σ_j P(j) log P(j) / log C with P the shares of the predictions, 1 where the history
        is not full; and the most frequent class. Both of shape (N,).
    """
    is_full = (history >= 0).all(1)
    share = F.one_hot(history.clamp(min=0), n_classes).double().mean(1)
    entropy = -torch.special.xlogy(share, share).sum(1) / math.log(n_classes)
    return torch.where(is_full, entropy, 1.0), share.argmax(1)
