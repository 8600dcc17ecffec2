"""A study as a list of run configurations: each is run once, and taken up where it was left."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from tqdm import tqdm

from dynamics import open_run
from dynamics.traces import SCHEMA_VERSION, TraceError
from dynamics.traces.layout import RUN_FILE, STUDY_FILE, read_json, write_durably


class RunConfig(Protocol):
    """Configuration of one run: a frozen pydantic model with a name for the run's folder."""

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The configuration as plain values."""


Config = TypeVar("Config", bound=RunConfig)  # the syntax without it needs Python 3.12


def run_sweep(
    out: Path,
    name: str,
    configs: Sequence[Config],
    factors: Sequence[str],
    run_one: Callable[[Path, Config], None],
) -> None:
    """Run every configuration that has not been run yet.

    Args:
        out: Folder of the study.
        name: Name of the study.
        configs: Its runs.
        factors: Fields of the configuration that the runs differ in.
        run_one: Runs one configuration into a folder, unless that has been done.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write_factors(out, name, configs, factors)
    for config in tqdm(configs, name, disable=None, unit="run"):
        run_one(out / config.run_name, config)


def content_of(name: str, config: BaseModel) -> dict[str, Any]:
    """What `run.json` says of a study's run.

    Args:
        name: Name of the study.
        config: Configuration of the run.

    Returns:
        The configuration with the study's name, as plain values.
    """
    return {"study": name, **config.model_dump(mode="json")}


def begun(out: Path, content: dict[str, Any]) -> bool | None:
    """Whether a run has been begun, in a folder of the study.

    Args:
        out: Folder of the run.
        content: Its configuration, from `content_of`.

    Returns:
        False where there is nothing yet, True for an interrupted run, None for a finished one.

    Raises:
        TraceError: If the folder holds a run of another configuration.
    """
    if not (out / RUN_FILE).exists():
        return False
    run = open_run(out)
    if run.config != content:
        raise TraceError(
            f"{out} holds a run of another configuration. Give the study another --out."
        )
    return None if run.ended_cleanly else True


def _write_factors(
    out: Path, name: str, configs: Sequence[RunConfig], factors: Sequence[str]
) -> None:
    """Write `study.json`, or add the new levels to the one that is there."""
    path = out / STUDY_FILE
    known = read_json(path)["factors"] if path.exists() else {}
    levels = {
        factor: sorted({*known.get(factor, []), *(getattr(c, factor) for c in configs)})
        for factor in factors
    }
    content = {"schema_version": SCHEMA_VERSION, "name": name, "factors": levels}
    write_durably(out, STUDY_FILE, json.dumps(content, indent=2).encode())
