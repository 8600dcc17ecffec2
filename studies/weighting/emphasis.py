"""Losses by the emphasis they put on a sample of probability p: derivative manipulation and kin.

The gradient of each of these losses at the logits points where that of cross-entropy does, and
differs in its length only: with p the probability of the given label, ‖∂ℓ/∂z‖₁ is

    cross-entropy 2(1 − p)    MAE 2p(1 − p)    MSE 4p(1 − p)²    GCE 2p^q(1 − p)

for −log p, 1 − p, (1 − p)² and (1 − p^q)/q; derivative manipulation chooses it directly,
w = exp(β p^λ (1 − p)), and IMAE is its λ = 1. So each is a weight on cross-entropy. (Papers also
call 2(1 − p), the L1 distance of the outputs, MAE: that doubles its row.)

Reference:
    Wang et al., arXiv:1905.11233 (derivative manipulation) and arXiv:1903.12141 (IMAE).
    Zhang and Sabuncu, NeurIPS 2018 (GCE).
"""

import numpy as np
import torch
from torch import Tensor

from studies.weighting.scheme import Scheme, Setup, StepView

GCE_Q = 0.7
"""Exponent q that Zhang and Sabuncu recommend."""


def mae(setup: Setup) -> Scheme:
    """Mean absolute error, ℓ = 1 − p: cross-entropy weighted by p.

    Args:
        setup: Not used.

    Returns:
        The scheme.
    """
    return Scheme(lambda view: view.p_true)


def mse(setup: Setup) -> Scheme:
    """Squared error of the probability, ℓ = (1 − p)²: cross-entropy weighted by 2p(1 − p).

    Args:
        setup: Not used.

    Returns:
        The scheme.
    """
    return Scheme(lambda view: 2 * view.p_true * (1 - view.p_true))


def gce(setup: Setup) -> Scheme:
    """Generalised cross-entropy, ℓ = (1 − p^q)/q with q = 0.7: cross-entropy weighted by p^q.

    Args:
        setup: Not used.

    Returns:
        The scheme.
    """
    return Scheme(lambda view: view.p_true**GCE_Q)


def derivative_manipulation(mode: float, variance: float) -> Scheme:
    """Gradients of a chosen length: ‖∇z_i‖₁ = w_i / ∫₀¹ w dp, with w = exp(β p^λ (1 − p)).

    The direction is that of cross-entropy. The published rule is w/(2(1 − p)) times its gradient,
    0/0 where a label is certain; it is the gradient of (w/2)·(log Σ_{j≠y} exp z_j − z_y) with w
    held fixed, which is exact for any logits, and that is what is trained on. The emphasis is
    normalised over p (the paper's emphasis density), so that its mean is that of cross-entropy,
    ∫₀¹ 2(1 − p) dp = 1, and one learning rate serves all.

    Args:
        mode: λ ≥ 0; samples of p = λ/(λ + 1) get most.
        variance: β; 0 gives every sample the same length.

    Returns:
        The scheme.
    """
    grid = (np.arange(10_000) + 0.5) / 10_000
    area = float(np.exp(variance * grid**mode * (1 - grid)).mean())

    def weights(view: StepView) -> Tensor:
        return dm_emphasis(view.p_true, mode, variance) / (2 * area)

    return Scheme(weights, losses=against_the_rest)


def dm_emphasis(p: Tensor, mode: float, variance: float) -> Tensor:
    """exp(β p^λ (1 − p)).

    Args:
        p: Probability of the given label, shape (N,).
        mode: λ.
        variance: β.

    Returns:
        Shape (N,).
    """
    return (variance * p**mode * (1 - p)).exp()


def against_the_rest(view: StepView) -> Tensor:
    """Loss log Σ_{j≠y} exp z_j − z_y, whose gradient at any logits has L1 norm 2.

    Args:
        view: The step.

    Returns:
        Losses, shape (N,).
    """
    given = view.labels.unsqueeze(1)
    others = view.logits.scatter(1, given, -torch.inf)
    return others.logsumexp(1) - view.logits.gather(1, given).squeeze(1)
