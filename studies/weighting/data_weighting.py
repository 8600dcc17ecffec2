"""Learned data weighting: as learning to reweight, with a memory across epochs."""

import torch
from torch import Tensor

from studies.lab.data import TensorData
from studies.weighting.reweight import (
    alignment,
    parameters_of,
    validation_gradient,
    weighted_gradient,
)
from studies.weighting.scheme import Scheme, Setup, StepView, to_mean_one

DECAY = 2.0
"""γ, by which a weight is divided each time its sample comes up; the authors take 2 to 10."""
LOWEST = 1e-5


def data_weighting(setup: Setup) -> Scheme:
    """Each sample has a parameter φ_i, learned by its effect on a few clean images.

    From φ_i = 1, at each presentation φ_i ← max(φ_i/γ − ∂L_val(θ′)/∂φ_i, 1e-5), with
    θ′(φ) = θ − α Σ_j φ_j ∇ℓ_j the network one step on; then the batch is weighted by φ, normalised.
    −∂L_val/∂φ_i = α ∇ℓ_i(θ) · ∇L_val(θ′), the alignment of learning to reweight at θ′.

    The rule is that of the authors' code (its step on a mean over the batch here, so that φ_j
    enters as φ_j/N), with momentum left out of θ′.

    Args:
        setup: What is trained on, and the validation images.

    Returns:
        The scheme.

    Reference:
        Hu et al., NeurIPS 2019, Sec. 3; released code, `weighting/image_classifier.py`.
    """
    state = DataWeighting(setup)
    return Scheme(state.weights)


class DataWeighting:
    """φ of every training sample.

    Args:
        setup: What is trained on.
    """

    def __init__(self, setup: Setup) -> None:
        self._network = setup.build_model(setup.recipe.seed)
        self._validation = setup.validation
        self._lr = setup.recipe.lr
        self.phi = torch.ones(len(setup.data))

    def weights(self, view: StepView) -> Tensor:
        """Update φ of the batch, and normalise it.

        Args:
            view: The step.

        Returns:
            Weights, shape (N,), of mean 1.
        """
        theta, phi = parameters_of(view.model), self.phi[view.rows]
        batch = TensorData(view.images, view.labels)
        step = weighted_gradient(self._network, theta, batch, phi / len(phi))
        ahead = {name: value - self._lr * step[name] for name, value in theta.items()}
        direction = validation_gradient(self._network, ahead, self._validation)
        gain = self._lr * alignment(self._network, theta, batch, direction)
        phi = (phi / DECAY + gain).clamp(min=LOWEST)
        self.phi[view.rows] = phi
        return to_mean_one(phi)
