"""Dynamic bootstrapping: a beta mixture on the losses says how far to trust each label."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dynamics.beta_mixture import fit_beta_mixture
from studies.weighting.scheme import Scheme, Setup, StepView

Target = Literal["hard", "soft"]
"""What is put in a suspect label's place: the predicted class, or the predicted probabilities."""

_MIXING = 32.0


def bootstrapping(setup: Setup, target: Target, *, mixup: bool = False) -> Scheme:
    """Labels are replaced by the network's predictions as far as they are likely to be wrong.

    ℓ_i = −[(1 − w_i) y_iᵀ log h_i + w_i z_iᵀ log h_i], where w_i, clipped to [1e-4, 1 − 1e-4], is
    the posterior of the high-loss component of a beta mixture fitted before each epoch to the
    losses of all training samples, in eval mode, and z_i the network's own prediction, held fixed.
    After the warm-up; before it, plain training. To the loss is added
    R = Σ_c (1/C) log((1/C)/h̄_c), with h̄ the mean prediction of the batch, against collapse.

    With mixup ("M-DYR" in the paper) the network sees x = δ x_p + (1 − δ) x_q, δ from
    Beta(32, 32), and the loss is δ ℓ_p + (1 − δ) ℓ_q, at the same outputs. A row then goes under
    the name of the sample with the larger share, which the authors do not need.

    Args:
        setup: What is trained on.
        target: What takes the place of a suspect label.
        mixup: Whether images are mixed.

    Returns:
        The scheme.

    Reference:
        Arazo et al., ICML 2019, Sec. 3.2 and 3.3; the clipping and R are of the authors' code.
    """
    state = Bootstrapping(setup, target)
    if not mixup:
        return Scheme(losses=state.losses, before_epoch=state.before_epoch)
    return Scheme(
        losses=state.mixed_losses, images=state.mix_images, before_epoch=state.before_epoch
    )


class Bootstrapping:
    """How suspect each label is, and what the images of the current batch were mixed with.

    Args:
        setup: What is trained on.
        target: What takes the place of a suspect label.
    """

    def __init__(self, setup: Setup, target: Target) -> None:
        self._data = setup.data
        self._target = target
        self._warm_up = setup.warm_up
        self._rng = np.random.default_rng(setup.recipe.seed)
        self._generator = torch.Generator().manual_seed(setup.recipe.seed)
        self.share = 1.0
        self.partner = torch.arange(0)
        self.suspicion = torch.zeros(len(setup.data))

    def before_epoch(self, epoch: int, model: nn.Module) -> None:
        """Fit the mixture to the losses as they are now.

        Args:
            epoch: Epoch about to begin.
            model: The network.
        """
        if epoch < self._warm_up:
            return
        losses = self._measure_losses(model).double().numpy()
        try:
            posterior = fit_beta_mixture(losses).posterior(losses)
        except ValueError:
            return  # all losses are equal: what was known before stays
        self.suspicion = torch.as_tensor(posterior, dtype=torch.float32).clamp(1e-4, 1 - 1e-4)

    @torch.no_grad()
    def _measure_losses(self, model: nn.Module) -> Tensor:
        was_training = model.training
        model.eval()
        logits = torch.cat([model(part) for part in torch.split(self._data.images, 1024)])
        model.train(was_training)
        return torch.nn.functional.cross_entropy(logits, self._data.labels, reduction="none")

    def losses(self, view: StepView) -> Tensor:
        """The bootstrapping loss.

        Args:
            view: The step.

        Returns:
            Losses, shape (N,).
        """
        if view.epoch < self._warm_up:
            return view.losses
        return self._corrected(view, torch.arange(len(view.rows))) + balance(view.logits)

    def mix_images(self, images: Tensor) -> Tensor:
        """Mix a batch with itself in another order.

        Args:
            images: The batch.

        Returns:
            δ x_p + (1 − δ) x_q with δ ≥ 1/2.
        """
        share = self._rng.beta(_MIXING, _MIXING)
        self.share = max(share, 1 - share)
        self.partner = torch.randperm(len(images), generator=self._generator)
        return self.share * images + (1 - self.share) * images[self.partner]

    def mixed_losses(self, view: StepView) -> Tensor:
        """The bootstrapping loss of mixed images.

        Args:
            view: The step.

        Returns:
            Losses, shape (N,).
        """
        own = self._corrected(view, torch.arange(len(view.rows)))
        partner = self._corrected(view, self.partner)
        mixed = self.share * own + (1 - self.share) * partner
        return mixed if view.epoch < self._warm_up else mixed + balance(view.logits)

    def _corrected(self, view: StepView, order: Tensor) -> Tensor:
        """−Σ_c t_c log h_c of each row, with the target t of the sample that `order` names.

        Predictions z are those for what the network saw: with mixup, for the mixed image.
        """
        log_p = view.logits.log_softmax(1)
        predicted = log_p.detach().exp()
        if self._target == "hard":
            predicted = torch.nn.functional.one_hot(predicted.argmax(1), log_p.shape[1]).float()
        given = torch.nn.functional.one_hot(view.labels[order], log_p.shape[1])
        suspicion = self.suspicion[view.rows[order]].unsqueeze(1)
        return -(((1 - suspicion) * given + suspicion * predicted) * log_p).sum(1)


def balance(logits: Tensor) -> Tensor:
    """Σ_c (1/C) log((1/C)/h̄_c), with h̄ the mean prediction of the batch: 0 if it is uniform.

    Args:
        logits: Shape (N, C).

    Returns:
        A scalar.
    """
    mean = logits.softmax(1).mean(0)
    return -(mean.log() + np.log(len(mean))).mean()
