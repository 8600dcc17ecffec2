"""Iterative noisy cross-validation: which labels a network trained on others predicts."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamics.noise_law import invert_law
from studies.lab.data import TensorData
from studies.lab.train import predict, shuffled_batches
from studies.weighting.scheme import Scheme, Setup
from studies.weighting.small_loss import CoTeaching

ROUNDS = 4
EPOCHS = 10
"""Epochs of each network of the selection; the authors take 50 with augmentation."""


@dataclass(frozen=True)
class Selection:
    """What the rounds have left.

    Attributes:
        selected: Rows whose label was predicted by a network that had not seen it, boolean (N,).
        discarded: Rows left out for their high loss, boolean (N,).
        noise_ratio: ε̂, from the first half's match rate by the law of Chen et al.
    """

    selected: Tensor
    discarded: Tensor
    noise_ratio: float


def expected_noise(noise_ratio: float, *, n_classes: int) -> float:
    """Share of wrong labels among samples whose held-out prediction is their label.

    Args:
        noise_ratio: ε, symmetric, true class excluded.
        n_classes: Number of classes C.

    Returns:
        1 − label precision = ε²/(ε² + (C − 1)(1 − ε)²).
    """
    wrong = noise_ratio**2
    return wrong / (wrong + (n_classes - 1) * (1 - noise_ratio) ** 2)


def incv(setup: Setup) -> Scheme:
    """Select in four rounds, then Co-teaching on the selected samples alone.

    The authors add the remaining candidates late in training; here they stay out, so that the
    effective weight shows the selection itself. ε is estimated, not told.

    Args:
        setup: What is trained on.

    Returns:
        The scheme. The rounds are trained when it is built; what they found is recorded.

    Reference:
        Chen et al., ICML 2019, Algorithms 1 to 3.
    """
    selection = select(setup)
    setup.record("estimated_noise_ratio", selection.noise_ratio, "train")
    remaining = expected_noise(selection.noise_ratio, n_classes=setup.n_classes)
    return Scheme(CoTeaching(setup, remaining, selection.selected).weights)


def select(setup: Setup) -> Selection:
    """Cross-validate in rounds.

    Each round splits the candidates in two halves; a network trained on the selected samples and
    one half selects from the other those whose label it predicts, and discards the
    min(2, ε̂/(1 − ε̂)) · #selected of highest loss.

    Args:
        setup: What is trained on.

    Returns:
        The selection.
    """
    n = len(setup.data)
    rng = np.random.default_rng(setup.recipe.seed)
    selected, discarded = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    ratio: float | None = None
    for turn in range(ROUNDS):
        candidates = rng.permutation(np.flatnonzero(~selected & ~discarded))
        if len(candidates) < 2:
            break
        found = np.zeros(n, dtype=bool)
        for half, other in _both_ways(np.array_split(candidates, 2)):
            trained_on = np.concatenate([np.flatnonzero(selected), half])
            matches, losses = _cross_validate(setup, trained_on, other, seed=turn)
            if ratio is None:
                ratio = invert_law(matches.mean(), kind="symmetric", n_classes=setup.n_classes)
            found[other[matches]] = True
            n_discarded = round(min(2.0, ratio / (1 - ratio)) * int(matches.sum()))
            worst = other[~matches][np.argsort(-losses[~matches])][:n_discarded]
            discarded[worst] = True
        selected |= found
        setup.record("selected_fraction", float(selected.mean()), f"round {turn + 1}")
    as_mask = torch.as_tensor
    return Selection(as_mask(selected), as_mask(discarded), 0.0 if ratio is None else ratio)


def _both_ways(halves: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    first, second = halves
    return [(first, second), (second, first)]


def _cross_validate(
    setup: Setup, trained_on: np.ndarray, held_out: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each held-out label is predicted, and its loss, by a network trained on others."""
    model = setup.build_model(setup.recipe.seed + 2000 + seed)
    _fit(model, setup.data.take(trained_on), setup)
    data = setup.data.take(held_out)
    matches = predict(model, data) == data.labels
    with torch.no_grad():
        losses = F.cross_entropy(model(data.images), data.labels, reduction="none")
    return matches.numpy(), losses.numpy()


def _fit(model: nn.Module, data: TensorData, setup: Setup) -> None:
    recipe = setup.recipe
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum)
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in range(EPOCHS):
        for rows in shuffled_batches(len(data), recipe.batch_size, generator):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.images[rows]), data.labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
