"""One run after the other, in this process."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from studies.lab.task import Outcome, Task, run_task


@dataclass(frozen=True)
class SerialExecutor:
    """Makes runs one after the other; needs nothing."""

    workers: int = 1

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Make the runs.

        Args:
            tasks: The runs.

        Yields:
            What came of each, as it ends.
        """
        for task in tasks:
            yield run_task(task)
