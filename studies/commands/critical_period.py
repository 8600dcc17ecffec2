"""`dynamics study critical-period`."""

from typing import Annotated, Any

import typer

from studies.commands.console import explained
from studies.commands.sweep_options import (
    AddressOption,
    DataOption,
    ExecutorChoice,
    ExecutorOption,
    OutOption,
    SeedsOption,
    WorkersOption,
    conclude,
    parse_epochs,
)


def critical_period(
    out: OutOption,
    data: DataOption = "digits",
    network: Annotated[
        list[str], typer.Option(help="mlp, mlp with batch norm, all-cnn; repeatable.")
    ] = ["mlp"],  # noqa: B006 (typer's way)
    rate: Annotated[
        list[str], typer.Option(help="Learning rate: decayed, fixed, reset; repeatable.")
    ] = ["decayed", "fixed", "reset"],  # noqa: B006 (typer's way)
    until: Annotated[
        str, typer.Option(help="Epochs at which blur from the beginning on ends.")
    ] = "5,10,20,40",
    deficit: Annotated[
        list[str],
        typer.Option(
            help="Other deficits until the last of them, decayed arm: flip, permutation, "
            "random classes, noise; repeatable."
        ),
    ] = ["flip", "permutation", "noise"],  # noqa: B006 (typer's way)
    onsets: Annotated[
        str, typer.Option(help="Epochs at which blur in a window begins; empty for none.")
    ] = "0,5,10,20,30",
    window: Annotated[int, typer.Option(help="Epochs of a window.", min=1)] = 10,
    clean_epochs: Annotated[int, typer.Option(help="Clean epochs after any deficit.", min=1)] = 20,
    seeds: SeedsOption = 5,
    n_images: Annotated[int, typer.Option(help="Images trained on.", min=40)] = 1500,
    width: Annotated[int, typer.Option(help="Width of the network.", min=1)] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate in the first epoch.")] = 0.05,
    lr_decay: Annotated[float, typer.Option(help="Factor on the rate after each epoch.")] = 0.93,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="sgd (momentum .9) or adam.")] = "sgd",
    quick: Annotated[bool, typer.Option("--quick", help="A two-minute version on digits.")] = False,
    executor: ExecutorOption = ExecutorChoice.serial,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Whether early deficits harm for good, and whether that is the rate (Achille et al., 2019).

    Trains on blurred images until epoch t0, or in a window, and then on the clean ones for the
    same number of epochs, whatever t0. Arms differ in the learning rate alone: decaying throughout
    as in the paper, fixed, or set back when the deficit ends. Stop it at any time: a second call
    goes on where the first one stopped.
    """
    with explained():
        from studies.critical_period import plan_runs, run_configs
        from studies.lab.executors import open_executor

        quickly = {"seeds": 2, "until": [5, 20], "onsets": [0, 5], "clean_epochs": 10}
        settings: dict[str, Any] = {
            "data": "digits" if quick else data,
            "networks": network,
            "rates": rate,
            "until": parse_epochs("--until", until),
            "others": deficit,
            "onsets": parse_epochs("--onsets", onsets),
            "window": window,
            "seeds": seeds,
            "clean_epochs": clean_epochs,
            "n_images": n_images,
            "width": width,
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "optimizer": optimizer,
        }
        runs = plan_runs(**(settings | (quickly if quick else {})))
        with open_executor(executor.value, workers=workers, address=address) as where:
            result = run_configs(out, runs, executor=where)
        conclude(out, result, _print_table)


def _print_table(study: Any) -> None:
    from dynamics.critical_period import critical_table

    keys = ["network", "deficit", "rate", "onset", "until"]
    means = critical_table(study).groupby(keys, dropna=False)["drop"].agg(["count", "mean", "std"])
    typer.echo(means.round(3).to_string())
