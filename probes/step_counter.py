"""Counts optimiser updates without asking the loop to say so."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class StepCounter:
    """Counts calls of `Optimizer.step` by optimisers that hold a parameter of the model.

    Several optimisers that each step once per iteration count once: the count is the largest among
    them. A step that GradScaler skips is not an update, and is not counted.

    Args:
        model: The network.
        after_step: Called after each counted update.
    """

    def __init__(self, model: nn.Module, after_step: Callable[[], None]) -> None:
        self._model = model
        self._after_step = after_step
        self._counts: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self.start = 0
        self.handle = register_optimizer_step_post_hook(self._count)

    @property
    def step(self) -> int:
        """Updates so far, those before a resume included."""
        return self.start + max((count for count in self._counts.values() if count > 0), default=0)

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer not in self._counts:
            mine = {id(parameter) for parameter in self._model.parameters()}
            theirs = (id(p) for group in optimizer.param_groups for p in group["params"])
            self._counts[optimizer] = 0 if any(p in mine for p in theirs) else -1
        if self._counts[optimizer] >= 0:
            self._counts[optimizer] += 1
            self._after_step()
