"""`dynamics study fisher-trace`."""

from typing import Annotated, Any

import typer

from studies.commands.console import explained
from studies.commands.sweep_options import (
    AddressOption,
    ConfigOption,
    DataOption,
    ExecutorChoice,
    ExecutorOption,
    OutOption,
    SeedsOption,
    WorkersOption,
    conclude,
)


def fisher_trace(
    out: OutOption,
    data: DataOption = "digits",
    setting: Annotated[
        list[str], typer.Option(help="What to change against the reference; repeatable, or all.")
    ] = ["reference"],  # noqa: B006 (typer's way)
    seeds: SeedsOption = 5,
    n_images: Annotated[int, typer.Option(help="Images trained on.", min=40)] = 6000,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.", min=1)] = 40,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two minutes on digits: two seeds of 15 epochs.")
    ] = False,
    config: ConfigOption = None,
    executor: ExecutorOption = ExecutorChoice.serial,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Whether the Fisher trace rises to a peak and falls (Achille et al., ICLR 2019).

    Trains a small CNN on clean labels until it fits them, and records the trace of the model's
    Fisher and of the empirical one after every epoch. Stop it at any time: a second call goes on
    where the first one stopped.
    """
    with explained():
        from studies.fisher_trace import FisherTraceConfig, plan_runs, run_configs
        from studies.lab.executors import open_executor
        from studies.lab.study_file import read_study_file

        if quick:
            data, seeds, n_images, epochs = "digits", 2, 1000, 15
        runs = (
            read_study_file(config, FisherTraceConfig)
            if config
            else plan_runs(
                data=data, settings=setting, seeds=seeds, n_images=n_images, epochs=epochs
            )
        )
        with open_executor(executor.value, workers=workers, address=address) as where:
            result = run_configs(out, runs, executor=where)
        conclude(out, result, _print_table)


def _print_table(study: Any) -> None:
    from dynamics.plasticity import plasticity_table, summarise_plasticity

    columns = ["setting", "n", "n_rises_and_falls", "n_has_interior_peak", "n_falls"]
    columns += ["peak_epoch", "last_over_peak", "empirical_last_over_peak", "test_accuracy"]
    table = summarise_plasticity(plasticity_table(study))[columns]
    typer.echo(table.round(3).to_string(index=False))
