"""`dynamics study NAME`: one command for each controlled experiment; each ends with its report."""

from collections.abc import Callable

import typer

from studies.commands.critical_period import critical_period
from studies.commands.example_weighting import example_weighting
from studies.commands.fisher_trace import fisher_trace
from studies.commands.noise_ratio import noise_ratio
from studies.commands.regularisation_timing import regularisation_timing
from studies.commands.weight_ratio import weight_ratio

STUDIES: dict[str, Callable[..., None]] = {
    "noise-ratio": noise_ratio,
    "fisher-trace": fisher_trace,
    "critical-period": critical_period,
    "regularisation-timing": regularisation_timing,
    "weight-ratio": weight_ratio,
    "example-weighting": example_weighting,
}


def register(app: typer.Typer) -> None:
    """Add the command `study` to the command line.

    Args:
        app: The command `dynamics`.
    """
    study_app = typer.Typer(help="Run a controlled experiment and report it.", no_args_is_help=True)
    for name, command in STUDIES.items():
        study_app.command(name)(command)
    app.add_typer(study_app, name="study")
