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

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

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


class Probe:
    """A probe that does nothing; the four probes override the moments that they need."""

    when: Schedule | None = None
    """Schedule of `measure`; None for a probe that never takes a pass of its own."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Columns that another probe must have added to a batch before this one's `finish`."""

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

    def measure(self, model: nn.Module, *, step: int) -> Iterable[Scalar]:
        """Take an own pass over the model.

        Args:
            model: The network, not to be changed.
            step: Optimiser updates so far.

        Returns:
            Values for the `scalars` table.
        """
        return ()

    def describe(self) -> dict[str, object]:
        """What `run.json` says about this probe; JSON-able."""
        return {"probe": type(self).__name__, "when": str(self.when) if self.when else None}
