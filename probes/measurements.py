"""Runs the probes that take passes of their own, when their schedules say so."""

from collections.abc import Sequence

from torch import nn

from probes.budget import Budget
from probes.probe import Finding, Probe


class Measurements:
    """Which probes are due, and their values.

    Args:
        probes: All probes of a recorder.
        model: The network.
        budget: Times them, and says which due ones are left out.
    """

    def __init__(self, probes: Sequence[Probe], model: nn.Module, budget: Budget) -> None:
        self._probes = probes
        self._model = model
        self._budget = budget
        self._taken: set[tuple[Probe, int]] = set()

    def due_after_epoch(self, epoch: int) -> list[Probe]:
        """Probes to run after an epoch; −1 stands for before the first."""
        return [p for p in self._probes if p.when is not None and p.when.due_after_epoch(epoch)]

    def due_at_step(self, step: int, counts_epochs: bool) -> list[Probe]:
        """Probes to run before the batch of a step, once a step.

        Args:
            step: Optimiser updates so far.
            counts_epochs: Whether the loop runs over `recorder.epochs`.

        Returns:
            The probes.

        Raises:
            ValueError: If a probe is scheduled by epochs that nobody counts.
        """
        due = []
        for probe in self._probes:
            if probe.when is None:
                continue
            if probe.when.epochs is not None and not counts_epochs:
                raise ValueError(
                    f"{type(probe).__name__} is scheduled by epochs, {probe.when}, but the loop "
                    "does not run over `recorder.epochs(...)`. Use that, or schedule the probe "
                    "with every(steps=k)."
                )
            if probe.when.due_at_step(step) and (probe, step) not in self._taken:
                due.append(probe)
        return due

    def take(self, due: Sequence[Probe], step: int, epoch: int) -> list[Finding]:
        """Run probes; the others look away meanwhile.

        Args:
            due: The probes to run.
            step: Optimiser updates so far.
            epoch: Epoch in progress or just ended.

        Returns:
            What they found.
        """
        for probe in self._probes:
            probe.pause()
        self._taken = {(probe, step) for probe in due}
        found: list[Finding] = []
        for probe in self._budget.choose(due):
            with self._budget.measuring(probe):
                found += probe.measure(self._model, step=step, epoch=epoch)
        return found + self._budget.findings()
