"""Where the numbers of a report come from."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, version

from dynamics.traces import Run, Study
from dynamics.traces.foreign.account import read_import
from reports.page import Rerun


def describe_provenance(run: Run) -> dict[str, str]:
    """What made a run, by name.

    Args:
        run: The run.

    Returns:
        Text by name, for the report's last section.
    """
    info = run.info
    described = {
        "Run": str(run.path),
        "Run id": str(info.get("run_id", "")),
        "Started": run.attempts[0].created_utc if run.attempts else "",
        "Imported": "; ".join(_compact(s) for s in (read_import(info) or {}).get("sources", [])),
        "Data": _compact(info.get("data")),
        "Configuration": _compact(info.get("config")),
        "Probes": "; ".join(_compact(probe) for probe in info.get("probes") or []),
        "Recorded with": _compact(info.get("versions")),
        "Trace schema": str(info.get("schema_version")),
        "Report by": f"training-dynamics {own_version()}",
    }
    return {name: text for name, text in described.items() if text}


def describe_rerun(study: Study, took: str = "", **options: object) -> Rerun:
    """The command that runs a study again, and what of its plan has not ended.

    Args:
        study: The study.
        took: How long it took, in words.
        **options: Options of `dynamics study NAME` by name, underscores for hyphens: a list is an
            option given several times. `out`, `data` and `seeds` are read from the study.

    Returns:
        For the report's section on running it again.
    """
    data = study.runs[0].config.get("data") if study.runs else None
    seeds = study.factors.get("seed") or []
    every = {"data": data, **options, "seeds": len(seeds) or None, "out": str(study.path)}
    words = ["dynamics", "study", study.name]
    for name, value in every.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None:
                words += [f"--{name.replace('_', '-')}", str(item)]
    table = study.table()
    unfinished = table.loc[~table["ended_cleanly"].astype(bool), "run"].tolist()
    return Rerun(shlex.join(words), took, [f"run {name} has not ended" for name in unfinished])


def own_version() -> str:
    """Version of the installed toolkit."""
    try:
        return version("training-dynamics")
    except PackageNotFoundError:
        return "(not installed)"


def _compact(value: object) -> str:
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    return ", ".join(
        f"{key} {item if isinstance(item, str) else json.dumps(item)}"
        for key, item in value.items()
        if item not in (None, [], {})
    )
