"""`dynamics study regularisation-timing`."""

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


def regularisation_timing(
    out: OutOption,
    data: DataOption = "digits",
    regulariser: Annotated[
        list[str], typer.Option(help="weight decay, shift, flip, mixup; repeatable.")
    ] = ["weight decay", "shift"],  # noqa: B006 (typer's way)
    switches: Annotated[
        str, typer.Option(help="Epochs t0 at which it is switched off, or on.")
    ] = "5,10,20",
    onsets: Annotated[
        str, typer.Option(help="Epochs at which a window of it begins; empty for none.")
    ] = "0,10,20",
    window: Annotated[int, typer.Option(help="Epochs of a window.", min=1)] = 10,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.", min=1)] = 40,
    seeds: SeedsOption = 5,
    n_images: Annotated[int, typer.Option(help="Images trained on.", min=40)] = 1000,
    quick: Annotated[bool, typer.Option("--quick", help="A two-minute version on digits.")] = False,
    executor: ExecutorOption = ExecutorChoice.serial,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Whether it matters when one regularises (Golatkar et al., NeurIPS 2019).

    Weight decay, augmentation or mixup is on until epoch t0, off until t0, or on in a window; all
    runs last equally long. The effect is paired by seed with runs that never, and always, have it.
    Stop it at any time: a second call goes on where the first one stopped.
    """
    with explained():
        from studies.lab.executors import open_executor
        from studies.regularisation_timing import plan_runs, run_configs

        quickly = {"seeds": 2, "switches": [5], "onsets": [], "epochs": 15}
        settings: dict[str, Any] = {
            "data": "digits" if quick else data,
            "regularisers": regulariser,
            "switches": parse_epochs("--switches", switches),
            "onsets": parse_epochs("--onsets", onsets),
            "window": window,
            "epochs": epochs,
            "seeds": seeds,
            "n_images": n_images,
        }
        runs = plan_runs(**(settings | (quickly if quick else {})))
        with open_executor(executor.value, workers=workers, address=address) as where:
            result = run_configs(out, runs, executor=where)
        conclude(out, result, _print_table)


def _print_table(study: Any) -> None:
    from dynamics.regularisation_timing import timing_effects, timing_table

    typer.echo(timing_effects(timing_table(study)).round(3).to_string(index=False))
