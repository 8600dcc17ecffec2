"""One run of a sweep as a task that any process can do, and what came of it."""

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dynamics import open_run
from studies.lab.claim import claimed

SWEEP_FOLDER = "sweep"
"""Folder of a study where claims and logs lie, one of each a run."""

RETRIES = 3
"""How often a run whose process died is taken up again; an error of its own would come again."""


@dataclass(frozen=True)
class Task:
    """A run to be made.

    Attributes:
        folder: Folder of the run, in the folder of the study.
        config: Its configuration.
        run_one: Makes it or takes it up; a function of a module, so that it can be sent by name.
    """

    folder: Path
    config: Any
    run_one: Callable[[Path, Any], None]

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def claim(self) -> Path:
        """File that says who is making the run."""
        return self.folder.parent / SWEEP_FOLDER / f"{self.run}.lock"

    @property
    def log(self) -> Path:
        """File for what the run prints and what went wrong."""
        return self.folder.parent / SWEEP_FOLDER / f"{self.run}.log"


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        run: Name of the run.
        state: `finished`; `failed`; or `claimed`, when another process is making the run.
        why: Why it failed, in a line.
        peak_bytes: Most memory that its process has held; 0 where that is not known.
    """

    run: str
    state: Literal["finished", "failed", "claimed"]
    why: str = ""
    peak_bytes: int = 0


def run_task(task: Task) -> Outcome:
    """Make a run, unless another process is making it.

    One thread of torch in every executor: sums over threads depend on their number in the last bit.

    Args:
        task: The run.

    Returns:
        What came of it; an error of the run is written to its log and is no error here.
    """
    task.claim.parent.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    with claimed(task.claim) as is_ours:
        if not is_ours:
            return Outcome(task.run, "claimed")
        torch.set_num_threads(1)
        try:
            task.run_one(task.folder, task.config)
            ended = open_run(task.folder).ended_cleanly
        except Exception as error:
            write_log(task, traceback.format_exc())
            return Outcome(task.run, "failed", f"{type(error).__name__}: {error}")
        finally:
            torch.set_num_threads(threads)
        if not ended:
            why = "it returned before its recorder had come to a clean end"
            write_log(task, f"{why}\n")
            return Outcome(task.run, "failed", why)
        return Outcome(task.run, "finished", peak_bytes=_peak_bytes())


def write_log(task: Task, text: str) -> None:
    """Add to a run's log.

    Args:
        task: The run.
        text: What to add.
    """
    task.log.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("a", encoding="utf-8") as file:
        file.write(text)


def _peak_bytes() -> int:
    if not sys.platform.startswith("linux"):
        return 0
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
