"""What a run or a study holds, as plain values to print."""

from typing import Any

from dynamics.traces import Run, Study


def describe_run(run: Run) -> dict[str, Any]:
    """Describe a run.

    Args:
        run: The run.

    Returns:
        JSON-able values by name.
    """
    n_rows = 0
    ids: set[int] = set()
    epochs: set[int] = set()
    recorded: set[str] = set()
    for rows in run.iter_samples(repeats=True):
        n_rows += len(rows)
        ids.update(rows["sample_id"].tolist())
        epochs.update(rows["epoch"].tolist())
        recorded.update(str(column) for column in rows if rows[column].notna().any())
    keys = {"step", "epoch", "sample_id", "occurrence", "status"}
    scalars = run.scalars()
    return {
        "run": run.location,
        "run_id": run.info.get("run_id"),
        "schema": run.info.get("schema_version"),
        "ended": "cleanly" if run.ended_cleanly else "not yet, or interrupted",
        "attempts": len(run.attempts),
        "samples": len(ids),
        "epochs": len(epochs),
        "rows": n_rows,
        "columns": sorted(recorded - keys),
        "scalars": sorted(scalars["name"].unique().tolist()),
        "events": run.events()["name"].value_counts().to_dict(),
        "probes": [probe.get("probe") for probe in run.info.get("probes", [])],
        "parts": len(run.parts("samples")),
        "bytes": sum(part.path.stat().st_size for part in run.parts("samples")),
        "config": run.config,
    }


def describe_study(study: Study) -> dict[str, Any]:
    """Describe a study.

    Args:
        study: The study.

    Returns:
        JSON-able values by name.
    """
    table = study.table()
    return {
        "study": study.location,
        "name": study.name,
        "factors": study.factors,
        "runs": len(table),
        "ended": int(table["ended_cleanly"].sum()),
        "unfinished": table.loc[~table["ended_cleanly"].astype(bool), "run"].tolist(),
    }
