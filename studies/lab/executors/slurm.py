"""Runs as an array of Slurm jobs, through submitit; where there is no Slurm, as local processes.

A job that Slurm preempts or that reaches its time limit is put into the queue again, and its run
goes on from its checkpoint. Partition, account, time and memory are given in the environment, as to
`sbatch` itself: `SBATCH_PARTITION`, `SBATCH_ACCOUNT`, `SBATCH_TIMELIMIT`, `SBATCH_MEM_PER_NODE`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from studies.lab.task import RETRIES, SWEEP_FOLDER, Outcome, Task, run_task, write_log

TIMEOUT_MIN = 240
"""Minutes after which a job is put into the queue again, unless `SBATCH_TIMELIMIT` is set."""


class RequeuedRun:
    """What a job does: a run, and the same run again after the signal that ends the job."""

    def __call__(self, task: Task) -> Outcome:
        """Make the run or take it up."""
        return run_task(task)

    def checkpoint(self, task: Task) -> Any:
        """What to put into the queue again; submitit calls this on its signal.

        Args:
            task: The run.

        Returns:
            The same call; the run's own checkpoint says where it goes on.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


@dataclass(frozen=True)
class SlurmExecutor:
    """Makes runs as jobs of one core each.

    Attributes:
        workers: Jobs at once at most.
    """

    workers: int

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Make the runs.

        Args:
            tasks: The runs.

        Yields:
            What came of each, as it ends.

        Raises:
            ValueError: If submitit is not installed.
        """
        if not tasks:
            return
        executor = _open_submitit(tasks[0], self.workers)
        # Slurm has a queue; the processes that stand in for it would all start at once.
        size = len(tasks) if executor.cluster == "slurm" else self.workers
        for first in range(0, len(tasks), size):
            yield from _run_array(executor, tasks[first : first + size])


def _open_submitit(task: Task, workers: int) -> Any:
    try:
        import submitit
    except ImportError:
        raise ValueError(
            "The executor slurm needs submitit. Install it: pip install 'training-dynamics[slurm]'."
        ) from None
    folder = task.folder.parent.resolve() / SWEEP_FOLDER / "slurm"
    executor = submitit.AutoExecutor(folder)
    executor.update_parameters(
        name="dynamics",
        timeout_min=TIMEOUT_MIN,
        cpus_per_task=1,
        slurm_array_parallelism=workers,
        slurm_additional_parameters={"requeue": True},
    )
    return executor


def _run_array(executor: Any, tasks: Sequence[Task]) -> Iterator[Outcome]:
    # One array, then another of those whose job died, as often as is allowed.
    from submitit.helpers import as_completed

    for start in range(RETRIES + 1):
        jobs = executor.map_array(RequeuedRun(), tasks)
        made = {job.job_id: task for job, task in zip(jobs, tasks, strict=True)}
        poll_s = 10.0 if executor.cluster == "slurm" else 0.2
        dead = []
        for job in as_completed(jobs, poll_frequency=poll_s):
            task = made[job.job_id]
            outcome = _outcome(job, task, start)
            if outcome is not None:
                yield outcome
            else:
                dead.append(task)
        if not dead:
            return
        tasks = dead
    for task in tasks:
        yield Outcome(task.run, "failed", f"its job died {RETRIES + 1} times")


def _outcome(job: Any, task: Task, start: int) -> Outcome | None:
    """What came of a job; None if it died."""
    from submitit.core.utils import UncompletedJobError

    try:
        return job.result()
    except UncompletedJobError as error:
        write_log(task, f"{error} (start {start + 1} of {RETRIES + 1})\n")
        return None
