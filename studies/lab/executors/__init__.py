"""Where the runs of a sweep are made: here, in processes, on Ray, or on Slurm.

Ray and submitit are imported only by those who ask for them.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from studies.lab.task import Outcome, Task

ExecutorName = Literal["serial", "process", "ray", "slurm"]


class Executor(Protocol):
    """Makes runs. Every executor makes the same runs, to the same bits."""

    @property
    def workers(self) -> int:
        """How many runs are made at once at most."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Make the runs, and say of each what came of it as soon as it ends."""


@contextlib.contextmanager
def open_executor(
    name: ExecutorName, *, workers: int | None = None, address: str | None = None
) -> Iterator[Executor]:
    """Start an executor, and end it afterwards.

    Args:
        name: `serial`, `process`, `ray`, or `slurm`.
        workers: Runs at once at most; the cores of this machine by default.
        address: Address of a Ray cluster, or `auto` for the one that runs here; by default one is
            started, and ended afterwards.

    Yields:
        The executor.

    Raises:
        ValueError: If an argument does not fit the executor, or its extra is not installed.
    """
    if address is not None and name != "ray":
        raise ValueError(f"An address is that of a Ray cluster; the executor is {name}.")
    if name == "serial" and workers not in {None, 1}:
        raise ValueError(
            f"The serial executor makes one run at a time, but workers is {workers}. "
            "Choose another executor, such as process."
        )
    n = workers or _cores()
    with contextlib.ExitStack() as stack:
        executor: Executor
        if name == "serial":
            from studies.lab.executors.serial import SerialExecutor

            executor = SerialExecutor()
        elif name == "process":
            from studies.lab.executors.process import ProcessExecutor

            executor = ProcessExecutor(n)
        elif name == "ray":
            from studies.lab.executors.ray import open_ray

            executor = stack.enter_context(open_ray(workers, address))
        else:
            from studies.lab.executors.slurm import SlurmExecutor

            executor = SlurmExecutor(n)
        yield executor


def _cores() -> int:
    """Cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(usable(0)) if usable else os.cpu_count() or 1
