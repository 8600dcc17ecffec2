"""Importance sampling by the last layer's gradient, switched on where it is worth its price."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from studies.weighting.scheme import Scheme, Setup, StepView

PRESAMPLE = 3
"""Samples scored for each sample trained on."""
_MEMORY = 0.9


def importance(setup: Setup) -> Scheme:
    """Of B = 3b samples scored, train on b drawn in proportion to their gradient.

    Scores are Ĝ_i = ‖softmax(z_i) − e_y‖₂, probabilities p_i = Ĝ_i/ΣĜ, weights (1/B)/p_i, so that
    the gradient stays unbiased. Sampling is on while a running mean (0.9) of
    τ = √(1 + CV²(Ĝ)) is above (B + 3b)/(3b) = 2, where it saves more variance than b more samples
    would; else the first b of the B are trained on and scoring costs a forward pass all the same.
    An epoch has as many steps as in plain training; samples are not seen once each.

    Args:
        setup: What is trained on.

    Returns:
        The scheme.

    Reference:
        Katharopoulos and Fleuret, ICML 2018, Sec. 3.3 and Algorithm 1.
    """
    state = Importance(setup)
    return Scheme(state.weights, batches=state.batches, has_repeats=True)


class Importance:
    """The running τ, and the weights of the batch drawn last.

    Args:
        setup: What is trained on.
    """

    def __init__(self, setup: Setup) -> None:
        self._data = setup.data
        self._batch_size = min(setup.recipe.batch_size, len(setup.data))
        self._generator = torch.Generator().manual_seed(setup.recipe.seed)
        self._record = setup.record
        self._weights = torch.ones(0)
        self.tau = 0.0

    def batches(self, model: nn.Module) -> Iterator[Tensor]:
        """Draw an epoch's batches, each by the network as it is then.

        Args:
            model: The network.

        Yields:
            Rows of a batch.
        """
        n, b = len(self._data), self._batch_size
        n_scored = min(PRESAMPLE * b, n)
        n_on, n_steps = 0, -(-n // b)
        for _ in range(n_steps):
            scored = torch.randperm(n, generator=self._generator)[:n_scored]
            scores = self._score(model, scored)
            self.tau = _MEMORY * self.tau + (1 - _MEMORY) * variance_gain(scores)
            if self.tau > break_even(n_scored, b):
                places, self._weights = draw(scores, b, self._generator)
                n_on += 1
            else:
                places, self._weights = torch.arange(b), torch.ones(b)
            yield scored[places]
        self._record("tau", self.tau, "total")
        self._record("sampling_fraction", n_on / n_steps, "total")

    def weights(self, view: StepView) -> Tensor:
        """(1/B)/p_i of the batch drawn last.

        Args:
            view: The step.

        Returns:
            Weights, shape (N,).
        """
        return self._weights

    @torch.no_grad()
    def _score(self, model: nn.Module, rows: Tensor) -> Tensor:
        probabilities = model(self._data.images[rows]).softmax(1)
        given = torch.nn.functional.one_hot(self._data.labels[rows], probabilities.shape[1])
        return (probabilities - given).norm(dim=1)


def draw(scores: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw with replacement in proportion to the scores.

    Args:
        scores: Shape (B,), positive.
        n: Number b of draws.
        generator: Source of the draws.

    Returns:
        Places in `scores`, shape (b,), and weights (1/B)/p_i, shape (b,): their mean over draws
        times anything is unbiased for its mean over the B.
    """
    scores = scores.clamp(min=1e-12)
    p = scores / scores.sum()
    places = torch.multinomial(p, n, replacement=True, generator=generator)
    return places, 1 / (len(scores) * p[places])


def variance_gain(scores: Tensor) -> float:
    """τ = √(B Σ g²) with g = scores/Σ scores, which is √(1 + CV²).

    Args:
        scores: Shape (B,).

    Returns:
        τ, from 1 to √B; 1 where all scores are 0.
    """
    total = scores.double().sum()
    if total == 0:
        return 1.0
    return float((len(scores) * (scores.double() / total).square().sum()).sqrt())


def break_even(n_scored: int, n_trained: int) -> float:
    """τ from which scoring B to train on b pays: (B + 3b)/(3b), a backward pass costing 2 forward.

    Args:
        n_scored: B.
        n_trained: b.

    Returns:
        The threshold.
    """
    return (n_scored + 3 * n_trained) / (3 * n_trained)
