"""Figures and tables of the critical-period report, from tables of `dynamics` to a page's parts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.critical_figures import (
    plot_deficit_removal,
    plot_deficits,
    plot_fisher_phases,
    plot_window_sensitivity,
)
from reports.page import Cell, PageTable, Panel

RATES = ("decayed", "fixed", "reset")


def removal_panel(runs: pd.DataFrame, drops: pd.DataFrame, control: pd.DataFrame) -> Panel:
    """Final accuracy against the end of the deficit, networks by rate arms."""
    name, title = "deficit_removal", "Final accuracy against the epoch at which the deficit ends"
    hit = runs[(runs["deficit"] == "blur") & (runs["onset"] == 0)]
    drops = drops[drops["deficit"] == "blur"]
    networks = list(dict.fromkeys(drops["network"]))
    rates = [rate for rate in RATES if rate in set(drops["rate"])]

    def draw(axes: Any) -> None:
        grid = np.atleast_1d(axes).reshape(len(networks), len(rates))
        grid[0, 0].set_ylim(hit["test_accuracy"].min() - 0.01, 1)  # before lines' ends are named
        for row, network in enumerate(networks):
            for column, rate in enumerate(rates):
                tables = [_of(table, network, rate) for table in (hit, drops, control)]
                ax = plot_deficit_removal(*tables, ax=grid[row, column])
                ax.set_title(f"{network}, rate {rate}")

    caption = (
        "Dashed: training without a deficit. Bold: mean over seeds with its 95 % interval, dots: "
        "runs; the same number of clean epochs after each t0. A line that falls in the decayed arm "
        "alone is the learning rate's doing."
    )
    tables = {name: drops, f"{name}_runs": hit, f"{name}_control": control}
    return Panel(name, title, caption, draw, tables, shape=(len(networks), len(rates)))


def deficit_panel(table: pd.DataFrame) -> Panel:
    """Drops under the other deficits, one axes for each network."""
    name, title = "deficits", "What other deficits cost, beside half of what blur costs"
    if table.empty:
        return Panel(name, title, "", missing="Run the study with --deficit flip, say.")
    groups: Any = table.groupby(["network", "rate", "until"], sort=False)
    parts = list(groups)

    def draw(axes: Any) -> None:
        for ax, ((network, rate, until), rows) in zip(
            np.ravel(np.atleast_1d(axes)), parts, strict=True
        ):
            plot_deficits(rows, ax=ax)
            ax.set_title(f"{network}, rate {rate}, until {until}")

    caption = "Means over seeds, paired with the runs without a deficit, with 95 % intervals."
    return Panel(name, title, caption, draw, {name: table}, shape=(len(parts), 1))


def sensitivity_panel(
    sensitivity: pd.DataFrame, traces: Mapping[tuple[str, str], pd.DataFrame]
) -> Panel:
    """Drop against the onset of a window, beside the Fisher trace there."""
    name, title = "window_sensitivity", "Sensitivity to blur in a window, beside the Fisher trace"
    if not traces:
        return Panel(name, title, "", missing="Run the study with two --onsets or more.")
    settings = list(traces)
    blur = sensitivity[sensitivity["deficit"] == "blur"]

    def draw(axes: Any) -> None:
        for ax, (network, rate) in zip(np.ravel(np.atleast_1d(axes)), settings, strict=True):
            plot_window_sensitivity(_of(blur, network, rate), traces[network, rate], ax=ax)
            ax.set_title(f"{network}, rate {rate}")

    caption = (
        "Red: drop in final accuracy with its 95 % interval over seeds. Grey: Fisher trace of "
        "training without a deficit, at the epoch of the onset. If plasticity were what makes a "
        "deficit costly, the two would rise and fall together."
    )
    columns = 2 if len(settings) > 1 else 1
    shape = (-(-len(settings) // columns), columns)
    tables = {name: blur} | {
        f"{name}_trace_{'_'.join(key)}".replace(" ", "_"): trace for key, trace in traces.items()
    }
    return Panel(name, title, caption, draw, tables, shape=shape)


def fisher_panel(traces: pd.DataFrame, boundaries: pd.DataFrame) -> Panel:
    """Fisher traces with and without blur, networks by rate arms, phases marked."""
    name, title = "fisher_phases", "Fisher trace with and without blur, phases marked"
    if traces.empty:
        return Panel(name, title, "", missing="Add FisherTrace(data=probe_set).")
    networks = list(dict.fromkeys(traces["network"]))
    rates = [rate for rate in RATES if rate in set(traces["rate"])]

    def draw(axes: Any) -> None:
        grid = np.atleast_1d(axes).reshape(len(networks), len(rates))
        grid[0, 0].set(xlim=(-1, traces["epoch"].max()))
        grid[0, 0].set(ylim=(traces["value"].min() / 1.5, traces["value"].max() * 1.5))
        for row, network in enumerate(networks):
            for column, rate in enumerate(rates):
                mine = _of(traces, network, rate)
                if mine.empty:
                    continue
                ends = _of(boundaries, network, rate)
                until = int(mine["until"].max())
                ax = plot_fisher_phases(mine, ends, until=until, ax=grid[row, column])
                ax.set_title(f"{network}, rate {rate}")

    caption = (
        "Geometric means over seeds, bands ±1.96 standard errors of them; on clean images. "
        "Dotted with a band: boundary between phases and its 95 % interval. Black dashes: the end "
        "of the deficit."
    )
    tables = {name: traces, f"{name}_boundaries": boundaries}
    return Panel(name, title, caption, draw, tables, shape=(len(networks), len(rates)))


def drop_table(drops: pd.DataFrame) -> PageTable:
    """Drops against t0."""
    header = [
        "network",
        "deficit",
        "rate",
        "t0",
        "seeds",
        "final accuracy",
        "drop",
        "p",
        "monotone",
    ]
    rows = [
        [
            *(str(row[key]) for key in ("network", "deficit", "rate", "until", "n")),
            f"{row['accuracy']:.3f}",
            _interval(row, "drop", ""),
            f"{row['p_value']:.3f}",
            _interval(row, "monotone", "monotone_"),
        ]
        for row in drops.to_dict("records")
    ]
    note = (
        "Drop: final accuracy without the deficit minus with it, paired by seed, with Student's "
        "95 % interval; p one-sided. Monotone: isotonic fit over t0, bootstrapped over seeds."
    )
    return _table("Drop against the end of the deficit", note, header, rows)


def deficit_table(table: pd.DataFrame) -> PageTable:
    """Other deficits against blur."""
    header = ["network", "rate", "t0", "deficit", "drop", "drop under blur", "half of it − own"]
    rows = [
        [
            *(str(row[key]) for key in ("network", "rate", "until", "deficit")),
            _interval(row, "drop", ""),
            f"{row['against_drop']:+.3f}",
            f"{_interval(row, 'spare', 'spare_')}: {row['verdict']}",
        ]
        for row in table.to_dict("records")
    ]
    note = "The last column above zero: the deficit costs at most half of what blur costs."
    return _table("Other deficits beside blur", note, [*header], rows)


def window_table(table: pd.DataFrame) -> PageTable:
    """Sensitivity to windows."""
    header = ["network", "deficit", "rate", "onset", "epochs", "seeds", "drop", "p"]
    rows = [
        [
            *(str(row[k]) for k in ("network", "deficit", "rate", "onset", "length", "n")),
            _interval(row, "sensitivity", ""),
            f"{row['p_value']:.3f}",
        ]
        for row in table.to_dict("records")
    ]
    note = "p one-sided, for each onset by itself; the verdict adjusts them after Holm."
    return _table("Sensitivity to a deficit in a window", note, header, rows)


def phase_table(table: pd.DataFrame) -> PageTable:
    """Phases of the Fisher traces."""
    header = ["network", "rate", "setting", "peak ÷ first", "peak", "at epoch", "last ÷ peak"]
    rows = [
        [
            *(str(row[key]) for key in ("network", "rate", "setting")),
            *(_interval(row, k, f"{k}_", "{:.3g}") for k in ("rise", "peak", "peak_epoch", "fall")),
            str(row["n_boundaries"]),
            "yes" if row["has_interior_peak"] else "no interior peak",
        ]
        for row in table.to_dict("records")
    ]
    note = (
        "Of the geometric mean over seeds, smoothed; 95 % bootstrap intervals for the spread over "
        "seeds. Boundaries: change points of the log trace."
    )
    return _table(
        "Phases of the Fisher trace", note, [*header, "boundaries", "interior peak"], rows
    )


def _of(table: pd.DataFrame, network: str, rate: str) -> pd.DataFrame:
    if table.empty:
        return table
    return table[(table["network"] == network) & (table["rate"] == rate)]


def _interval(row: Any, name: str, prefix: str, form: str = "{:+.3f}") -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    if pd.isna(row[name]):
        return "–"
    text = form.format(row[name])
    return text if pd.isna(low) else f"{text} ({form.format(low)} to {form.format(high)})"


def _table(title: str, note: str, header: list[str], rows: list[list[str]]) -> PageTable:
    return PageTable(title, note, header, [[Cell(text) for text in row] for row in rows])
