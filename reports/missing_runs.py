"""Runs that a report has to do without."""

from dynamics.traces import Study


def missing_runs(study: Study) -> list[str]:
    """Runs that were planned or begun and have not ended, by name.

    Args:
        study: The study; its `study.json` lists what was planned, under `runs`.

    Returns:
        Their names, in order.
    """
    ended = {run.name for run in study.runs if run.ended_cleanly}
    planned = study.info.get("runs", {})
    return sorted({*planned, *(run.name for run in study.runs)} - ended)
