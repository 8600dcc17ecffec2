"""What a probe is: a few moments of training at which the recorder calls it.

    attach ─ before training, with the model
      begin_step ─ before each forward pass
      observe ─ the batch's outputs are there
      begin_backward ─ a backward pass has reached the batch's losses
      finish ─ its backward pass is over
    pause, measure ─ on the probe's schedule, for an own pass over data of its own
    detach ─ after training, and after an error

Ride-along probes (`SampleLoss`, `GradNorm`) use `observe` and `finish` to add columns to the batch;
extra-pass probes (`FisherTrace`, `WeightEffect`) return values from `measure`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, ClassVar

from torch import Tensor, nn

from probes.batch import ObservedBatch
from probes.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value for the `scalars` table; fields as its columns."""

    name: str
    value: float
    block: str = "total"
    stderr: float | None = None
    n: int | None = None
    estimator: str | None = None
    label_source: str | None = None
    mode: str | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """One value for each entry of each parameter, kept as a file of the run."""

    name: str
    values: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a row of `events`; fields as its columns."""

    name: str
    subject: str | None = None
    detail: str | None = None


Finding = Scalar | Vector | Event
"""What a probe's own pass may return."""


def scalar_columns(scalars: Sequence[Scalar]) -> dict[str, list[Any]]:
    """Scalars as columns of the `scalars` table; values that are not finite become missing."""
    columns = {
        field.name: [getattr(scalar, field.name) for scalar in scalars] for field in fields(Scalar)
    }
    for name in ("value", "stderr"):
        columns[name] = [v if v is not None and isfinite(v) else None for v in columns[name]]
    return columns


class Probe:
    """A probe that does nothing; the four probes override the moments that they need."""

    when: Schedule | None = None
    """Schedule of `measure`; None for a probe that never takes a pass of its own."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Columns that another probe must have added to a batch before this one's `finish`."""

    writes: ClassVar[tuple[str, ...]] = ()
    """Columns of `samples` that this probe adds to a batch."""

    needs_whole_model: ClassVar[bool] = False
    """Whether it cannot do with the shards that FSDP leaves in each process."""

    def attach(self, model: nn.Module) -> None:
        """Prepare for the model, or refuse it.

        Args:
            model: The network that is going to be trained.
        """

    def detach(self) -> None:
        """Remove every hook and attribute again."""

    def begin_step(self, step: int) -> None:
        """Called before each forward pass.

        Args:
            step: Optimiser updates so far.
        """

    def pause(self) -> None:
        """Ignore forward passes until the next `begin_step`: another probe takes its own pass."""

    def begin_backward(self, batch: ObservedBatch) -> None:
        """Called when a backward pass reaches the batch's losses, before it reaches a layer.

        Args:
            batch: The batch.
        """

    def observe(self, batch: ObservedBatch) -> None:
        """Add columns that follow from the batch's outputs.

        Args:
            batch: The batch, before its backward pass.
        """

    def finish(self, batch: ObservedBatch) -> None:
        """Add columns that follow from the batch's backward pass.

        Args:
            batch: The batch, after its backward pass; `factor` is None if there was none.
        """

    def measure(self, model: nn.Module, *, step: int, epoch: int) -> Iterable[Finding]:
        """Take an own pass over the model.

        Args:
            model: The network, not to be changed.
            step: Optimiser updates so far.
            epoch: Epoch in progress or just ended; −1 before the first.

        Returns:
            What was found.
        """
        return ()

    def describe(self) -> dict[str, object]:
        """What `run.json` says about this probe; JSON-able."""
        return {"probe": type(self).__name__, "when": str(self.when) if self.when else None}


def order_probes(probes: Sequence[Probe]) -> list[Probe]:
    """Put probes that need another's columns behind it.

    Args:
        probes: The probes of a recorder.

    Returns:
        The same probes.

    Raises:
        ValueError: If two of them write the same column.
    """
    writers = Counter(column for probe in probes for column in probe.writes)
    twice = [column for column, n in writers.items() if n > 1]
    if twice:
        raise ValueError(f"Two probes write `{twice[0]}`; a recorder takes one of each such kind.")
    return sorted(probes, key=lambda probe: len(probe.needs))
