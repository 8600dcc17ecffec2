"""The command `dynamics`. Everything heavy is imported inside the command that needs it.

Exit codes: 0 all well, 1 a finding, 2 a mistake in the call or in what it names, 3 damaged data.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from studies import exchange_commands, trace_commands
from studies.console import explained, fail, say

app = typer.Typer(
    help="See how a network learns, sample by sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
study_app = typer.Typer(help="Run a controlled experiment and report it.", no_args_is_help=True)
app.add_typer(study_app, name="study")
trace_commands.register(app)
exchange_commands.register(app)


class Noise(StrEnum):
    """Kinds of label noise."""

    symmetric = "symmetric"
    asymmetric = "asymmetric"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run and its report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of noise, weights and order.", min=0)] = 0,
) -> None:
    """Train on digits with 30 % wrong labels, record everything, write a report."""
    import shutil

    with explained():
        from dynamics import open_run
        from dynamics.traces.layout import RUN_FILE
        from reports import write_report
        from studies.demo import run_demo

        run_folder = out / "run"
        if (run_folder / RUN_FILE).exists():
            if open_run(run_folder).config.get("study") != "demo":
                fail(f"{run_folder} holds a run that is not a demo. Choose another --out.")
            shutil.rmtree(run_folder)  # the demo replaces its own earlier run, and no other
        say("Training on 1,500 digits, 30 % of them mislabelled, with every probe on …")
        run_demo(run_folder, seed=seed)
        say("Analysing the trace …")
        report = write_report(
            open_run(run_folder), out / "report.html", figures=out / "figures", data="digits"
        )
        say("The report, with its figures in the folder beside it:")
        typer.echo(report.resolve())


@study_app.command("noise-ratio")
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


@study_app.command("fisher-trace")
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


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="Folder of a run or a study.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file; PATH/report.html by default.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set for pictures, if not where the run says.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for figures as PNG, SVG, PDF and their data as CSV.")
    ] = None,
) -> None:
    """Write the HTML report of a run or a study."""
    with explained():
        from reports import write_report

        source = _open(path)
        written = write_report(source, out or path / "report.html", data=data, figures=figures)
        typer.echo(written.resolve())


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Folder of a run or a study.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run or a study holds."""
    with explained():
        from dynamics import Study
        from dynamics.describe import describe_run, describe_study

        source = _open(path)
        described = describe_study(source) if isinstance(source, Study) else describe_run(source)
        if as_json:
            typer.echo(json.dumps(described, indent=2))
            return
        for name, value in described.items():
            typer.echo(f"{name:<14} {_one_line(value)}")


def _open(path: Path) -> Any:
    from dynamics import open_run, open_study
    from dynamics.traces.layout import STUDY_FILE

    return open_study(path) if (path / STUDY_FILE).is_file() else open_run(path)


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


def _one_line(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Entry point for `python -m studies.cli`."""
    sys.exit(app())


if __name__ == "__main__":
    main()
