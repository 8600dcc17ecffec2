"""A study as a list of run configurations: each is run once, and taken up where it was left.

A run's id is a hash of its configuration. A run that has ended is left as it is, one that was
interrupted goes on from its checkpoint, and a folder that holds another configuration is refused.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from tqdm import tqdm

from dynamics import open_run
from dynamics.traces import SCHEMA_VERSION, TraceError
from dynamics.traces.layout import RUN_FILE, STUDY_FILE, read_json, write_durably
from studies.lab.claim import claimed
from studies.lab.executors import Executor
from studies.lab.executors.serial import SerialExecutor
from studies.lab.task import SWEEP_FOLDER, Outcome, Task


class RunConfig(Protocol):
    """Configuration of one run: a frozen pydantic model with a name for the run's folder."""

    @property
    def run_name(self) -> str:
        """Folder of the run in the study."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """The configuration as plain values."""


Config = TypeVar("Config", bound=RunConfig)  # the syntax without it needs Python 3.12


@dataclass(frozen=True)
class SweepResult:
    """What came of a sweep.

    Attributes:
        n_runs: Runs asked for.
        failures: Those that have not ended, with the reason.
        out: Folder of the study.
    """

    n_runs: int
    failures: Sequence[Outcome]
    out: Path

    def joined(self, other: "SweepResult") -> "SweepResult":
        """This and another part of the same sweep.

        Args:
            other: What came of the other part.

        Returns:
            What came of both.
        """
        failures = [*self.failures, *other.failures]
        return SweepResult(self.n_runs + other.n_runs, failures, self.out)

    def describe(self) -> str:
        """The failures, a line each with the path of its log."""
        lines = [f"{len(self.failures)} of {self.n_runs} runs did not end:"]
        for failure in self.failures:
            log = self.out / SWEEP_FOLDER / f"{failure.run}.log"
            lines.append(f"  {failure.run}: {failure.why}; see {log}")
        return "\n".join(lines)


def run_sweep(
    out: Path,
    name: str,
    configs: Sequence[Config],
    factors: Sequence[str],
    run_one: Callable[[Path, Config], None],
    executor: Executor | None = None,
) -> SweepResult:
    """Run every configuration that has not been run yet.

    Two sweeps of one study may go on at once, on any machines that share its folder: each run is
    made by one of them, and both end when all runs have ended. An error in a run is told at once
    and ends that run only.

    Args:
        out: Folder of the study.
        name: Name of the study.
        configs: Its runs.
        factors: Fields of the configuration that the runs differ in.
        run_one: Runs one configuration into a folder, unless that has been done; a function of a
            module, so that any process can make the run.
        executor: Where the runs are made; one after the other in this process by default.

    Returns:
        Which runs did not end.

    Raises:
        TraceError: If a folder holds a run of another configuration; nothing is run then.
        ValueError: If two configurations have the same name.
    """
    _check_names(configs)
    waiting = [
        Task(out / config.run_name, config, run_one)
        for config in configs
        if begun(out / config.run_name, content_of(name, config)) is not None
    ]
    (out / SWEEP_FOLDER).mkdir(parents=True, exist_ok=True)
    _write_study_file(out, name, configs, factors)
    failures = []
    done = len(configs) - len(waiting)
    with tqdm(total=len(configs), initial=done, desc=name, disable=None, unit="run") as bar:
        for outcome in _make(waiting, executor or SerialExecutor()):
            bar.update()
            if outcome.state == "failed":
                failures.append(outcome)
                bar.write(f"dynamics: {outcome.run} failed: {outcome.why}", file=sys.stderr)
    return SweepResult(len(configs), failures, out)


def _check_names(configs: Sequence[RunConfig]) -> None:
    known: dict[str, RunConfig] = {}
    for config in configs:
        if known.setdefault(config.run_name, config) != config:
            raise ValueError(
                f"Two runs are called {config.run_name}, and differ in something else than what "
                "their name tells. Make a study of each."
            )


def _make(tasks: Sequence[Task], executor: Executor) -> Iterator[Outcome]:
    # What another process is making is waited for, and made here if that process dies.
    while tasks:
        others = set()
        for outcome in executor.run(tasks):
            if outcome.state == "claimed":
                others.add(outcome.run)
            else:
                yield outcome
        tasks = [task for task in tasks if task.run in others]
        for task in tasks:
            with claimed(task.claim, wait=True):
                pass


def run_id(content: Mapping[str, Any]) -> str:
    """Id of a run: the same for the same configuration on every machine.

    Args:
        content: The run's configuration, from `content_of`.

    Returns:
        First 12 hexadecimal digits of the SHA-256 of its canonical JSON: keys sorted, no spaces.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def content_of(name: str, config: BaseModel | RunConfig) -> dict[str, Any]:
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


def _write_study_file(
    out: Path, name: str, configs: Sequence[RunConfig], factors: Sequence[str]
) -> None:
    """Write `study.json`, or add the new levels and runs to the one that is there."""
    path = out / STUDY_FILE
    with claimed(out / SWEEP_FOLDER / "study.lock", wait=True):
        known = read_json(path) if path.exists() else {}
        levels = {
            factor: sorted(
                {*known.get("factors", {}).get(factor, []), *(getattr(c, factor) for c in configs)}
            )
            for factor in factors
        }
        ids = {config.run_name: run_id(content_of(name, config)) for config in configs}
        content = {
            "schema_version": SCHEMA_VERSION,
            "name": name,
            "factors": levels,
            "runs": known.get("runs", {}) | ids,
        }
        if content != known:
            write_durably(out, STUDY_FILE, json.dumps(content, indent=2).encode())
