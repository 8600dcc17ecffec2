"""`dynamics study NAME`: one command for each controlled experiment; each ends with its report."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from studies.console import explained, fail
from studies.timing_commands import study_critical_period, study_regularisation_timing


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
    study_app.command("critical-period")(study_critical_period)
    study_app.command("regularisation-timing")(study_regularisation_timing)
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
) -> None:
    """What label noise costs a network that memorises (Chen et al., ICML 2019).

    Trains an MLP on one half of the noisy data until it is memorised, measures on the other half,
    and compares the law P(ε) with a scaled one, a free quadratic, a straight line and a monotone
    spline; beside it, the same networks stopped early or regularised. Stop it at any time: a
    second call goes on where the first one stopped.
    """
    with explained():
        from dynamics import open_study
        from reports import write_report
        from studies.noise_ratio import run_study

        levels = _parse_ratios(ratios)
        run_study(
            out,
            data="digits" if quick else data,
            noises=[kind.value for kind in noise],
            ratios=levels,
            arms=[a.value for a in arm],
            widths=[256] if quick else width,
            true_class=true_class.value,
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
