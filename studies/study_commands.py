"""`dynamics study NAME`: one command for each controlled experiment; each ends with its report."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from studies.console import explained, fail


class WeightingTask(StrEnum):
    """What is made hard about the data."""

    noise = "noise"
    imbalance = "imbalance"


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
    study_app.command("example-weighting")(study_example_weighting)
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
) -> None:
    """What label noise costs a network that memorises (Chen et al., ICML 2019).

    Trains an MLP on one half of the noisy data until it is memorised, measures on the other half,
    and compares the law P(ε) with a free quadratic and a straight line. Stop it at any time: a
    second call goes on where the first one stopped.
    """
    with explained():
        from dynamics import open_study
        from reports import write_report
        from studies.noise_ratio import run_study

        levels = _parse_ratios(ratios)
        run_study(
            out,
            data=data,
            noises=[kind.value for kind in noise],
            ratios=levels,
            seeds=seeds,
            n_images=n_images,
        )
        study = open_study(out)
        report = write_report(study, out / "report.html", figures=out / "figures")
        _print_noise_table(study)
        typer.echo(report.resolve())


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
) -> None:
    """Whether the Fisher trace rises to a peak and falls (Achille et al., ICLR 2019).

    Trains a small CNN on clean labels until it fits them, and records the trace of the model's
    Fisher and of the empirical one after every epoch. Stop it at any time: a second call goes on
    where the first one stopped.
    """
    with explained():
        from dynamics import open_study
        from reports import write_report
        from studies.fisher_trace import run_study

        run_study(out, data=data, settings=setting, seeds=seeds, n_images=n_images, epochs=epochs)
        study = open_study(out)
        report = write_report(study, out / "report.html", figures=out / "figures")
        _print_plasticity(study)
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
