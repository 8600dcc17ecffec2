"""What the report of an imported run says of where it came from and what it lacks."""

from dataclasses import replace

from dynamics.traces import Run
from dynamics.traces.foreign.account import read_import, tell_missing
from reports.page import Panel

_COLUMNS = {
    "loss": "`loss`",
    "loss_mixture": "`loss`",
    "detection_auc": "`label` and `true_label`, and `loss`, `margin` or `grad_norm`",
    "data_map": "`p_true`, or logits in cartography's format",
    "grad_norm": "`grad_norm`",
    "accuracy": "`accuracy:test` in a table with a row for each epoch",
}


def describe_import(run: Run) -> list[str]:
    """Caveats of an imported run.

    Args:
        run: The run.

    Returns:
        Sentences; none for a run that was recorded.
    """
    imported = read_import(run.info)
    if imported is None:
        return []
    sources = ", ".join(f"{s['path']} ({s['format']})" for s in imported["sources"])
    caveats = [f"Imported from {sources}: the values are as that log defines them."]
    caveats += [note for source in imported["sources"] for note in source["notes"]]
    if imported.get("missing_rows"):
        pairs = imported["samples"] * imported["epochs"]
        caveats.append(
            f"{imported['missing_rows']:,} of {pairs:,} pairs of sample and epoch have no row; "
            "means are over those that have."
        )
    caveats.append(f"Not in the log, with what gives it in a recording: {tell_missing(imported)}.")
    return caveats


def name_columns(run: Run, panels: list[Panel]) -> list[Panel]:
    """Panels whose empty boxes also say which column of a log would fill them.

    Args:
        run: The run.
        panels: Its panels.

    Returns:
        The panels; unchanged for a run that was recorded.
    """
    if read_import(run.info) is None:
        return panels
    return [
        replace(panel, missing=f"{panel.missing} Or import {_COLUMNS[panel.name]}.")
        if panel.draw is None and panel.name in _COLUMNS
        else panel
        for panel in panels
    ]
