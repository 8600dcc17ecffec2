"""`dynamics study NAME`: one command for each controlled experiment; each ends with its report."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from studies.console import explained, fail


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


def study_critical_period(
    out: Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")],
    data: Annotated[
        str, typer.Option(help="digits, a folder of idx .gz files, or an .npz.")
    ] = "digits",
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
    seeds: Annotated[int, typer.Option(help="Runs per combination.", min=1)] = 5,
    n_images: Annotated[int, typer.Option(help="Images trained on.", min=40)] = 1500,
    width: Annotated[int, typer.Option(help="Width of the network.", min=1)] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate in the first epoch.")] = 0.05,
    lr_decay: Annotated[float, typer.Option(help="Factor on the rate after each epoch.")] = 0.93,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="sgd (momentum .9) or adam.")] = "sgd",
    quick: Annotated[bool, typer.Option(help="A two-minute version on digits.")] = False,
) -> None:
    """Whether early deficits harm for good, and whether that is the rate (Achille et al., 2019).

    Trains on blurred images until epoch t0, or in a window, and then on the clean ones for the
    same number of epochs, whatever t0. Arms differ in the learning rate alone: decaying throughout
    as in the paper, fixed, or set back when the deficit ends. Stop it at any time: a second call
    goes on where the first one stopped.
    """
    with explained():
        from studies.critical_period import plan_study, run_study

        quickly = {"seeds": 2, "until": [5, 20], "onsets": [0, 5], "clean_epochs": 10}
        settings: dict[str, Any] = {
            "data": "digits" if quick else data,
            "networks": network,
            "rates": rate,
            "until": _parse_epochs("--until", until),
            "others": deficit,
            "onsets": _parse_epochs("--onsets", onsets),
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
        run_study(out, plan_study(**(settings | (quickly if quick else {}))))
        _report(out)


def study_regularisation_timing(
    out: Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")],
    data: Annotated[
        str, typer.Option(help="digits, a folder of idx .gz files, or an .npz.")
    ] = "digits",
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
    seeds: Annotated[int, typer.Option(help="Runs per combination.", min=1)] = 5,
    n_images: Annotated[int, typer.Option(help="Images trained on.", min=40)] = 1000,
    quick: Annotated[bool, typer.Option(help="A two-minute version on digits.")] = False,
) -> None:
    """Whether it matters when one regularises (Golatkar et al., NeurIPS 2019).

    Weight decay, augmentation or mixup is on until epoch t0, off until t0, or on in a window; all
    runs last equally long. The effect is paired by seed with runs that never, and always, have it.
    Stop it at any time: a second call goes on where the first one stopped.
    """
    with explained():
        from studies.regularisation_timing import plan_study, run_study

        quickly = {"seeds": 2, "switches": [5], "onsets": [], "epochs": 15}
        settings: dict[str, Any] = {
            "data": "digits" if quick else data,
            "regularisers": regulariser,
            "switches": _parse_epochs("--switches", switches),
            "onsets": _parse_epochs("--onsets", onsets),
            "window": window,
            "epochs": epochs,
            "seeds": seeds,
            "n_images": n_images,
        }
        run_study(out, plan_study(**(settings | (quickly if quick else {}))))
        _report(out)


def _report(out: Path) -> None:
    from dynamics import open_study
    from reports import write_report

    report = write_report(open_study(out), out / "report.html", figures=out / "figures")
    typer.echo(report.resolve())


def _parse_epochs(option: str, text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        fail(f"{option} takes epochs separated by commas, such as 5,10,20, but got {text!r}.")


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
