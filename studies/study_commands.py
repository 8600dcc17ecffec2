"""`dynamics study NAME`: one command for each controlled experiment; each ends with its report."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from studies.console import explained, fail
from studies.sweep_options import (
    AddressOption,
    ConfigOption,
    ExecutorChoice,
    ExecutorOption,
    WorkersOption,
    conclude,
)


class Noise(StrEnum):
    """Kinds of label noise."""

    symmetric = "symmetric"
    asymmetric = "asymmetric"


def register(app: typer.Typer) -> None:
    """Add the command `study` to the command line.

    Args:
        app: The command `dynamics`.
    """
    study_app = typer.Typer(help="Run a controlled experiment and report it.", no_args_is_help=True)
    study_app.command("noise-ratio")(study_noise_ratio)
    study_app.command("fisher-trace")(study_fisher_trace)
    app.add_typer(study_app, name="study")


def study_noise_ratio(
    out: Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")],
    data: Annotated[
        str, typer.Option(help="digits, a folder of idx .gz files, or an .npz.")
    ] = "digits",
    noise: Annotated[list[Noise], typer.Option(help="Kinds of noise; repeatable.")] = [  # noqa: B006 (typer's way)
        Noise.symmetric,
        Noise.asymmetric,
    ],
    ratios: Annotated[
        str, typer.Option(help="Noise ratios, separated by commas.")
    ] = "0,0.2,0.4,0.6,0.8",
    seeds: Annotated[int, typer.Option(help="Runs per combination.", min=1)] = 3,
    n_images: Annotated[int, typer.Option(help="Images used; half are trained on.", min=40)] = 8000,
    config: ConfigOption = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Add seeds where the standard error of the held-out accuracy is largest, until it "
            "is small enough everywhere: se<=0.01."
        ),
    ] = None,
    budget: Annotated[
        int, typer.Option(help="Runs in all, at most, where --until adds seeds.", min=1)
    ] = 100,
    executor: ExecutorOption = ExecutorChoice.serial,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """What label noise costs a network that memorises (Chen et al., ICML 2019).

    Trains an MLP on one half of the noisy data until it is memorised, measures on the other half,
    and compares the law P(ε) with a free quadratic and a straight line. Stop it at any time: a
    second call goes on where the first one stopped.
    """
    with explained():
        from studies.lab.adaptive import parse_until
        from studies.lab.executors import open_executor
        from studies.lab.study_file import read_study_file
        from studies.noise_ratio import NoiseRatioConfig, plan_runs, run_configs

        error = None if until is None else parse_until(until)
        runs = (
            read_study_file(config, NoiseRatioConfig)
            if config
            else plan_runs(
                data=data,
                noises=[kind.value for kind in noise],
                ratios=_parse_ratios(ratios),
                seeds=seeds,
                n_images=n_images,
            )
        )
        with open_executor(executor.value, workers=workers, address=address) as where:
            result = run_configs(out, runs, executor=where, until=error, budget=budget)
        conclude(out, result, _print_noise_table)


def study_fisher_trace(
    out: Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")],
    data: Annotated[
        str, typer.Option(help="digits, a folder of idx .gz files, or an .npz.")
    ] = "digits",
    setting: Annotated[
        list[str], typer.Option(help="What to change against the reference; repeatable, or all.")
    ] = ["reference"],  # noqa: B006 (typer's way)
    seeds: Annotated[int, typer.Option(help="Runs per setting.", min=1)] = 5,
    n_images: Annotated[int, typer.Option(help="Images trained on.", min=40)] = 6000,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.", min=1)] = 40,
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

        runs = (
            read_study_file(config, FisherTraceConfig)
            if config
            else plan_runs(
                data=data, settings=setting, seeds=seeds, n_images=n_images, epochs=epochs
            )
        )
        with open_executor(executor.value, workers=workers, address=address) as where:
            result = run_configs(out, runs, executor=where)
        conclude(out, result, _print_plasticity)


def _parse_ratios(text: str) -> list[float]:
    try:
        ratios = sorted({float(part) for part in text.split(",")})
    except ValueError:
        ratios = []
    if not ratios or not all(0 <= ratio < 1 for ratio in ratios):
        fail(
            "--ratios takes noise ratios from 0 to below 1, separated by commas, such as "
            f"0,0.2,0.4, but got {text!r}."
        )
    return ratios


def _print_noise_table(study: Any) -> None:
    from dynamics.noise_law import noise_table

    columns = ["noise", "ratio", "train_accuracy", "held_out_noisy", "held_out_true"]
    columns += ["label_precision", "label_recall"]
    means = noise_table(study)[columns].groupby(["noise", "ratio"]).mean()
    typer.echo(means.round(3).to_string())


def _print_plasticity(study: Any) -> None:
    from dynamics.plasticity import plasticity_table, summarise_plasticity

    columns = ["setting", "n", "n_rises_and_falls", "n_has_interior_peak", "n_falls"]
    columns += ["peak_epoch", "last_over_peak", "empirical_last_over_peak", "test_accuracy"]
    table = summarise_plasticity(plasticity_table(study))[columns]
    typer.echo(table.round(3).to_string(index=False))
