"""Counts optimiser updates without asking the loop to say so."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class StepCounter:
    """Counts calls of `Optimizer.step` by optimisers that hold a parameter of the model.

    Several optimisers that each step once per iteration count once: an update begins with the first
    step after a batch, or with an optimiser that has stepped in the current one already. A step
    that GradScaler skips is not an update, and is not counted.

    Args:
        model: The network.
        after_step: Called after each counted update.
    """

    def __init__(self, model: nn.Module, after_step: Callable[[], None]) -> None:
        self._model = model
        self._after_step = after_step
        self._ours: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        self.start = 0
        self._steps = 0
        self._stepped: set[int] = set()
        self.handle = register_optimizer_step_post_hook(self._count)

    @property
    def step(self) -> int:
        """Updates so far, those before a resume included."""
        return self.start + self._steps

    def begin_iteration(self) -> None:
        """The next update is a new one, whichever optimiser makes it."""
        self._stepped.clear()

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer not in self._ours:
            mine = {id(parameter) for parameter in self._model.parameters()}
            theirs = (id(p) for group in optimizer.param_groups for p in group["params"])
            self._ours[optimizer] = any(p in mine for p in theirs)
        if not self._ours[optimizer]:
            return
        if not self._stepped or id(optimizer) in self._stepped:
            self._stepped = {id(optimizer)}
            self._steps += 1
            self._after_step()
        else:
            self._stepped.add(id(optimizer))
