"""Several runs at once on this machine, each in a process of its own.

A process that dies (killed, out of memory, a crash in C) is noticed at once, and its run is taken
up again from its checkpoint. The processes die with the driver, however that ends.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess

from studies.lab.executors.memory import available_bytes, has_room, resident_bytes
from studies.lab.task import RETRIES, Outcome, Task, run_task, write_log

ESTIMATE = 2**30
"""Bytes that a run is taken to need until one has ended and says."""

_PRELOADED = [
    "torch._dynamo",
    "backpack.extensions",
    "pandas",
    "pyarrow.parquet",
    "pydantic",
    "scipy.optimize",
    "sklearn.datasets",
]
"""What takes seconds to import is imported once, by the process that the others are forked from."""


@dataclass(frozen=True)
class ProcessExecutor:
    """Makes runs in processes, as many at a time as there are workers and memory for.

    Attributes:
        workers: Processes at most.
    """

    workers: int

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Make the runs.

        Args:
            tasks: The runs.

        Yields:
            What came of each, as it ends.
        """
        multiprocessing.set_forkserver_preload(_PRELOADED)
        waiting = deque((task, 0) for task in tasks)
        running: dict[int, _Worker] = {}
        peak = ESTIMATE
        measured = 0
        try:
            while waiting or running:
                while waiting and len(running) < self.workers and _may_start(running, peak):
                    worker = _Worker(*waiting.popleft())
                    running[worker.process.sentinel] = worker
                for sentinel in wait(list(running), timeout=1.0):  # memory may be free by then
                    worker = running.pop(sentinel)  # type: ignore[arg-type]  # sentinels are ints
                    outcome = worker.outcome()
                    if outcome is None:
                        waiting.appendleft((worker.task, worker.retries + 1))
                        continue
                    measured = max(measured, outcome.peak_bytes)
                    peak = measured or ESTIMATE
                    yield outcome
        finally:
            for worker in running.values():
                worker.process.kill()


def _may_start(running: dict[int, "_Worker"], peak: int) -> bool:
    available = available_bytes()
    if not running or available is None:
        return True
    return has_room(available, peak, [resident_bytes(w.process.pid or 0) for w in running.values()])


class _Worker:
    """A process and the run that it makes."""

    def __init__(self, task: Task, retries: int) -> None:
        self.task = task
        self.retries = retries
        self._pipe, theirs = multiprocessing.get_context("forkserver").Pipe(duplex=False)
        self.process = ForkServerProcess(target=_work, args=(task, theirs), daemon=False)
        self.process.start()
        theirs.close()

    def outcome(self) -> Outcome | None:
        """What came of the run, once the process has ended; None if it is to be taken up again."""
        self.process.join()
        try:
            return self._pipe.recv()
        except EOFError:
            pass
        code = self.process.exitcode or 0
        why = f"its process was killed by signal {-code}" if code < 0 else f"it exited with {code}"
        write_log(self.task, f"{why} (start {self.retries + 1} of {RETRIES + 1})\n")
        if self.retries < RETRIES:
            return None
        return Outcome(self.task.run, "failed", f"{why}, {RETRIES + 1} times")


def _work(task: Task, pipe: Connection) -> None:
    threading.Thread(target=_end_with_driver, daemon=True).start()
    write_log(task, "")
    log = os.open(task.log, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    pipe.send(run_task(task))


def _end_with_driver() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
