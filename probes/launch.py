"""The processes that train together: which one this is, and the one run that all of them record."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dynamics.traces import TraceError, create_run, open_run
from dynamics.traces.layout import RUN_FILE
from dynamics.traces.resume import check_folder


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of all processes of a run.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        run_id: Identity of the run, kept through resumes.
        name: Drawn for this start; the same in all its processes.
    """

    rank: int
    world_size: int
    run_id: str
    name: str


def place_in_group() -> tuple[int, int]:
    """Rank and world size: those of `torch.distributed` once it is initialised, else (0, 1)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def bare(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of `torch.compile` and `DistributedDataParallel`."""
    while True:
        inner = getattr(model, "_orig_mod", model)
        inner = inner.module if isinstance(inner, DistributedDataParallel) else inner
        if inner is model:
            return model
        model = inner


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP, or tensor parallelism, has left only a part of some parameter here."""
    names = {type(parameter).__name__ for parameter in model.parameters()}
    return not names.isdisjoint({"DTensor", "FlatParameter"}) or any(
        "FSDP" in cls.__name__ for module in model.modules() for cls in type(module).__mro__
    )


def open_launch(path: Path, *, resume: bool, describe: Callable[[], Mapping[str, Any]]) -> Launch:
    """Make the run's folder, or find the one to resume, and tell all processes.

    Every process must call this; it is the only time that they wait for each other. Rank 0 does the
    work.

    Args:
        path: Folder of the run.
        resume: Whether to take up a run that is there.
        describe: What a new run's `run.json` holds beside its identity.

    Returns:
        What the processes agree on.

    Raises:
        TraceError: In every process, if the folder cannot be used.
    """
    rank, world_size = place_in_group()
    told: list[tuple[str, str, str | None]] = [("", uuid.uuid4().hex, None)]
    failure: Exception | None = None
    if rank == 0:
        try:
            told = [(_open_folder(path, resume, describe), told[0][1], None)]
        except Exception as error:
            failure, told = error, [("", "", f"{type(error).__name__}: {error}")]
    if world_size > 1:
        dist.broadcast_object_list(told, src=0)
    if failure is not None:
        raise failure
    run_id, name, reason = told[0]
    if reason is not None:
        raise TraceError(f"Rank 0 could not open {path}: {reason}")
    if not (path / RUN_FILE).exists():
        raise TraceError(
            f"Rank {rank} does not see {path / RUN_FILE}, which rank 0 has written. All processes "
            "of a run must write to one shared folder."
        )
    return Launch(rank, world_size, run_id, name)


def _open_folder(path: Path, resume: bool, describe: Callable[[], Mapping[str, Any]]) -> str:
    check_folder(path, resume=resume)
    if resume:
        return str(open_run(path).info["run_id"])
    (path / RUN_FILE).unlink(missing_ok=True)  # of a run that has recorded nothing
    run_id = uuid.uuid4().hex
    create_run(path, {**describe(), "run_id": run_id})
    return run_id
