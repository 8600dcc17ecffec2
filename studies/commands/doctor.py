"""`dynamics doctor`: what this machine is, and whether runs can be written here."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from studies.commands.console import FINDING, explained, say


def register(app: typer.Typer) -> None:
    """Add the command to the command line.

    Args:
        app: The command `dynamics`.
    """
    app.command()(doctor)


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs are going to be written.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print versions, torch's build, the GPU and the disk's latency; exit code 1 on a finding."""
    with explained():
        from studies.doctor import examine

        answer = examine(folder)
        if as_json:
            typer.echo(json.dumps(answer, indent=2))
        else:
            _print(answer)
    if answer["findings"]:
        raise typer.Exit(FINDING)


def _print(answer: dict[str, Any]) -> None:
    torch, disk = answer["torch"], answer["disk"]
    typer.echo(f"{'python':<22} {answer['python']} on {answer['platform']}")
    for name, version in answer["packages"].items():
        typer.echo(f"{name:<22} {version or 'not installed'}")
    typer.echo(f"{'torch is built for':<22} {torch['built_for']}")
    typer.echo(f"{'GPU':<22} {', '.join(torch['devices']) or 'none'}")
    typer.echo(f"{'CPUs, torch threads':<22} {answer['cpus']}, {torch['threads']}")
    typer.echo(f"{'C++ compiler':<22} {answer['compiler'] or 'none; torch.compile needs one'}")
    typer.echo(
        f"{'disk':<22} {disk['folder']}: {disk['free_gb']} GB free; a durable write takes "
        f"{1000 * disk['write_median_s']:.1f} ms (worst {1000 * disk['write_worst_s']:.1f} ms)"
    )
    for finding in answer["findings"]:
        say(finding)
