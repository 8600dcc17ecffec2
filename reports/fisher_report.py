"""The report of a fisher-trace study: does the trace rise and fall, and in which settings."""

from collections.abc import Hashable
from typing import Any

import pandas as pd

from dynamics.plasticity import (
    FALL,
    curves_over_seeds,
    plasticity_curves,
    plasticity_table,
    summarise_plasticity,
)
from dynamics.traces import Study, TraceError
from reports.missing_runs import missing_runs
from reports.network_figures import plot_accuracy
from reports.page import Cell, Page, PageTable, Panel, Section
from reports.provenance import describe_provenance
from reports.study_figures import plot_fall, plot_fisher_runs

REFERENCE = "reference"


def build_fisher_report(study: Study) -> Page:
    """Analyse a study and lay out its report.

    Args:
        study: A study named fisher-trace.

    Returns:
        The page.

    Raises:
        TraceError: If none of its runs has ended.
    """
    table = plasticity_table(study)
    ended = table[table["ended_cleanly"].astype(bool)] if len(table) else table
    if ended.empty:
        raise TraceError(f"No run of {study.path} has come to its end yet.")
    settings = sorted(set(ended["setting"]), key=lambda setting: (setting != REFERENCE, setting))
    ended = pd.concat([ended[ended["setting"] == setting] for setting in settings])
    curves = plasticity_curves(study)
    curves = curves[curves["run"].isin(ended["run"])]
    middle = curves_over_seeds(curves)
    sections = [Section("All settings", [_fall_panel(ended)])]
    for setting in settings:
        mine = [rows[rows["setting"] == setting] for rows in (curves, middle)]
        sections.append(Section(setting.capitalize(), _panels(setting, *mine)))
    return Page(
        title="Does the Fisher trace rise and fall?",
        subtitle=f"Study {study.name} · {len(ended)} runs · {study.path}",
        verdict=[_judge(row) for row in summarise_plasticity(ended).to_dict("records")],
        caveats=_caveats(study, ended),
        sections=sections,
        tables=[_run_table(ended)],
        provenance=describe_provenance(study.runs[0]) | {"Run": f"first of {len(study.runs)}"},
    )


def _judge(row: dict[Hashable, Any]) -> str:
    text = (
        f"{row['setting'].capitalize()}: in {row['n_rises_and_falls']} of {row['n']} seeds the "
        f"trace rises to a peak and falls to {FALL:.0%} of it or less while training accuracy goes "
        f"on rising (95 % interval of that share {row['low']:.0%} to {row['high']:.0%}). It has an "
        f"interior peak in {row['n_has_interior_peak']}, falls by that much in {row['n_falls']}, "
        f"and ends at {row['last_over_peak']:.2g} of its peak"
    )
    if pd.notna(row["empirical_last_over_peak"]):
        text += f", the empirical trace at {row['empirical_last_over_peak']:.2g} of its"
    return f"{text} (medians)."


def _caveats(study: Study, ended: pd.DataFrame) -> list[str]:
    caveats = [
        "A peak counts where it is neither the first nor the last point and above both by more "
        "than 1.96 standard errors; those are for inputs drawn anew, and here all epochs share one "
        "probe set, so the test is on the careful side.",
        "Values cannot be compared between networks of different width, nor with the empirical "
        "trace: only shapes can.",
    ]
    few = ended.groupby("setting")["seed"].nunique()
    if (few < 5).any():
        names = ", ".join(few[few < 5].index)
        caveats.append(f"Fewer than five seeds: {names}.")
    if unfinished := missing_runs(study):
        caveats.append(f"Left out, because they have not ended: {', '.join(unfinished)}.")
    return caveats


def _fall_panel(ended: pd.DataFrame) -> Panel:
    caption = (
        "Each point is a run. Left of the dashed line the trace has lost half of its peak or more; "
        "grey runs have no peak that stands out between their first and last point."
    )
    name, title = "fall", "How far the trace has fallen"
    return Panel(name, title, caption, lambda ax: plot_fall(ended, ax=ax), {name: ended})


def _panels(setting: str, curves: pd.DataFrame, middle: pd.DataFrame) -> list[Panel]:
    key = setting.replace(" ", "_")
    name = f"fisher_runs_{key}"
    caption = (
        "Bold: median over seeds. While the blue curve is high, what the network sees still "
        "changes it; that the red one falls further says only that the labels are fitted."
    )
    trace = Panel(
        name,
        "Fisher trace",
        caption,
        lambda ax: plot_fisher_runs(curves, middle, ax=ax),
        {name: curves, f"{name}_median": middle},
    )
    name = f"accuracy_{key}"
    accuracy = middle[middle["curve"].isin(["train_accuracy", "test_accuracy"])].assign(
        block=lambda rows: rows["curve"].str.removesuffix("_accuracy"),
        value=lambda rows: rows["mean"],
    )
    caption = "Mean over seeds, bands ±1.96 standard errors of that mean."
    if accuracy.empty:
        return [trace, Panel(name, "Accuracy", "", missing="The runs recorded no accuracy.")]
    accuracies = Panel(
        name, "Accuracy", caption, lambda ax: plot_accuracy(accuracy, ax=ax), {name: accuracy}
    )
    return [trace, accuracies]


def _run_table(rows: pd.DataFrame) -> PageTable:
    columns = {
        "first": ("before training", "{:.3g}"),
        "peak": ("peak", "{:.3g}"),
        "peak_epoch": ("at epoch", "{:.0f}"),
        "last": ("last", "{:.3g}"),
        "last_over_peak": ("last ÷ peak", "{:.3f}"),
        "empirical_last_over_peak": ("empirical: last ÷ peak", "{:.4f}"),
        "train_accuracy_at_peak": ("train acc. at peak", "{:.3f}"),
        "train_accuracy": ("train acc.", "{:.3f}"),
        "test_accuracy": ("test acc.", "{:.3f}"),
    }
    columns = {name: form for name, form in columns.items() if name in rows}
    cells = []
    for row in rows.to_dict("records"):
        texts = [str(row["setting"]), str(row["seed"])]
        texts += [form.format(row[name]) for name, (_, form) in columns.items()]
        cells.append([Cell(text) for text in [*texts, "yes" if row["rises_and_falls"] else "no"]])
    header = ["setting", "seed", *(title for title, _ in columns.values()), "rises and falls"]
    note = "Fisher trace with labels of the model, in nats² per squared unit of parameter."
    return PageTable("Runs", note, header, cells)
