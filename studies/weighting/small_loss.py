"""Small-loss selection by two networks that teach each other: Co-teaching."""

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.weighting.scheme import Scheme, Setup, StepView


def co_teaching(setup: Setup) -> Scheme:
    """Each network is trained on the samples of the batch that the *other* finds easiest.

    The share kept falls from 1 to 1 − ε over the warm-up, R(e) = 1 − ε·min((e + 1)/warm-up, 1),
    with ε as told. The recorded network is the first; the second starts from other weights.

    Args:
        setup: What is trained on.

    Returns:
        The scheme.

    Reference:
        Han et al., NeurIPS 2018; as used by Chen et al., ICML 2019.
    """
    return Scheme(CoTeaching(setup, setup.noise_ratio).weights)


class CoTeaching:
    """The second network, and which samples each chooses for the other.

    Args:
        setup: What is trained on.
        noise_ratio: Share ε of samples to leave out in the end.
        allowed: Rows that may be chosen, shape (N_train,), boolean; all by default.
    """

    def __init__(self, setup: Setup, noise_ratio: float, allowed: Tensor | None = None) -> None:
        recipe = setup.recipe
        self.peer = setup.build_model(recipe.seed + 1000)
        self._optimizer = torch.optim.SGD(
            self.peer.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
        )
        everything = torch.ones(len(setup.data), dtype=torch.bool)
        self._allowed = everything if allowed is None else allowed
        self._noise_ratio = noise_ratio
        self._warm_up = max(setup.warm_up, 1)

    def weights(self, view: StepView) -> Tensor:
        """Train the second network on the first one's choice, and return the second one's.

        Args:
            view: The step.

        Returns:
            n/k for each of the k chosen of n samples, 0 for the others.
        """
        keep = 1 - self._noise_ratio * min((view.epoch + 1) / self._warm_up, 1)
        allowed = self._allowed[view.rows]
        theirs = F.cross_entropy(self.peer(view.images), view.labels, reduction="none")
        for_peer = choose_small(view.losses.detach(), keep, allowed)
        for_model = choose_small(theirs.detach(), keep, allowed)
        self._optimizer.zero_grad()
        (for_peer * theirs).mean().backward()  # type: ignore[no-untyped-call]  # untyped in torch
        self._optimizer.step()
        return for_model


def choose_small(losses: Tensor, keep: float, allowed: Tensor) -> Tensor:
    """Weights that keep the samples of smallest loss.

    Args:
        losses: Shape (n,).
        keep: Share to keep of those allowed.
        allowed: Which may be kept, shape (n,), boolean.

    Returns:
        Shape (n,): n/k for each of the k = round(keep · #allowed) chosen, 0 for the others.
    """
    n_kept = round(keep * int(allowed.sum()))
    weights = torch.zeros_like(losses)
    if n_kept:
        chosen = losses.masked_fill(~allowed, torch.inf).argsort()[:n_kept]
        weights[chosen] = len(losses) / n_kept
    return weights
