"""The report of an example-weighting study: what each scheme does to whom, and its worth."""

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd

from dynamics.traces import Study, TraceError
from dynamics.weighting import (
    CONTROL,
    HARD,
    PLAIN,
    accuracy_curves,
    corrected_labels,
    pull_curves,
    pull_over_seeds,
    summarise_schemes,
    weighting_table,
)
from reports.page import Cell, Page, PageTable, Panel, Section
from reports.provenance import describe_provenance
from reports.weighting_figures import (
    plot_best_and_final,
    plot_imbalance_error,
    plot_pull_share,
    plot_scheme_accuracy,
    plot_scheme_cost,
)

CLAIMED_ERROR = 0.05
"""Error of learning to reweight at 200:1 that papers.md counts as reproduction."""
FITTED = 0.999

_COLUMNS = {
    "noise": [
        "best",
        "final",
        "drop",
        "fit",
        "peak_auc",
        "final_auc",
        "weight_auc",
        "suspect_share",
    ],
    "imbalance": ["best", "final", "rare_final", "fit", "weight_auc", "suspect_share"],
}
_TITLES = {
    "fit": "fit of given labels",
    "rare_final": "rare class, final",
    "peak_auc": "AUC of loss, peak",
    "final_auc": "AUC of loss, final",
    "weight_auc": "AUC of weight",
    "suspect_share": "pull of wrong / rare",
}


def build_weighting_report(study: Study) -> Page:
    """Analyse a study and lay out its report.

    Args:
        study: A study named example-weighting.

    Returns:
        The page.

    Raises:
        TraceError: If none of its runs has ended.
    """
    table = weighting_table(study)
    if table.empty:
        raise TraceError(f"No run of {study.path} has come to its end yet.")
    summary = summarise_schemes(table)
    pulls = pull_over_seeds(pull_curves(study))
    accuracies = accuracy_curves(study)
    noise = summary[summary["task"] == "noise"]
    rare = summary[summary["task"] == "imbalance"]
    levels = sorted(noise["level"].unique())
    sections = [Section("Key figures", _key_panels(noise, rare, pulls, levels))]
    for level in levels:
        mine = [rows[_at(rows, "noise", level)] for rows in (summary, pulls, accuracies)]
        sections.append(Section(f"Noise, {level:.0%} of labels wrong", _noise_panels(level, *mine)))
    for level in sorted(rare["level"].unique(), reverse=True):
        rows = pulls[_at(pulls, "imbalance", level)]
        panels = [_pull_panel("rare", rows, f"imbalance_{level:g}", _RARE)]
        sections.append(Section(f"Imbalance, {level:g} to 1", panels))
    corrected = corrected_labels(study)
    return Page(
        title="What example weighting does, and to whom",
        subtitle=f"Study {study.name} · {len(table)} runs · {study.path}",
        verdict=[*_judge_imbalance(rare), *_judge_noise(noise), *_judge_corrected(corrected)],
        caveats=_caveats(study, table, summary),
        sections=sections,
        tables=[_table(task, rows) for task, rows in summary.groupby("task", sort=False)],
        provenance=describe_provenance(study.runs[0]) | {"Run": f"first of {len(study.runs)}"},
    )


def _at(rows: pd.DataFrame, task: str, level: float) -> "pd.Series[bool]":
    return (rows["task"] == task) & (rows["level"] == level)


def _judge_imbalance(summary: pd.DataFrame) -> list[str]:
    sentences = []
    for level in sorted(summary["level"].unique(), reverse=True):
        rows = _by_scheme(summary[summary["level"] == level])
        if "reweight" not in rows:
            continue
        learned = rows["reweight"]
        text = f"At {level:g}:1 learning to reweight ends with error {_error(learned)}"
        others = [
            f"{name} with {_error(rows[key])}"
            for key, name in ((PLAIN, "plain training"), (CONTROL, "random weights"))
            if key in rows
        ]
        text += f", {' and '.join(others)}" if others else ""
        if level == summary["level"].max():
            held = "is" if 1 - learned["final"] <= CLAIMED_ERROR else "is not"
            text += (
                f": the mean {held} within the {CLAIMED_ERROR:.0%} that Ren et al. lead to expect"
            )
        sentences.append(f"{text} ({learned['n_seeds']} seeds).")
    return sentences


def _judge_noise(summary: pd.DataFrame) -> list[str]:
    sentences = []
    for level in sorted(summary["level"].unique()):
        rows = _by_scheme(summary[summary["level"] == level])
        if PLAIN not in rows:
            continue
        plain = rows[PLAIN]
        better = [name for name, row in rows.items() if row["drop_saved_low"] > 0]
        best = next(iter(rows.values()))
        sentences.append(
            f"With {level:.0%} of the labels wrong, plain training falls from {plain['best']:.3f} "
            f"to {plain['final']:.3f}, by {_interval(plain, 'drop')}. "
            + (
                f"Schemes that fall less, by an interval that excludes 0: {', '.join(better)}. "
                if better
                else "No scheme falls less by an interval that excludes 0. "
            )
            + f"Best at the end is {best['scheme']}, {_interval(best, 'over_plain', '+.3f')} "
            "over plain training."
        )
    return sentences


def _judge_corrected(corrected: pd.DataFrame) -> list[str]:
    sentences = []
    for (level, scheme), rows in corrected.groupby(["level", "scheme"]):
        first, last = (
            rows[rows["epoch"] == pick] for pick in (rows["epoch"].min(), rows["epoch"].max())
        )
        sentences.append(
            f"Labels corrected by {scheme} at {float(str(level)):.0%} noise are right in "
            f"{first['precision'].mean():.1%} of cases in epoch {first['epoch'].iloc[0]}, when "
            f"{first['fraction'].mean():.0%} have been, and in {last['precision'].mean():.1%} in "
            f"the last, when {last['fraction'].mean():.0%} have."
        )
    return sentences


def _by_scheme(summary: pd.DataFrame) -> dict[str, dict[Hashable, Any]]:
    """Rows by scheme, best final accuracy first."""
    return {str(row["scheme"]): row for row in summary.to_dict("records")}


def _error(row: dict[Hashable, Any]) -> str:
    text = f"{1 - row['final']:.3f}"
    if math.isfinite(row["final_low"]):
        text += f" [{max(1 - row['final_high'], 0):.3f}, {min(1 - row['final_low'], 1):.3f}]"
    return text


def _interval(row: dict[Hashable, Any], name: str, form: str = ".3f") -> str:
    text = f"{row[name]:{form}}"
    if math.isfinite(row[f"{name}_low"]):
        text += f" [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"
    return text


def _caveats(study: Study, table: pd.DataFrame, summary: pd.DataFrame) -> list[str]:
    caveats = [
        "“Best” is the best epoch by test accuracy, which no one could have chosen without the "
        "test set: it favours every scheme, and noisy curves most. Compare final accuracies.",
        "Noise ratios are told to co-teaching and selfie, as in their papers. Reweight and "
        "data-weighting see a few images with true labels that the others do not train on.",
        "One learning rate for all schemes. MAE, MSE and GCE have smaller gradients than "
        "cross-entropy, so that part of what they lose or save is that they learn more slowly.",
        "With mixup, what is recorded of a sample is of its mixture with another: its "
        "probabilities and its pull are not comparable with those of other schemes.",
        "Where labels are corrected (selfie, bootstrap), a wrong label's pull is towards the "
        "corrected label: a large share of it is no harm there.",
        "Processor time is that of one thread on a shared machine, without the recorder's.",
    ]
    plain = summary[(summary["task"] == "imbalance") & (summary["scheme"] == PLAIN)]
    for row in plain[plain["fit"] < FITTED].to_dict("records"):
        caveats.append(
            f"At {row['level']:g}:1 plain training has not fitted its training set (accuracy "
            f"{row['fit']:.3f}): it loses in the same number of steps, and might not in "
            "many more."
        )
    few = summary[summary["n_seeds"] < 3]
    if len(few):
        names = sorted(
            {f"{r['scheme']} ({r['task']} {r['level']:g})" for r in few.to_dict("records")}
        )
        caveats.insert(0, f"Fewer than three seeds: {', '.join(names)}.")
    everything = study.table()
    unfinished = everything.loc[~everything["run"].isin(table["run"]), "run"].tolist()
    if unfinished:
        caveats.append(f"Left out, because they have not ended: {', '.join(unfinished)}.")
    return caveats


_WRONG = (
    "What share of the pull on the network wrong labels have. Under plain training it grows as "
    "right labels are fitted; a scheme that works against noise keeps it low, or turns it round. "
    "Where labels are corrected (selfie, bootstrap), the pull is towards the corrected ones."
)
_RARE = "What share of the pull on the network the rare class has."
_NO_RUNS = "No run of this task has ended."


def _key_panels(
    noise: pd.DataFrame, rare: pd.DataFrame, pulls: pd.DataFrame, levels: list[float]
) -> list[Panel]:
    if levels:
        level = max(levels)
        rows = pulls[_at(pulls, "noise", level)]
        first = _best_panel(noise[noise["level"] == level], "key")
        second = _pull_panel("wrong label", rows, "key", _WRONG)
    else:
        first = Panel("best_and_final_key", "Best and final accuracy", "", missing=_NO_RUNS)
        second = Panel("pull_share_key", "Share of the pull", "", missing=_NO_RUNS)
    name, title = "imbalance_error", "Error against imbalance"
    if rare.empty:
        return [first, second, Panel(name, title, "", missing=_NO_RUNS)]
    caption = (
        "Balanced test images. At 0.5 the rare class is never predicted; dashed is the claim. The "
        "random control shows how much of a gain comes from noise in the weights alone."
    )
    third = Panel(name, title, caption, lambda ax: plot_imbalance_error(rare, ax=ax), {name: rare})
    return [first, second, third]


def _best_panel(rows: pd.DataFrame, key: str) -> Panel:
    name = f"best_and_final_{key}"
    caption = (
        "The ring is the best epoch's accuracy, the dot the last one's. Left of the dotted line a "
        "scheme does worse than random weights, left of the dashed one worse than plain training."
    )
    title = "Best and final accuracy"
    return Panel(name, title, caption, lambda ax: plot_best_and_final(rows, ax=ax), {name: rows})


def _pull_panel(group: str, pulls: pd.DataFrame, key: str, caption: str) -> Panel:
    rows = pulls[pulls["group"] == group].dropna(subset=["value"])
    name, title = f"pull_share_{group.replace(' ', '_')}_{key}", f"Share of the pull: {group}"
    if rows.empty:
        return Panel(name, title, "", missing="No run has such samples.")
    return Panel(name, title, caption, lambda ax: plot_pull_share(rows, ax=ax), {name: rows})


def _noise_panels(
    level: float, summary: pd.DataFrame, pulls: pd.DataFrame, accuracies: pd.DataFrame
) -> list[Panel]:
    key = f"noise_{level:g}"
    hard = (
        f"Hard samples are the {HARD:.0%} of right labels that plain training gives the lowest "
        "probability. A scheme that cannot tell hard from wrong gives these up too."
    )
    name = f"scheme_accuracy_{key}"
    curve = Panel(
        name,
        "Accuracy over training",
        "Mean over seeds. A peak followed by a fall is memorisation.",
        lambda ax: plot_scheme_accuracy(accuracies, ax=ax),
        {name: accuracies},
    )
    panels = [curve, _pull_panel("hard", pulls, key, hard)]
    panels.append(_pull_panel("easy", pulls, key, "The other right labels."))
    name, title = f"scheme_cost_{key}", "Cost"
    if summary["cost"].notna().any():
        caption = "All of training, with what a scheme trains beforehand, without recording."
        draw = lambda ax: plot_scheme_cost(summary, ax=ax)  # noqa: E731 (one line, used once)
        panels.append(Panel(name, title, caption, draw, {name: summary}))
    else:
        panels.append(Panel(name, title, "", missing="Run the scheme uniform."))
    return panels


def _table(task: Hashable, summary: pd.DataFrame) -> PageTable:
    names = [*_COLUMNS[str(task)], "over_plain", "over_random", "cost"]
    if task == "noise":
        names.insert(-1, "drop_saved")
    titles = _TITLES | {
        "over_plain": "final − plain",
        "over_random": "final − random",
        "drop_saved": "plain’s drop − its own",
    }
    cells = []
    for row in summary.to_dict("records"):
        texts = [f"{row['level']:g}", str(row["scheme"]), str(row["n_seeds"])]
        texts += [_interval(row, n) if math.isfinite(row[n]) else "–" for n in names]
        cells.append([Cell(text) for text in texts])
    note = (
        "Means over seeds with Student’s 95 % interval; differences are paired by seed. The AUC of "
        "the loss is that of 1 − p_true of the given label against wrong labels; that of the "
        "weight is of a sample’s mean weight in the second half of training, for right or rare "
        "labels."
    )
    return PageTable(
        f"Schemes: {task}",
        note,
        ["level", "scheme", "seeds", *(titles.get(n, n) for n in names)],
        cells,
    )
