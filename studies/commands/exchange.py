"""`dynamics import` and `dynamics export`: logs of other tools in, tables for other tools out."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from studies.commands.console import explained, fail, say


class LogFormat(StrEnum):
    """Formats that can be imported."""

    csv = "csv"
    parquet = "parquet"
    jsonl = "jsonl"
    cartography = "cartography"
    aum = "aum"
    forgetting = "forgetting"
    tensorboard = "tensorboard"


class TableName(StrEnum):
    """Tables that can be exported."""

    samples = "samples"
    scalars = "scalars"
    events = "events"
    roster = "roster"
    summary = "summary"


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line.

    Args:
        app: The command `dynamics`.
    """
    app.command("import")(import_command)
    app.command("export")(export_command)


def import_command(
    source: Annotated[
        list[Path], typer.Argument(help="File or folder; several make one run.", metavar="SOURCE…")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; must not exist, or be empty.")],
    format: Annotated[
        LogFormat | None, typer.Option(help="Format, where name and columns do not tell.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Which column is what: loss=ce; `step=` leaves one away. Repeatable."),
    ] = None,
    steps_per_epoch: Annotated[
        int | None, typer.Option(help="Where a log has steps and no epochs.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read logs of other tools into a run: CSV, Parquet, JSON lines, cartography, AUM, TensorBoard.

    Then `dynamics report RUN` and everything else works on it. What was read, mapped, ignored and
    is missing is printed, and stays in the run's run.json. docs/import.md describes the formats.
    """
    with explained():
        from tqdm import tqdm

        from dynamics import import_log
        from dynamics.traces.foreign.account import describe_import

        with tqdm(unit=" rows", unit_scale=True, disable=None, desc="Reading") as bar:
            run = import_log(
                source,
                out,
                format=format.value if format else None,
                columns=_parse_columns(column or []),
                steps_per_epoch=steps_per_epoch,
                progress=bar.update,
            )
        imported = run.info["imported"]
        if as_json:
            typer.echo(json.dumps(imported, indent=2))
            return
        for word, text in describe_import(imported):
            typer.echo(f"{word:<12}{text}")
        say(f"The run is {out}. See it: dynamics report {out}")


def export_command(
    path: Annotated[str, typer.Argument(help="Folder or URL of a run.")],
    out: Annotated[Path, typer.Option(help="File that ends in .csv, .parquet or .jsonl.")],
    table: Annotated[TableName, typer.Option(help="Which table.")] = TableName.samples,
) -> None:
    """Write a table of a run for other tools: samples, scalars, events, roster, or a summary."""
    with explained():
        from dynamics import export_table, open_run

        n = export_table(open_run(path), out, table=table.value)
        say(f"{n:,} rows of {table.value} in:")
        typer.echo(out.resolve())


def _parse_columns(pairs: list[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        name, equals, source = pair.partition("=")
        if not name or not equals:
            fail(f"--column takes TRACE'S=LOG'S column, such as loss=ce, but got {pair!r}.")
        if name in columns:
            fail(f"--column names {name!r} twice.")
        columns[name] = source
    return columns
