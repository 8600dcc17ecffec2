"""TensorBoard: event files, and bands between quantiles under its tab Custom Scalars."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from probes.trackers.feed import BAND, MEDIAN


class TensorBoard:
    """Writes event files; needs the extra `tensorboard`.

    Args:
        folder: Where they go; TensorBoard's `--logdir`, or a folder in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self._writer: Any = SummaryWriter(str(folder))
        self._bands: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
            column, _, quantile = name.rpartition("/")
            if quantile == MEDIAN and column not in self._bands:
                self._bands.add(column)
                self._writer.add_custom_scalars(_layout(self._bands))
        self._writer.flush()

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Write a figure as an image."""
        self._writer.add_figure(name, figure, step, close=False)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _layout(columns: set[str]) -> dict[str, Any]:
    tags = {c: [f"{c}/{MEDIAN}", f"{c}/{BAND[0]}", f"{c}/{BAND[1]}"] for c in sorted(columns)}
    return {"samples": {column: ["Margin", names] for column, names in tags.items()}}
