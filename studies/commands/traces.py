"""Commands that look after a trace: verify, repair, compact."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from studies.commands.console import CORRUPT, FINDING, explained, say

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line.

    Args:
        app: The command `dynamics`.
    """
    for command in (verify, repair, compact):
        app.command()(command)


def verify(
    path: Annotated[Path, typer.Argument(help="Folder of a run or a study.")],
    untrusted: Annotated[
        bool, typer.Option(help="Decode in a process with limits: for a stranger's trace.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prove that a trace is what was recorded, or name what is not.

    Exit code 0: nothing but notes; 1: a finding; 3: damage.
    """
    with explained():
        from dynamics.traces.verification.untrusted import verify_untrusted
        from dynamics.traces.verification.verify import verify as verify_trace

        found = verify_untrusted(path) if untrusted else verify_trace(path, progress=_shown)
        if as_json:
            typer.echo(json.dumps(found.to_dict("records"), indent=2))
        else:
            _print_findings(found)
        severities = {*found["severity"]}
        if "damage" in severities:
            raise typer.Exit(CORRUPT)
        if "finding" in severities:
            raise typer.Exit(FINDING)


def repair(
    path: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: AsJson = False,
) -> None:
    """Set broken files of a run aside, rebuild what can be, and say what is gone.

    Nothing is deleted: what is set aside lies in PATH/set-aside with the reason beside it.
    """
    with explained():
        from dynamics.traces.mending.repair import repair as repair_trace

        done = repair_trace(path, progress=_shown)
        if as_json:
            tables = {"set_aside": done.set_aside, "gone": done.gone}
            answer = {name: table.to_dict("records") for name, table in tables.items()}
            typer.echo(json.dumps(answer, indent=2))
            return
        for file, why, lost in done.set_aside.itertuples(index=False):
            typer.echo(f"{file}\n    {why}\n    gone: {lost}")
        for epoch, rows in done.gone.groupby("epoch"):
            ids = ", ".join(str(i) for i in rows["sample_id"].head(8))
            more = ", …" if len(rows) > 8 else ""
            typer.echo(f"epoch {epoch}: {len(rows):,} samples gone: {ids}{more}")
        if done.set_aside.empty:
            say(f"{path} needs no repair.")
        elif len(done.gone):
            say(f"Every (epoch, sample) that is gone is listed in {path}/set-aside/gone.csv.")


def compact(
    path: Annotated[Path, typer.Argument(help="Folder of a run.")],
    force: Annotated[
        bool, typer.Option(help="Also a run without a clean end; its writer must be dead.")
    ] = False,
) -> None:
    """Rewrite a run into fewer files, sorted by sample, and remove those that they replace."""
    with explained():
        from dynamics.traces.compaction.compact import compact as compact_trace

        before = _bytes(path)
        manifest = compact_trace(path, force=force, progress=_shown)
        if manifest is None:
            say(f"{path} holds no rows to compact.")
            return
        rows = sum(bucket.rows for bucket in manifest.buckets if bucket.table == "samples")
        say(
            f"{rows:,} rows of samples in {len(manifest.buckets)} files; "
            f"{before / 1e6:,.1f} MB before, {_bytes(path) / 1e6:,.1f} MB now."
        )


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def _print_findings(found: Any) -> None:
    for row in found.itertuples(index=False):
        typer.echo(f"{row.severity:<8} {row.run}/{row.file}: {row.what}")
        if row.mend:
            typer.echo(f"{'':<8} {row.mend}")
    if found.empty:
        say("Nothing is wrong.")


def _shown(items: Iterable[Any]) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(items, unit="file", disable=None, leave=False)
