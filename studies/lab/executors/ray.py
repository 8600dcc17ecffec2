"""Runs as tasks of Ray Core: on the cores of this machine, or of a cluster with a shared folder.

Ray takes up a run again when its worker or its node dies; the run then goes on from its checkpoint.
Tune is not used: which runs there are, which have ended and where one goes on stands in the study's
folder already, and a second record of it could only disagree.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from studies.lab.task import RETRIES, Outcome, Task, run_task, write_log

OBJECT_STORE = 256 * 2**20
"""Bytes of the object store of a cluster started here: tasks and outcomes are small."""


@dataclass(frozen=True)
class RayExecutor:
    """Makes runs as Ray tasks of one core each.

    Attributes:
        workers: Tasks at once at most; the cluster may have fewer cores.
    """

    workers: int

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Make the runs.

        Args:
            tasks: The runs.

        Yields:
            What came of each, as it ends.
        """
        ray = _import_ray()
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(run_task)
        waiting = iter(tasks)
        running = {remote.remote(task): task for task in islice(waiting, self.workers)}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(done)
            running |= {remote.remote(task): task for task in islice(waiting, 1)}
            yield _outcome(done, task)


def _outcome(done: Any, task: Task) -> Outcome:
    ray = _import_ray()
    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        write_log(task, f"{type(error).__name__}: {error}\n")
        first_line = str(error).strip().splitlines()[:1]
        return Outcome(task.run, "failed", " ".join([type(error).__name__, *first_line]))


@contextlib.contextmanager
def open_ray(workers: int | None, address: str | None) -> Iterator[RayExecutor]:
    """Connect to a cluster or start one, unless this process is connected already.

    A cluster started here reports no usage, has no dashboard, and asks for a token (Ray's own
    default, which is left alone; its file is where `RAY_AUTH_TOKEN_PATH` says).

    Args:
        workers: Tasks at once at most; as many as the cluster has cores by default.
        address: Address of the cluster, or `auto`; one is started by default.

    Yields:
        The executor.

    Raises:
        ValueError: If Ray is not installed, or there is no cluster at the address.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield RayExecutor(workers or _cluster_cores())
        return
    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        where["object_store_memory"] = OBJECT_STORE
    try:
        ray.init(**where, logging_level="error", log_to_driver=False)
    except ConnectionError as error:
        raise ValueError(
            f"There is no Ray cluster at {address}: {error} Start one with `ray start --head`, or "
            "leave --address away."
        ) from None
    try:
        yield RayExecutor(workers or _cluster_cores())
    finally:
        ray.shutdown()


def _cluster_cores() -> int:
    return max(1, int(_import_ray().cluster_resources().get("CPU", 1)))


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of its old way
    try:
        import ray
    except ImportError:
        raise ValueError(
            "The executor ray needs Ray. Install it: pip install 'training-dynamics[ray]'."
        ) from None
    return ray
