"""When a probe measures: `every(steps=k)` or `every(epochs=k)`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """Every k-th step or every k-th epoch; make one with `every`."""

    steps: int | None = None
    epochs: int | None = None

    def due_at_step(self, step: int) -> bool:
        """Whether a step that starts after `step` updates is one to measure."""
        return self.steps is not None and step % self.steps == 0

    def due_after_epoch(self, epoch: int) -> bool:
        """Whether to measure after the epoch of that index; −1 stands for before the first."""
        return self.epochs is not None and (epoch + 1) % self.epochs == 0

    def __str__(self) -> str:
        return f"every(steps={self.steps})" if self.steps else f"every(epochs={self.epochs})"


def every(*, steps: int | None = None, epochs: int | None = None) -> Schedule:
    """Schedule a probe.

    Args:
        steps: Measure at steps 0, k, 2k, …, counted in optimiser updates.
        epochs: Measure before the first epoch and after every k-th.

    Returns:
        The schedule.

    Raises:
        ValueError: If not exactly one of the two is given, or it is below 1.
    """
    given = [value for value in (steps, epochs) if value is not None]
    if len(given) != 1 or given[0] < 1:
        raise ValueError(
            f"every() takes one of steps and epochs, at least 1, but got steps={steps}, "
            f"epochs={epochs}. For example every(steps=16) or every(epochs=1)."
        )
    return Schedule(steps=steps, epochs=epochs)
