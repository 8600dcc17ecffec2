"""`dynamics study example-weighting`."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from studies.commands.console import explained, fail
from studies.commands.sweep_options import (
    AddressOption,
    DataOption,
    ExecutorChoice,
    ExecutorOption,
    OutOption,
    SeedsOption,
    WorkersOption,
    conclude,
)


class WeightingTask(StrEnum):
    """What is made hard about the data."""

    noise = "noise"
    imbalance = "imbalance"


def example_weighting(
    out: OutOption,
    data: DataOption = "digits",
    task: Annotated[
        WeightingTask,
        typer.Option(help="noise: all classes, wrong labels. imbalance: 4 against 9, 4 rare."),
    ] = WeightingTask.noise,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Noise ratios from 0 to below 1 (0.4), or how many 9s there are for each 4 "
            "(10,100,200); separated by commas."
        ),
    ] = None,
    scheme: Annotated[
        list[str], typer.Option(help="Schemes; repeatable, or all. An unknown one lists them.")
    ] = ["all"],  # noqa: B006 (typer's way)
    seeds: SeedsOption = 5,
    n_images: Annotated[int, typer.Option(help="Images trained on, at most.", min=40)] = 4000,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.", min=1)] = 30,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Two minutes on digits: both tasks, some schemes."),
    ] = False,
    executor: ExecutorOption = ExecutorChoice.serial,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """What weighting schemes do to the pull of clean, noisy and rare samples, and when.

    Trains a network under each scheme (class ratio, random, robust losses, derivative
    manipulation, SELFIE, bootstrapping, Co-teaching, INCV, importance sampling, learning to
    reweight, data weighting) beside plain training, on the same samples with the same seeds, and
    compares them on one page. Both tasks may go into one folder. Stop it at any time: a second
    call goes on where the first one stopped.
    """
    with explained():
        from studies.example_weighting import plan_quick_runs, plan_runs, run_configs
        from studies.lab.executors import open_executor

        named = levels or {"noise": "0.4", "imbalance": "10,100,200"}[task.value]
        runs = (
            plan_quick_runs()
            if quick
            else plan_runs(
                data=data,
                task=task.value,
                levels=_parse_levels(named),
                schemes=scheme,
                seeds=range(seeds),
                n_images=n_images,
                epochs=epochs,
            )
        )
        with open_executor(executor.value, workers=workers, address=address) as where:
            result = run_configs(out, runs, executor=where)
        conclude(out, result, _print_table)


def _parse_levels(text: str) -> list[float]:
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        fail(f"--levels takes numbers separated by commas, such as 10,100,200, but got {text!r}.")


def _print_table(study: Any) -> None:
    from dynamics.weighting import summarise_schemes, weighting_table

    columns = ["task", "level", "scheme", "n_seeds", "best", "final", "drop", "cost"]
    table = summarise_schemes(weighting_table(study))[columns]
    typer.echo(table.round(3).to_string(index=False))
