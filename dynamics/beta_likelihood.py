"""The maximum-likelihood M-step of a beta mixture: weighted log-likelihood, raised by Newton steps.

Of a component with weights γ_i, Σγ = 1 after division, the mean log-likelihood is

    Q(α, β) = (α − 1) Σγ log x + (β − 1) Σγ log(1 − x) − log B(α, β),

concave in (α, β). Steps are in log α and log β, which stay positive that way, and are halved until
Q has not fallen. EM needs no more than a rise, so a few steps an iteration do.

Reference:
    Dempster, Laird and Rubin, JRSS B 39, 1977 (generalised EM).
"""

import numpy as np
from scipy import special

_SPAN = (1e-2, 1e4)
"""Shape parameters stay in it: a component that shrinks to a point would have no likelihood."""

_STEPS = 3
_HALVINGS = 30


def raise_likelihood(
    x: np.ndarray, responsibility: np.ndarray, alpha: np.ndarray, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shape parameters of each component with a larger weighted likelihood than the given ones.

    Args:
        x: Scaled losses in (0, 1), shape (M,).
        responsibility: Weight of each in each component, shape (K, M).
        alpha: Where to start, shape (K,).
        beta: Where to start, shape (K,).

    Returns:
        α and β, each of shape (K,); their likelihood is never below that of the start.
    """
    gamma = responsibility / responsibility.sum(1, keepdims=True)
    mean_logs = np.stack([gamma @ np.log(x), gamma @ np.log1p(-x)], axis=1)
    starts = np.stack([alpha, beta], axis=1)
    found = np.stack([_climb(s, start) for s, start in zip(mean_logs, starts, strict=True)])
    return found[:, 0], found[:, 1]


def _climb(mean_logs: np.ndarray, shape: np.ndarray) -> np.ndarray:
    shape = np.clip(shape, *_SPAN)
    value = _objective(mean_logs, shape)
    for _ in range(_STEPS):
        step = _newton_step(mean_logs, shape)
        for _ in range(_HALVINGS):
            trial = np.clip(shape * np.exp(np.clip(step, -2, 2)), *_SPAN)
            reached = _objective(mean_logs, trial)
            if reached >= value:
                break
            step = step / 2
        else:
            return shape
        shape, value = trial, reached
    return shape


def _objective(mean_logs: np.ndarray, shape: np.ndarray) -> float:
    return float((shape - 1) @ mean_logs - special.betaln(*shape))


def _newton_step(mean_logs: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Newton's step in the logarithms; the gradient's where the Hessian there is not negative."""
    total = shape.sum()
    slope = shape * (mean_logs - special.digamma(shape) + special.digamma(total))
    bend = special.zeta(2, total) - np.diag(
        special.zeta(2, shape)
    )  # ζ(2, x): the trigamma function
    hessian = bend * np.outer(shape, shape) + np.diag(slope)
    if hessian[0, 0] >= 0 or np.linalg.det(hessian) <= 0:
        return slope
    return -np.linalg.solve(hessian, slope)
