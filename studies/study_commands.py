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


class WeightingTask(StrEnum):
    """What is made hard about the data."""

    noise = "noise"
    imbalance = "imbalance"


class Noise(StrEnum):
    """Kinds of label noise."""

    symmetric = "symmetric"
    asymmetric = "asymmetric"
    class_dependent = "class-dependent"


class Arm(StrEnum):
    """What keeps a network from memorising."""

    plain = "plain"
    weight_decay = "weight decay"
    dropout = "dropout"


class TrueClass(StrEnum):
    """Whether a drawn label may be the true one."""

    excluded = "excluded"
    included = "included"


def register(app: typer.Typer) -> None:
    """Add the command `study` to the command line.

    Args:
        app: The command `dynamics`.
    """
    study_app = typer.Typer(help="Run a controlled experiment and report it.", no_args_is_help=True)
    study_app.command("noise-ratio")(study_noise_ratio)
    study_app.command("fisher-trace")(study_fisher_trace)
    study_app.command("weight-ratio")(study_weight_ratio)
    study_app.command("example-weighting")(study_example_weighting)
    app.add_typer(study_app, name="study")


def study_noise_ratio(
    out: Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")],
    data: Annotated[
        str, typer.Option(help="digits, a folder of idx .gz files, or an .npz.")
    ] = "digits",
    noise: Annotated[
        list[Noise],
        typer.Option(
            help="Kinds of noise, repeatable: symmetric (to any other class), asymmetric (to the "
            "next class), class-dependent (rates from half to one and a half times the ratio)."
        ),
    ] = [Noise.symmetric, Noise.asymmetric],  # noqa: B006 (typer's way)
    ratios: Annotated[
        str, typer.Option(help="Noise ratios, separated by commas.")
    ] = "0,0.2,0.4,0.6,0.8",
    arm: Annotated[
        list[Arm],
        typer.Option(
            help="Arms, repeatable. Plain runs memorise, and show early stopping as well; weight "
            "decay (L2 0.01) and dropout (0.5) run for 30 epochs, at ratios .2, .4 and .6."
        ),
    ] = [Arm.plain, Arm.weight_decay],  # noqa: B006 (typer's way)
    width: Annotated[
        list[int], typer.Option(help="Width of both hidden layers; repeatable.", min=1)
    ] = [1024],  # noqa: B006 (typer's way)
    true_class: Annotated[
        TrueClass,
        typer.Option(help="Whether symmetric noise may draw the true class (Arazo) or not (Chen)."),
    ] = TrueClass.excluded,
    seeds: Annotated[int, typer.Option(help="Runs per combination.", min=1)] = 3,
    n_images: Annotated[int, typer.Option(help="Images used; half are trained on.", min=40)] = 8000,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two minutes: digits, width 256, whatever else is said.")
    ] = False,
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
    and compares the law P(ε) with a scaled one, a free quadratic, a straight line and a monotone
    spline; beside it, the same networks stopped early or regularised. Stop it at any time: a
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
                data="digits" if quick else data,
                noises=[kind.value for kind in noise],
                ratios=_parse_ratios(ratios),
                arms=[a.value for a in arm],
                widths=[256] if quick else width,
                true_class=true_class.value,
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


def study_weight_ratio(
    out: Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")],
    data: Annotated[
        str, typer.Option(help="digits, a folder of idx .gz files, or an .npz.")
    ] = "digits",
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
    seeds: Annotated[int, typer.Option(help="Runs per combination.", min=1)] = 3,
    n_images: Annotated[int, typer.Option(help="Images trained on, half a class.", min=20)] = 2000,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.", min=1)] = 150,
    width: Annotated[int, typer.Option(help="Channels of the first convolution.", min=1)] = 32,
    plane: Annotated[
        bool, typer.Option(help="Also a separable plane, where the limit is known.")
    ] = True,
    quick: Annotated[
        bool, typer.Option(help="Two minutes on digits: two arms, 1:16 to 16:1, two seeds.")
    ] = False,
) -> None:
    """Whether importance weights still matter once a network fits its data (Byrd & Lipton, 2019).

    Trains a small CNN on two classes whose weights are in a ratio, at a fixed rate, and measures
    after every epoch which class it assigns in-class test images, other images and noise to. Stop
    it at any time: a second call goes on where the first one stopped.
    """
    with explained():
        from dynamics import open_study
        from reports import write_report
        from studies.weight_ratio import run_study
        from studies.weight_ratio_plane import run_plane

        if quick:
            data, pair, arm, ratios = "digits", "3,8", ["none", "L2 0.01"], "1:16,1:1,16:1"
            seeds, epochs, width = 2, 60, 8
        levels = _parse_weight_ratios(ratios)
        run_study(
            out,
            data=data,
            pair=_parse_pair(pair),
            arms=arm,
            log2_ratios=levels,
            seeds=seeds,
            n_images=n_images,
            epochs=epochs,
            width=width,
        )
        if plane:
            run_plane(out, log2_ratios=levels, seeds=seeds, steps=1_000 if quick else 10_000)
        study = open_study(out)
        report = write_report(study, out / "report.html", figures=out / "figures")
        typer.echo(report.resolve())


def study_example_weighting(
    out: Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")],
    data: Annotated[
        str, typer.Option(help="digits, a folder of idx .gz files, or an .npz.")
    ] = "digits",
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
    seeds: Annotated[int, typer.Option(help="Runs per combination.", min=1)] = 5,
    n_images: Annotated[int, typer.Option(help="Images trained on, at most.", min=40)] = 4000,
    epochs: Annotated[int, typer.Option(help="Epochs of each run.", min=1)] = 30,
    quick: Annotated[
        bool, typer.Option(help="Both tasks on digits, some schemes, 2 seeds: 2 minutes.")
    ] = False,
) -> None:
    """What weighting schemes do to the pull of clean, noisy and rare samples, and when.

    Trains a network under each scheme (class ratio, random, robust losses, derivative
    manipulation, SELFIE, bootstrapping, Co-teaching, INCV, importance sampling, learning to
    reweight, data weighting) beside plain training, on the same samples with the same seeds, and
    compares them on one page. Both tasks may go into one folder. Stop it at any time: a second
    call goes on where the first one stopped.
    """
    with explained():
        from dynamics import open_study
        from reports import write_report
        from studies.example_weighting import plan_quick_runs, plan_runs, run_configs

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
        run_configs(out, runs)
        study = open_study(out)
        report = write_report(study, out / "report.html", figures=out / "figures")
        _print_schemes(study)
        typer.echo(report.resolve())


def _parse_pair(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        fail(f"--pair takes two classes, such as 2,4, but got {text!r}.")
    return int(parts[0]), int(parts[1])


def _parse_weight_ratios(text: str) -> list[float]:
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


def _parse_levels(text: str) -> list[float]:
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        fail(f"--levels takes numbers separated by commas, such as 10,100,200, but got {text!r}.")


def _print_schemes(study: Any) -> None:
    from dynamics.weighting import summarise_schemes, weighting_table

    columns = ["task", "level", "scheme", "n_seeds", "best", "final", "drop", "cost"]
    table = summarise_schemes(weighting_table(study))[columns]
    typer.echo(table.round(3).to_string(index=False))


def _print_noise_table(study: Any) -> None:
    from dynamics.noise_table import MEASURES, noise_table

    keys = ["arm", "width", "noise", "ratio"]
    means = noise_table(study).groupby(keys, dropna=False)[MEASURES].mean()
    typer.echo(means.round(3).to_string())


def _print_plasticity(study: Any) -> None:
    from dynamics.plasticity import plasticity_table, summarise_plasticity

    columns = ["setting", "n", "n_rises_and_falls", "n_has_interior_peak", "n_falls"]
    columns += ["peak_epoch", "last_over_peak", "empirical_last_over_peak", "test_accuracy"]
    table = summarise_plasticity(plasticity_table(study))[columns]
    typer.echo(table.round(3).to_string(index=False))
