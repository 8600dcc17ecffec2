"""Where the numbers of a report come from."""

import json
from importlib.metadata import PackageNotFoundError, version

from dynamics.traces import Run
from dynamics.traces.foreign.account import read_import


def describe_provenance(run: Run) -> dict[str, str]:
    """What made a run, by name.

    Args:
        run: The run.

    Returns:
        Text by name, for the report's last section.
    """
    info = run.info
    described = {
        "Run": run.location,
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
