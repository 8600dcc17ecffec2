"""Weights & Biases: a run of one's own, or the one that the script has begun."""

from collections.abc import Mapping
from typing import Any

import wandb


class WandB:
    """Logs to Weights & Biases, online or with `mode="offline"`; needs the extra `wandb`.

    Its own axis `trainer/step` holds the step, as W&B's counter must not go back, and does when a
    script logs too.

    Args:
        run: The script's run, from `wandb.init`, which stays open; None begins one and ends it.
        options: Options of `wandb.init` for the latter.
    """

    def __init__(self, run: Any = None, **options: Any) -> None:
        self._is_own = run is None
        self._run = wandb.init(**options) if run is None else run
        self._run.define_metric("trainer/step")
        self._defined: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars."""
        for name in values.keys() - self._defined:
            self._run.define_metric(name, step_metric="trainer/step")
            self._defined.add(name)
        self._run.log({**values, "trainer/step": step})

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Log a figure as an image."""
        self._run.log({name: wandb.Image(figure), "trainer/step": step})

    def close(self) -> None:
        """End the run, if it is our own."""
        if self._is_own:
            self._run.finish()
