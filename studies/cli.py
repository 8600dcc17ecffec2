"""The command `dynamics`. Everything heavy is imported inside the command that needs it.

Exit codes: 0 all well, 1 a finding, 2 a mistake in the call or in what it names, 3 damaged data.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from studies import exchange_commands, study_commands, trace_commands
from studies.console import explained, fail, say

app = typer.Typer(
    help="See how a network learns, sample by sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
study_commands.register(app)
trace_commands.register(app)
exchange_commands.register(app)


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


@app.command()
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Folder of a run or a study; of several studies to compare."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file; PATH/report.html by default, comparison.html for several."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set for pictures, if not where the run says.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for figures as PNG, SVG, PDF and their data as CSV.")
    ] = None,
) -> None:
    """Write the HTML report of a run or a study, or of several studies side by side."""
    with explained():
        from reports import write_report

        if len(paths) == 1:
            source, default = _open(paths[0]), paths[0] / "report.html"
        else:
            from dynamics import open_study

            source, default = [open_study(path) for path in paths], Path("comparison.html")
        written = write_report(source, out or default, data=data, figures=figures)
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


def _one_line(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Entry point for `python -m studies.cli`."""
    sys.exit(app())


if __name__ == "__main__":
    main()
