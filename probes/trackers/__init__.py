"""Dashboards that follow a run while it is recorded: what all of them are, and none of them.

    with Recorder("runs/a", model, probes, trackers=[TensorBoard("logs/a")]) as recorder:

A tracker gets scalars (each with its standard error as a scalar of its own) and, after each epoch,
the quantiles of the samples' losses and norms. It never gets a row of a sample. What it does
cannot stop training: it runs in a thread of its own, and one that fails or hangs is left behind.
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Tracker(Protocol):
    """What a dashboard must be able to do; all calls come from one thread."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Show values.

        Args:
            values: By name, such as `fisher_trace/total`.
            step: Optimiser updates so far.
        """

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Show a figure.

        Args:
            name: Its name.
            figure: A matplotlib figure.
            step: Optimiser updates so far.
        """

    def close(self) -> None:
        """Make everything durable; the last call."""
