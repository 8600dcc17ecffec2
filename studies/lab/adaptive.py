"""A sweep that goes on until what it measures is known well enough, or its budget is spent."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from tqdm import tqdm

from dynamics import Study, open_study
from studies.lab.allocation import allocate, next_seeds, tabulate_cells
from studies.lab.executors import Executor
from studies.lab.executors.serial import SerialExecutor
from studies.lab.sweep import RunConfig, SweepResult, run_sweep


class SeededConfig(RunConfig, Protocol):
    """Configuration of one run, with the seed that a further run differs in."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    def model_copy(self: "Config", *, update: dict[str, Any]) -> "Config":
        """The configuration with other values in some fields."""


Config = TypeVar("Config", bound=SeededConfig)

_UNTIL = re.compile(r"\s*se\s*<=?\s*([0-9.]+(?:e-?[0-9]+)?)\s*", re.IGNORECASE)


def parse_until(text: str) -> float:
    """Read when a sweep may end.

    Args:
        text: Such as `se<=0.01`.

    Returns:
        The standard error that is small enough.

    Raises:
        ValueError: If the text is of another form, or the number is not above 0.
    """
    match = _UNTIL.fullmatch(text)
    try:
        bound = float(match[1]) if match else 0.0
    except ValueError:
        bound = 0.0
    if bound <= 0:
        raise ValueError(f"--until takes a standard error, as in 'se<=0.01', but got {text!r}.")
    return bound


def run_until(
    out: Path,
    name: str,
    configs: Sequence[Config],
    factors: Sequence[str],
    run_one: Callable[[Path, Config], None],
    *,
    values: Callable[[Study], pd.DataFrame],
    until: float,
    budget: int,
    executor: Executor | None = None,
) -> SweepResult:
    """Run the configurations given, and then further seeds where the standard error is largest.

    Called again, it goes on from what there is. The estimates are the means over seeds of each
    combination of the other factors (see `allocate`); as many runs are chosen at a time as are made
    at once. What is to be small enough is an upper bound on the standard error
    (see `tabulate_cells`); the report's intervals stand by themselves.

    Args:
        out: Folder of the study.
        name: Name of the study.
        configs: The first runs; `seed` is one of their fields.
        factors: Fields that the runs differ in, `seed` among them.
        run_one: Runs one configuration, as `run_sweep` takes it.
        values: What is measured: one row per run that has ended, with the factors and `value`.
        until: Standard error that is small enough.
        budget: Runs in all, those that have been made before and those that fail included.
        executor: Where the runs are made.

    Returns:
        Which runs did not end.
    """
    executor = executor or SerialExecutor()
    names = [factor for factor in factors if factor != "seed"]
    first = {tuple(getattr(c, f) for f in names): c for c in reversed(configs)}
    cells = pd.DataFrame(list(first), columns=names).iloc[::-1].reset_index(drop=True)
    result = run_sweep(out, name, configs, factors, run_one, executor)
    seeds = {key: {c.seed for c in configs if _key(c, names) == key} for key in first}
    while True:
        runs = values(open_study(out))
        table = tabulate_cells(runs, cells)
        for key, of_cell in runs.groupby(names):
            seeds.get(key, set()).update(of_cell["seed"].tolist())
        left = budget - sum(map(len, seeds.values()))
        plan = allocate(table, min(executor.workers, left), until=until)
        _tell(table, names, until, left, len(plan))
        if not plan:
            return result
        more = []
        for row, n in Counter(plan).items():
            key = tuple(cells.loc[row])
            chosen = next_seeds(sorted(seeds[key]), n)
            seeds[key].update(chosen)
            more += [first[key].model_copy(update={"seed": seed}) for seed in chosen]
        again = run_sweep(out, name, more, factors, run_one, executor)
        result = result.joined(again)


def _key(config: SeededConfig, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in names)


def _tell(table: pd.DataFrame, names: Sequence[str], until: float, left: int, planned: int) -> None:
    """Say how far the sweep is, and why it ends."""
    if table["se"].isna().all():
        text = "no standard error can be told yet"
    else:
        worst = table.iloc[int(np.nanargmax(table["se"].to_numpy()))]
        where = ", ".join(f"{name} {worst[name]}" for name in names)
        text = f"standard errors up to {worst['se']:.4g} ({where}), wanted {until:g}"
    if planned:
        text += f"; {planned} more of at most {left} runs"
    elif left <= 0:
        text += "; the budget is spent"
    tqdm.write(f"dynamics: {table['n'].sum()} runs, {text}.", file=sys.stderr)
