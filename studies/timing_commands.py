"""`dynamics study critical-period` and `regularisation-timing`: does it matter when?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from studies.console import explained, fail


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
