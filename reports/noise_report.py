"""The report of a noise-ratio study: what label noise costs, and which law it follows."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd

from dynamics.noise_law import (
    LawComparison,
    NoiseKind,
    compare_laws,
    largest_deviation,
    law_label_precision,
    noise_table,
    summarise_noise_table,
)
from dynamics.traces import Study, TraceError
from reports.missing_runs import missing_runs
from reports.page import Cell, Page, PageTable, Panel, Section
from reports.provenance import describe_provenance
from reports.study_figures import plot_label_precision, plot_noise_law

MEMORISED = 0.998
TOLERANCE = 0.06
"""Deviation from the law that papers.md counts as reproduction at small scale."""


def build_noise_report(study: Study) -> Page:
    """Analyse a study and lay out its report.

    Args:
        study: A study named noise-ratio.

    Returns:
        The page.

    Raises:
        TraceError: If none of its runs has ended.
    """
    runs = noise_table(study)
    if runs.empty:
        raise TraceError(f"No run of {study.path} has recorded anything yet.")
    ended = runs[runs["ended_cleanly"].astype(bool)].dropna(subset=["held_out_noisy"])
    if ended.empty:
        raise TraceError(f"No run of {study.path} has come to its end yet.")
    n_classes = _count_classes(study)
    kinds: list[NoiseKind] = [k for k in ("symmetric", "asymmetric") if k in set(ended["noise"])]
    verdict, sections = [], []
    for kind in kinds:
        rows = ended[ended["noise"] == kind]
        comparison = _compare(rows, kind, n_classes)
        verdict += _judge(rows, kind, n_classes, comparison)
        sections.append(_section(rows, kind, n_classes, comparison))
    return Page(
        title="What label noise costs",
        subtitle=f"Study {study.name} · {len(ended)} runs · {study.path}",
        verdict=verdict,
        caveats=_caveats(study, ended),
        sections=sections,
        tables=[_run_table(ended, n_classes)],
        provenance=describe_provenance(study.runs[0]) | {"Run": f"first of {len(study.runs)}"},
    )


def _count_classes(study: Study) -> int:
    rosters = (run.roster() for run in study.runs)
    labels = [roster[["label", "true_label"]].max().max() for roster in rosters if len(roster)]
    return int(max(labels)) + 1


def _compare(rows: pd.DataFrame, kind: NoiseKind, n_classes: int) -> LawComparison | None:
    if rows["ratio"].nunique() < 4:
        return None
    ratio, accuracy = rows["ratio"].to_numpy(), rows["held_out_noisy"].to_numpy()
    return compare_laws(ratio, accuracy, kind=kind, n_classes=n_classes)


def _judge(
    rows: pd.DataFrame, kind: NoiseKind, n_classes: int, comparison: LawComparison | None
) -> list[str]:
    name = f"{kind.capitalize()} noise"
    sentences = []
    noisy = rows[rows["ratio"] >= 0.2]
    if len(noisy):
        sentences.append(f"{name}: {_judge_theory(noisy, kind, n_classes)}")
    if comparison is None:
        sentences.append(f"{name}: fewer than four ratios, so no curve is compared with a line.")
    elif np.isfinite(comparison.quadratic_over_line.value):
        sentences.append(f"{name}, is it really a parabola? {_judge_bend(comparison)}")
    else:
        sentences.append(
            f"{name}: {comparison.n_runs} runs are too few to tell a curve from a straight line. "
            "Add seeds."
        )
    return sentences


def _judge_theory(noisy: pd.DataFrame, kind: NoiseKind, n_classes: int) -> str:
    deviation, ratio = largest_deviation(noisy, kind=kind, n_classes=n_classes)
    memorised = (noisy["train_accuracy"] >= MEMORISED).all()
    holds = "holds" if abs(deviation) <= TOLERANCE else "does not hold"
    return (
        f"Chen et al.'s law, which has no free parameter, {holds} within ± {TOLERANCE} at ratios "
        f"of .2 and more. The largest deviation of {len(noisy)} runs is {deviation:+.3f}, at "
        f"ratio {ratio:g}"
        + ("." if memorised else "; but not all of them have memorised their labels.")
    )


def _judge_bend(comparison: LawComparison) -> str:
    gain = comparison.quadratic_over_line
    best = comparison.table.sort_values("aicc").iloc[0]
    curved = "better than" if gain.low > 0 else "no better than"
    return (
        f"A quadratic describes these {comparison.n_runs} runs {curved} a straight line (AICc of "
        f"the line minus AICc of the quadratic {gain.value:.1f}, 95 % interval {gain.low:.1f} to "
        f"{gain.high:.1f}). Of the four laws the best is the {best['law']}, in "
        f"{best['probability_best']:.0%} of resamples; it misses the mean at no ratio by more "
        f"than {best['largest_deviation']:.3f}."
    )


def _caveats(study: Study, ended: pd.DataFrame) -> list[str]:
    caveats = []
    seeds = int(ended.groupby(["noise", "ratio"])["seed"].nunique().min())
    if seeds < 3:
        caveats.append(
            f"Only {seeds} seed(s) at some ratios: intervals over runs rest on very little. Add "
            f"seeds."
        )
    weak = ended[ended["train_accuracy"] < MEMORISED]
    if len(weak):
        caveats.append(
            f"{len(weak)} run(s) ended below {MEMORISED:.1%} training accuracy: "
            f"{', '.join(weak['run'])}. The law is about networks that have memorised."
        )
    if unfinished := missing_runs(study):
        caveats.append(f"Left out, because they have not ended: {', '.join(unfinished)}.")
    caveats.append(
        "Accuracy here is against the noisy labels of held-out data, as in the paper; against the "
        "true labels it is higher (see the table). The same images are split anew with each seed."
    )
    return caveats


def _section(
    rows: pd.DataFrame, kind: NoiseKind, n_classes: int, comparison: LawComparison | None
) -> Section:
    grid = np.linspace(0, max(float(rows["ratio"].max()), 0.5), 101)
    recall = 1 - grid
    precision = law_label_precision(grid, kind=kind, n_classes=n_classes)
    theory = pd.DataFrame({"ratio": grid, "label_precision": precision, "label_recall": recall})
    name = f"noise_law_{kind}"
    title = f"Held-out accuracy against {kind} noise ratio"
    if comparison is None:
        law = Panel(name, title, "", missing="Run the study at four noise ratios or more.")
    else:
        curves = comparison.curves
        caption = (
            "Points are runs. Black is the law without a free parameter, green scales it by the "
            "accuracy without noise; a line that misses the points in the middle is no law."
        )
        tables = {name: rows, f"{name}_curves": curves, f"{name}_comparison": comparison.table}
        law = Panel(name, title, caption, lambda ax: plot_noise_law(rows, curves, ax=ax), tables)
    name = f"label_precision_{kind}"
    caption = (
        "Keep the held-out samples whose prediction agrees with their label: precision is the "
        "share of clean ones among them, recall the share of clean ones kept. Precision above 1 "
        "− ratio is what this selection is worth."
    )
    tables = {name: rows, f"{name}_theory": theory}
    selection = Panel(
        name,
        f"Label precision and recall under {kind} noise",
        caption,
        lambda ax: plot_label_precision(rows, theory, ax=ax),
        tables,
    )
    return Section(f"{kind.capitalize()} noise", [law, selection])


def _run_table(rows: pd.DataFrame, n_classes: int) -> PageTable:
    columns = {
        "train_accuracy": "train, noisy",
        "held_out_noisy": "held-out, noisy",
        "held_out_true": "held-out, true",
        "label_precision": "label precision",
        "label_recall": "label recall",
    }
    header = [
        "noise",
        "ratio",
        "seeds",
        "epochs",
        *columns.values(),
        "law",
        "deviation",
        "ratio by law",
    ]
    cells = []
    for row in summarise_noise_table(rows, n_classes=n_classes).to_dict("records"):
        texts = [row["noise"], f"{row['ratio']:g}", str(row["n_runs"])]
        texts.append(f"{row['epochs_low']}–{row['epochs_high']}")
        texts += [_with_spread(row, name) for name in columns]
        texts += [
            f"{row['law']:.3f}",
            f"{row['deviation']:+.3f}",
            _with_spread(row, "ratio_by_law"),
        ]
        cells.append([Cell(text) for text in texts])
    note = (
        "Means over seeds ± their standard deviation. “ratio by law” is the noise ratio that the "
        "law gives for the measured accuracy; beyond its minimum the law cannot be inverted."
    )
    return PageTable("Runs", note, header, cells)


def _with_spread(row: dict[Hashable, Any], name: str) -> str:
    spread = row[f"{name}_std"]
    return f"{row[name]:.3f}" + (f" ± {spread:.3f}" if pd.notna(spread) else "")
