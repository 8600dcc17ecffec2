"""`dynamics study weight-ratio`."""

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


def weight_ratio(
    out: OutOption,
    data: DataOption = "digits",
    pair: Annotated[
        str, typer.Option(help="The two classes; 2,4 is pullover and coat in Fashion-MNIST.")
    ] = "3,8",
    arm: Annotated[
        list[str],
        typer.Option(
            help="none, L2 0.001, L2 0.01, dropout, batch norm, subsampling, or all; repeatable. "
            "Early stopping is read off the runs of none."
        ),
    ] = ["none", "L2 0.01", "dropout", "subsampling"],  # noqa: B006 (typer's way)
    ratios: Annotated[
        str, typer.Option(help="Weight ratios, first class to second, separated by commas.")
    ] = "1:256,1:16,1:1,16:1,256:1",
    seeds: SeedsOption = 3,
    n_images: Annotated[int, typer.Option(help="Images trained on, half a class.", min=20)] = 2000,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.", min=1)] = 150,
    width: Annotated[int, typer.Option(help="Channels of the first convolution.", min=1)] = 32,
    plane: Annotated[
        bool, typer.Option(help="Also a separable plane, where the limit is known.")
    ] = True,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Two minutes on digits: 2 arms, 1:16 to 16:1, 2 seeds."),
    ] = False,
    executor: ExecutorOption = ExecutorChoice.serial,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Whether importance weights still matter once a network fits its data (Byrd & Lipton, 2019).

    Trains a small CNN on two classes whose weights are in a ratio, at a fixed rate, and measures
    after every epoch which class it assigns in-class test images, other images and noise to. Stop
    it at any time: a second call goes on where the first one stopped.
    """
    with explained():
        from studies import weight_ratio_plane as separable
        from studies.lab.executors import open_executor
        from studies.weight_ratio import plan_runs, run_configs

        if quick:
            data, pair, arm, ratios = "digits", "3,8", ["none", "L2 0.01"], "1:16,1:1,16:1"
            seeds, epochs, width = 2, 60, 8
        levels, steps = _parse_ratios(ratios), 1_000 if quick else 10_000
        runs = plan_runs(
            data=data,
            pair=_parse_pair(pair),
            arms=arm,
            log2_ratios=levels,
            seeds=seeds,
            n_images=n_images,
            epochs=epochs,
            width=width,
        )
        with open_executor(executor.value, workers=workers, address=address) as where:
            result = run_configs(out, runs, executor=where)
            if plane:
                points = separable.plan_runs(log2_ratios=levels, seeds=seeds, steps=steps)
                result = result.joined(separable.run_configs(out, points, executor=where))
        conclude(out, result, _print_table)


def _parse_pair(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        fail(f"--pair takes two classes, such as 2,4, but got {text!r}.")
    return int(parts[0]), int(parts[1])


def _parse_ratios(text: str) -> list[float]:
    """Logarithms to base 2 of ratios such as 16:1."""
    from math import isfinite, log2

    try:
        sides = [[float(side) for side in part.split(":")] for part in text.split(",")]
        found = sorted({log2(first / second) for first, second in sides})
    except (ValueError, ZeroDivisionError):
        found = []
    if not found or not all(isfinite(x) and abs(x) <= 16 for x in found):
        fail(
            "--ratios takes weight ratios up to 65536:1, separated by commas, such as "
            f"1:16,1:1,16:1, but got {text!r}."
        )
    return found


def _print_table(study: Any) -> None:
    from dynamics.weight_ratio import predicted_fractions

    table = predicted_fractions(study)
    last = table[table["epoch"] == table.groupby("run")["epoch"].transform("max")]
    means = last.pivot_table("frac", ["set", "arm"], "log2_ratio")
    typer.echo(means.round(3).to_string())
