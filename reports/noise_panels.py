"""Figures and tables of the noise-ratio report, from tables of `dynamics` to what a page holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dynamics.law_comparison import LawComparison
from dynamics.noise_law import NoiseKind, highest_ratio, law_label_precision, law_label_recall
from dynamics.noise_table import EARLY_STOPPED, MEMORISED
from reports.noise_figures import (
    plot_label_precision,
    plot_left_out_error,
    plot_memorisation,
    plot_noise_law,
    plot_prediction_shares,
    plot_ratio_estimates,
)
from reports.page import Cell, PageTable, Panel

Comparisons = Mapping[tuple[NoiseKind, int | None], LawComparison | None]


def law_panel(runs: pd.DataFrame, comparisons: Comparisons) -> Panel:
    """Accuracy against noise ratio with every law, one axes for each kind and width."""
    name, title = "noise_law", "Held-out accuracy on noisy labels against noise ratio"
    drawn = [(setting, found) for setting, found in comparisons.items() if found is not None]
    if not drawn:
        return Panel(name, title, "", missing="Run the study at four noise ratios or more.")
    parts = []
    tables: dict[str, pd.DataFrame] = {}
    for (noise, width), found in drawn:
        mine = (runs["arm"] == MEMORISED) & (runs["noise"] == noise)
        mine &= (runs["width"] == width) if width is not None else True
        parts.append((runs[mine], found.curves, _setting(noise, width, comparisons)))
        key = f"{name}_{_setting(noise, width, comparisons)}".replace(", ", "_").replace(" ", "")
        tables |= {
            key: runs[mine],
            f"{key}_curves": found.curves,
            f"{key}_comparison": found.table,
        }

    def draw(axes: Any) -> None:
        for ax, (rows, curves, setting) in zip(_flat(axes), parts, strict=True):
            plot_noise_law(rows, curves, ax=ax)
            ax.set_title(f"{setting.capitalize()} label noise")

    caption = (
        "Points are memorised runs. Black is Chen et al.'s law without a free parameter, green "
        "scales it by the accuracy without noise; a line that misses the points in the middle is "
        "no law."
    )
    return Panel(name, title, caption, draw, tables, shape=(1, len(parts)))


def memorisation_panel(
    summary: pd.DataFrame, kinds: Sequence[NoiseKind], tolerance: float
) -> Panel:
    """Deviation from the law against training accuracy, one axes for each kind."""
    rows = summary[summary["ratio"] > 0]
    caption = (
        f"Means over seeds with 95 % intervals, numbers are noise ratios. In the grey band (± "
        f"{tolerance}) the law holds; networks that stopped early or are regularised have not "
        "fitted their wrong labels, and lie above it."
    )

    def plot(part: pd.DataFrame, ax: Axes) -> Axes:
        return plot_memorisation(part, tolerance=tolerance, ax=ax)

    title = "Deviation from the law against training accuracy"
    return _by_kind("memorisation", title, caption, rows, kinds, plot)


def estimate_panel(estimates: pd.DataFrame, kinds: Sequence[NoiseKind], tolerance: float) -> Panel:
    """Estimated against true noise ratio, one axes for each kind."""
    caption = (
        f"Both estimators see no true label. Grey: ± {tolerance}. Hollow points are not to be "
        "believed by the estimator's own account: the law near or past its minimum, the mixture "
        "below its confidence bar."
    )

    def plot(part: pd.DataFrame, ax: Axes) -> Axes:
        return plot_ratio_estimates(part, tolerance=tolerance, ax=ax)

    title = "Noise ratio estimated without a true label"
    return _by_kind("ratio_estimates", title, caption, estimates, kinds, plot)


def precision_panel(runs: pd.DataFrame, kinds: Sequence[NoiseKind], n_classes: int) -> Panel:
    """Label precision and recall, one axes for each kind."""
    rows = runs[runs["arm"].isin([MEMORISED, EARLY_STOPPED])]
    caption = (
        "Keep the held-out samples whose prediction agrees with their label: precision is the "
        "share of clean ones among them, recall the share of clean ones kept. Precision above 1 "
        "− ratio is what this selection is worth. Lines: the law; dots: memorised; diamonds: "
        "early-stopped."
    )

    def plot(part: pd.DataFrame, ax: Axes) -> Axes:
        kind = part["noise"].iloc[0]
        grid = np.linspace(0, min(max(float(rows["ratio"].max()), 0.5), highest_ratio(kind)), 101)
        law: dict[str, Any] = {"kind": kind, "n_classes": n_classes}
        theory = {
            "ratio": grid,
            "label_precision": law_label_precision(grid, **law),
            "label_recall": law_label_recall(grid, **law),
        }
        return plot_label_precision(part, pd.DataFrame(theory), ax=ax)

    title = "Label precision and recall"
    return _by_kind("label_precision", title, caption, rows, kinds, plot)


def left_out_panel(comparisons: Comparisons) -> Panel:
    """Error at ratios left out, one axes for each kind and width."""
    name, title = "left_out_error", "Error of each law at a noise ratio left out of its fit"
    parts = [
        (_setting(*setting, comparisons), found.table)
        for setting, found in comparisons.items()
        if found is not None
    ]
    if not parts:
        return Panel(name, title, "", missing="Run the study at four noise ratios or more.")

    def draw(axes: Any) -> None:
        for ax, (setting, table) in zip(_flat(axes), parts, strict=True):
            plot_left_out_error(table, ax=ax)
            ax.set_title(setting.capitalize())

    caption = (
        "Each ratio in turn is left out, and the law fitted to the others predicts it; lines are "
        "95 % bootstrap intervals over runs. The spline can only fall."
    )
    table = pd.concat([t.assign(setting=s) for s, t in parts])
    return Panel(name, title, caption, draw, {name: table}, shape=(1, len(parts)))


def shares_panel(shares: pd.DataFrame) -> Panel:
    """Kept, flipped and neither, one axes for each kind whose labels go to few classes."""
    rows = shares[(shares["noise"] != "symmetric") & shares["arm"].isin(["plain", MEMORISED])]
    if len(rows):
        rows = rows[rows["width"].eq(rows["width"].iloc[0]) | rows["width"].isna()]
    caption = (
        "The law has predictions be the true class or the one that wrong labels go to. Grey points "
        "above 0 are ordinary mistakes, to a third class: they agree with no label, and pull "
        "accuracy on noisy labels below the law."
    )
    title = "Where held-out predictions of memorised runs go"
    kinds = list(dict.fromkeys(rows["noise"]))
    return _by_kind(
        "prediction_shares",
        title,
        caption,
        rows,
        kinds,
        lambda part, ax: plot_prediction_shares(part, ax=ax),
    )


def run_table(summary: pd.DataFrame) -> PageTable:
    """Means over seeds of every arm, width, kind and ratio."""
    columns = {
        "train_accuracy": "train, noisy",
        "held_out_noisy": "held-out, noisy",
        "held_out_true": "held-out, true",
        "label_precision": "label precision",
        "label_recall": "label recall",
    }
    header = ["arm", "width", "noise", "ratio", "seeds", "epochs", *columns.values()]
    header += ["law", "deviation", "ratio by law"]
    cells = []
    order = summary.sort_values(["arm", "noise", "ratio"], key=_memorised_first, kind="stable")
    for row in order.to_dict("records"):
        width = "" if pd.isna(row["width"]) else f"{row['width']:g}"
        texts = [row["arm"], width, row["noise"], f"{row['ratio']:g}", str(row["n_runs"])]
        texts.append(f"{row['epochs_low']}–{row['epochs_high']}")
        texts += [_with_spread(row, name) for name in columns]
        texts += [f"{row['law']:.3f}", f"{row['deviation']:+.3f}"]
        cells.append([Cell(text) for text in [*texts, _with_spread(row, "ratio_by_law")]])
    note = (
        "Means over seeds ± their standard deviation. “ratio by law” is the noise ratio that the "
        "law gives for the measured accuracy; beyond its minimum the law cannot be inverted."
    )
    return PageTable("Runs", note, header, cells)


def law_table(comparisons: Comparisons) -> PageTable:
    """Every law in every setting."""
    cells = []
    for setting, found in comparisons.items():
        for row in [] if found is None else found.table.to_dict("records"):
            cells.append(
                [
                    Cell(_setting(*setting, comparisons)),
                    Cell(row["law"]),
                    Cell(str(row["n_free"])),
                    Cell(f"{row['largest_deviation']:.3f}"),
                    Cell(f"{row['delta_aicc']:.1f}"),
                    Cell(f"{row['probability_best']:.0%}"),
                    Cell(
                        f"{row['left_out_error']:.3f} ({row['left_out_low']:.3f}–"
                        f"{row['left_out_high']:.3f})"
                    ),
                ]
            )
    header = ["noise", "law", "free parameters", "largest deviation", "Δ AICc", "best by AICc"]
    note = (
        "Largest deviation: of the mean over seeds at any ratio. Best by AICc: share of bootstrap "
        "resamples. Left out: root mean square error at ratios not fitted, 95 % interval."
    )
    return PageTable("Laws", note, [*header, "error, left out"], cells)


def arm_table(arms: pd.DataFrame) -> PageTable:
    """Arms that have not memorised, against those that have and against the law."""
    cells = []
    for row in arms.to_dict("records"):
        texts = [row["arm"], row["noise"], f"{row['ratio']:g}", str(row["n_seeds"])]
        texts += [_signed(row, "above_memorised"), _signed(row, "above_law")]
        cells.append([Cell(text) for text in texts])
    header = ["arm", "noise", "ratio", "seeds", "above memorised", "above the law"]
    note = (
        "Accuracy on held-out noisy labels, paired over seeds, with 95 % intervals (Student's t). "
        "These are as many comparisons as rows: one in twenty misses by chance."
    )
    return PageTable("Early-stopped and regularised arms", note, header, cells)


def estimate_table(estimates: pd.DataFrame) -> PageTable:
    """Noise ratios as estimated, against the truth."""
    cells = []
    for row in estimates.to_dict("records"):
        spread = f" ({row['low']:.3f}–{row['high']:.3f})" if np.isfinite(row["low"]) else ""
        texts = [row["estimator"], row["noise"], f"{row['ratio']:g}", str(row["n"])]
        texts += [f"{row['estimate']:.3f}{spread}", f"{row['estimate'] - row['ratio']:+.3f}"]
        cells.append([Cell(text) for text in [*texts, "yes" if row["usable"] else "no"]])
    header = ["estimator", "noise", "true ratio", "seeds", "estimate", "error", "to be believed"]
    note = "Means over seeds of memorised runs, with 95 % intervals; no estimator sees true labels."
    return PageTable("Noise ratio estimated", note, header, cells)


def _by_kind(
    name: str, title: str, caption: str, rows: pd.DataFrame, kinds: Sequence[str], plot: Any
) -> Panel:
    """Small multiples over kinds of noise of one plot function."""
    kinds = [kind for kind in kinds if len(rows) and (rows["noise"] == kind).any()]
    if not kinds:
        return Panel(name, title, "", missing="No run of this study says.")

    def draw(axes: Any) -> None:
        for ax, kind in zip(_flat(axes), kinds, strict=True):
            plot(rows[rows["noise"] == kind], ax)

    return Panel(name, title, caption, draw, {name: rows}, shape=(1, len(kinds)))


def _flat(axes: Any) -> list[Axes]:
    return [axes] if isinstance(axes, Axes) else list(axes.flat)


def _setting(noise: str, width: int | None, comparisons: Comparisons) -> str:
    return f"{noise}, width {width}" if len({w for _, w in comparisons}) > 1 else noise


def _memorised_first(column: "pd.Series[Any]") -> "pd.Series[Any]":
    return column.map(lambda v: "" if v == MEMORISED else v) if column.name == "arm" else column


def _with_spread(row: Mapping[Any, Any], name: str) -> str:
    spread = row[f"{name}_std"]
    return f"{row[name]:.3f}" + (f" ± {spread:.3f}" if pd.notna(spread) else "")


def _signed(row: Mapping[Any, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    spread = f" ({low:+.3f} to {high:+.3f})" if np.isfinite([low, high]).all() else ""
    return f"{row[name]:+.3f}{spread}"
