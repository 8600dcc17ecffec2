"""Where the pieces of a large analysis are worked out: in processes of this machine, or on Ray.

An executor takes a function, what all its calls have in common, and one argument for each call. It
gives the results in the order of the arguments. Every call has one core to itself. Ray is imported
only when it is asked for.
"""

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Literal

Executor = Literal["process", "ray"]
Spread = Callable[[Callable[[Any, Any], Any], Any, Sequence[Any]], Iterator[Any]]
"""`spread(function, common, arguments)` yields `function(common, argument)` for each argument."""

OBJECT_STORE_BYTES = 512 << 20
"""Shared memory of a Ray that we start; results that do not fit go to its temporary folder."""
MAX_RETRIES = 3
"""Times that Ray starts a call anew whose worker has died."""


@contextlib.contextmanager
def open_executor(name: Executor, workers: int | None) -> Iterator[tuple[Spread, int]]:
    """Start an executor, and stop what was started.

    Args:
        name: `process`: processes of this machine. `ray`: the Ray that this process has joined with
            `ray.init`, or the cluster at `RAY_ADDRESS`, both left running; else one of this machine
            that ends with the executor: without dashboard or usage reports, token authentication as
            Ray sets it, and at most 512 MiB of shared memory.
        workers: Calls at a time; by default one for each core, of the cluster if there is one.

    Yields:
        A function that spreads calls, and the number of workers.

    Raises:
        ImportError: If Ray is asked for and not installed.
        ValueError: If there is no executor of that name, or fewer than one worker.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, but is {workers}.")
    if name == "process":
        n = workers or os.cpu_count() or 1
        with _processes(n) as spread:
            yield spread, n
    elif name == "ray":
        with _ray(workers) as n_cores:
            n = workers or n_cores
            yield partial(_on_ray, workers=n), n
    else:
        raise ValueError(
            f'executor is "process", "ray" or None for this process itself, not {name!r}.'
        )


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[Spread]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of our threads
    with ProcessPoolExecutor(workers, context) as pool:

        def spread(
            function: Callable[[Any, Any], Any], common: Any, arguments: Sequence[Any]
        ) -> Iterator[Any]:
            return pool.map(partial(function, common), arguments)

        try:
            yield spread
        except BrokenProcessPool:
            raise RuntimeError(
                "A worker process died, most often for want of memory. Take fewer workers, or "
                'executor="ray", which tries again. In a script, call this below '
                '`if __name__ == "__main__":`, for every worker imports the script.'
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _ray(workers: int | None) -> Iterator[int]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns at each task
    try:
        import ray
    except ImportError:
        raise ImportError(
            'executor="ray" needs Ray, which is not installed here: '
            "pip install 'training-dynamics[ray]'"
        ) from None
    if ray.is_initialized():
        yield _count_cores(ray)
        return
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"address": address or "local", "log_to_driver": False}
    settings |= {"logging_level": "error"}
    if not address:
        settings |= {"num_cpus": workers, "include_dashboard": False}
        settings |= {"object_store_memory": OBJECT_STORE_BYTES}
    ray.init(**settings)
    try:
        yield _count_cores(ray)
    finally:
        ray.shutdown()  # a Ray of our own ends with it; a cluster loses this driver only


def _count_cores(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _on_ray(
    function: Callable[[Any, Any], Any],
    common: Any,
    arguments: Sequence[Any],
    *,
    workers: int,
) -> Iterator[Any]:
    import ray

    task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(function)
    shared, waiting = ray.put(common), deque(enumerate(arguments))
    running: dict[Any, int] = {}
    done: dict[int, Any] = {}
    try:
        for at in range(len(arguments)):
            while at not in done:
                while waiting and len(running) < workers:
                    number, argument = waiting.popleft()
                    running[task.remote(shared, argument)] = number
                ended, _ = ray.wait([*running])
                done |= {running.pop(call): ray.get(call) for call in ended}
            yield done.pop(at)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"Ray could not finish a call, also after {MAX_RETRIES} retries: {error}"
        ) from None
    finally:
        for call in running:
            ray.cancel(call, force=True)
