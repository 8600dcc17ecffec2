"""The checkpoint of a run: from it training goes on as if it had never stopped.

It holds the model, the optimiser, the schedule, the generators and the recorder's state, lies in
the run's folder while the run is going on, and is removed at the end. It is saved between two
epochs, but not more often than every `INTERVAL_S` seconds: a network that trains in seconds is
sooner trained again than saved after each epoch.
"""

import contextlib
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from dynamics.traces.layout import write_durably
from probes import Recorder

CHECKPOINT_FILE = "checkpoint.pt"
INTERVAL_S = 20.0
"""Seconds between two checkpoints at least; a killed run repeats no more than this and an epoch."""


class Stateful(Protocol):
    """A model, an optimiser or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """What there is to save."""

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Put it back."""


class Checkpoint:
    """Saves and restores one run.

    Args:
        recorder: An entered recorder, in whose folder the file lies.
        parts: What else has a state, by name.
        generator: Source of the order of the samples; torch's global one is saved too.
    """

    def __init__(
        self, recorder: Recorder, parts: Mapping[str, Stateful], generator: torch.Generator
    ) -> None:
        self.path: Path = recorder.path / CHECKPOINT_FILE
        self._recorder = recorder
        self._parts = parts
        self._generator = generator
        self._saved = time.monotonic()

    def restore(self) -> int:
        """Put back what was saved, if anything was.

        Returns:
            The epoch that training goes on with; 0 without a checkpoint.
        """
        self._remove_leftovers()
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        self._generator.set_state(saved["generator"])
        torch.set_rng_state(saved["torch"])
        self._recorder.load_state_dict(saved["recorder"])
        return int(saved["recorder"]["epoch"]) + 1

    def save_if_due(self) -> None:
        """Save, between two epochs, if the last time is long enough ago."""
        if time.monotonic() - self._saved < INTERVAL_S:
            return
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"generator": self._generator.get_state(), "torch": torch.get_rng_state()}
        state["recorder"] = self._recorder.state_dict()
        file = io.BytesIO()
        torch.save(state, file)
        write_durably(self.path.parent, self.path.name, file.getvalue())
        self._saved = time.monotonic()

    def remove(self) -> None:
        """Training is over."""
        self.path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        for path in self.path.parent.glob(f".tmp-{CHECKPOINT_FILE}-*"):
            with contextlib.suppress(OSError):  # what cannot be removed is never read either
                path.unlink()
