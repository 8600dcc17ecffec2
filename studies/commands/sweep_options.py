"""What every `dynamics study NAME` shares: where its runs are made, and how it ends."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studies.commands.console import FINDING, fail, say

if TYPE_CHECKING:
    from studies.lab.sweep import SweepResult


class ExecutorChoice(StrEnum):
    """Where runs are made."""

    serial = "serial"
    process = "process"
    ray = "ray"
    slurm = "slurm"


OutOption = Annotated[Path, typer.Option(help="Folder of the study; finished runs are kept.")]
DataOption = Annotated[str, typer.Option(help="digits, a folder of idx .gz files, or an .npz.")]
SeedsOption = Annotated[int, typer.Option(help="Runs per combination.", min=1)]
ExecutorOption = Annotated[
    ExecutorChoice,
    typer.Option(
        help="Where runs are made: one after the other, in processes of this machine, on Ray, or "
        "as Slurm jobs. The runs are the same."
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(help="Runs at once at most; one a core by default.", min=1)
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="Ray cluster to use, or auto; one is started here by default."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="TOML file with [factors] and [config], in place of the options that say what runs "
        "there are."
    ),
]


def parse_epochs(option: str, text: str) -> list[int]:
    """Read epochs separated by commas.

    Args:
        option: Name of the option, for the error.
        text: What was given.

    Returns:
        The epochs in order, each once.
    """
    try:
        return sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        fail(f"{option} takes epochs separated by commas, such as 5,10,20, but got {text!r}.")


def conclude(out: Path, result: "SweepResult", print_table: Callable[[Any], None]) -> None:
    """End a study: its failures, the report of what has ended, its table, and the exit code.

    Args:
        out: Folder of the study.
        result: What came of its runs.
        print_table: Prints the table of a study.

    Raises:
        Exit: With the code for a finding, if a run did not end.
    """
    from dynamics import open_study
    from reports import write_report

    if result.failures:
        say(result.describe())
    study = open_study(out)
    if not any(run.ended_cleanly for run in study.runs):
        fail(f"no run of {out} has ended, so there is nothing to report.", FINDING)
    report = write_report(study, out / "report.html", figures=out / "figures")
    print_table(study)
    typer.echo(report.resolve())
    if result.failures:
        raise typer.Exit(FINDING)
