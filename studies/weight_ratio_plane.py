"""The plane of study `weight-ratio`: separable points, where the limit of training is known.

On separable data, gradient descent on the logistic loss turns towards the direction of the largest
margin whatever the weights (Soudry et al., JMLR 2018), only slowly, as 1/log t. A linear model and
an MLP are trained on two clusters by full-batch descent, and their direction is compared with that
of scikit-learn's linear SVM at step numbers that grow by a constant factor.
"""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from probes import Recorder
from studies.lab.executors import Executor
from studies.lab.models import build_mlp
from studies.lab.sweep import SweepResult, begun, content_of, run_sweep
from studies.weight_ratio import FACTORS, NAME, weights_of

GAP = 1.0
"""Half the width of the strip between the clusters that holds no point."""
PER_DECADE = 5
"""Measurements while the number of steps grows tenfold."""


class PlaneConfig(BaseModel):
    """One run on the plane. Defaults: 100 points, full-batch gradient descent without momentum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: Literal["plane"] = "plane"
    arm: Literal["linear", "MLP"]
    log2_ratio: float = Field(ge=-16, le=16)
    seed: int = Field(ge=0)
    n_points: int = Field(default=100, ge=4)
    hidden: int = Field(default=64, ge=1)
    lr: float = Field(default=0.5, gt=0)
    steps: int = Field(default=10_000, ge=1)

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""
        return f"plane-{self.arm}-ratio{self.log2_ratio:g}-seed{self.seed}"


def plan_runs(*, log2_ratios: Sequence[float], seeds: int, steps: int) -> list[PlaneConfig]:
    """The runs of both models at every ratio, seed by seed.

    Args:
        log2_ratios: Logarithms to base 2 of the weight ratio.
        seeds: Number of seeds, from 0.
        steps: Steps of each run.

    Returns:
        The configurations.
    """
    return [
        PlaneConfig(arm=arm, log2_ratio=log2_ratio, seed=seed, steps=steps)
        for seed, arm, log2_ratio in product(range(seeds), ("linear", "MLP"), log2_ratios)
    ]


def run_configs(
    out: Path, configs: Sequence[PlaneConfig], *, executor: Executor | None = None
) -> SweepResult:
    """Run configurations that have not been run yet.

    Args:
        out: Folder of the study.
        configs: The runs.
        executor: Where they are made; one after the other in this process by default.

    Returns:
        Which runs did not end.
    """
    return run_sweep(out, NAME, configs, FACTORS, run_one, executor)


def run_one(out: Path, config: PlaneConfig) -> None:
    """Run one combination, unless it has been run.

    Args:
        out: Folder of the run.
        config: What to run.
    """
    content = content_of(NAME, config)
    started = begun(out, content)
    if started is None:
        return
    points, labels = separable_points(config.n_points, config.seed)
    goal = largest_margin(points, labels)
    x, y = torch.as_tensor(points).float(), torch.as_tensor(labels)
    weights = weights_of(config.log2_ratio)[y]
    torch.manual_seed(config.seed)
    model = build_mlp(2, () if config.arm == "linear" else (config.hidden,), 2)
    optimizer = torch.optim.SGD(model.parameters(), config.lr)
    recorder = Recorder(out, model, [], config=content, resume=started)
    with recorder:
        for step in range(config.steps + 1):
            if _is_measured(step) or step == config.steps:
                _record(recorder, model, x, y, goal)
            if step == config.steps:
                break
            loss = (weights * F.cross_entropy(model(x), y, reduction="none")).mean()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
            optimizer.zero_grad()


def separable_points(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two clusters in the plane that a line through (0, 0) separates, of unlike shapes.

    Args:
        n: Number of points, half of them in each cluster.
        seed: Seed of the draw.

    Returns:
        Points, shape (n, 2), none closer than `GAP` to the vertical axis; labels 0 (left) and 1.
    """
    rng = np.random.default_rng(seed)
    left: list[np.ndarray] = []
    right: list[np.ndarray] = []
    while len(left) < n // 2 or len(right) < n - n // 2:
        draws = rng.normal(size=(n, 2))
        left += [p for p in draws * (0.6, 1.4) + (-1.6, -0.8) if p[0] < -GAP]
        right += [p for p in draws * (1.2, 0.6) + (1.6, 0.8) if p[0] > GAP]
    points = np.array(left[: n // 2] + right[: n - n // 2])
    return points, np.repeat([0, 1], [n // 2, n - n // 2])


def largest_margin(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Direction (slopes and offset) of the largest margin: the limit of gradient descent.

    The offset counts in the norm, as it does for a model whose bias is trained like its weights.

    Args:
        points: Shape (n, 2).
        labels: 0 or 1, shape (n,).

    Returns:
        Unit vector, shape (3,), positive on the side of class 0.
    """
    svm = LinearSVC(C=1e4, loss="hinge", fit_intercept=False, tol=1e-7, max_iter=2_000_000)
    svm.fit(np.column_stack([points, np.ones(len(points))]), labels == 0)
    direction: np.ndarray = svm.coef_[0] / np.linalg.norm(svm.coef_[0])
    return direction


def direction_of(model: nn.Module, points: Tensor) -> np.ndarray:
    """Slopes and offset of a model's log-odds of class 0, averaged over the points.

    The mean of its first-order expansions; of a linear model, its own slopes and offset.

    Args:
        model: From points (n, 2) to two logits.
        points: Shape (n, 2).

    Returns:
        Unit vector, shape (3,).
    """
    x = points.clone().requires_grad_()
    logits = model(x)
    odds = logits[:, 0] - logits[:, 1]
    (slopes,) = torch.autograd.grad(odds.sum(), x)
    offset = (odds.detach() - (slopes * points).sum(1)).mean()
    found: np.ndarray = torch.cat([slopes.mean(0), offset[None]]).double().numpy()
    return found / np.linalg.norm(found)


def _is_measured(step: int) -> bool:
    """Whether the step is the nearest to one of the constant factors."""
    if step < 1:
        return step == 0
    return round(10 ** (round(PER_DECADE * math.log10(step)) / PER_DECADE)) == step


def _record(recorder: Recorder, model: nn.Module, x: Tensor, y: Tensor, goal: np.ndarray) -> None:
    cosine = float(np.clip(direction_of(model, x) @ goal, -1, 1))
    recorder.record("angle", math.degrees(math.acos(cosine)), block="largest margin", n=len(x))
    side = torch.linspace(-4, 4, 50)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        frac = (model(grid).argmax(1) == 0).double().mean().item()
        accuracy = (model(x).argmax(1) == y).double().mean().item()
    recorder.record("predicted_frac", frac, block="plane: class 0", n=len(grid))
    recorder.record("accuracy", accuracy, block="train", n=len(x))
