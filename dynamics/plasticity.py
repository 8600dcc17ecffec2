"""How plastic a network is over training, as read off its Fisher trace: rise, peak and fall.

Achille et al. read a critical period off the trace of the Fisher information: it rises while the
network takes in the data, peaks, and falls while training goes on. Whether it does is asked of each
run of a study by itself, so that the answer comes with its number of seeds.

Reference:
    Achille, Rovere and Soatto, ICLR 2019, arXiv:1711.08856, Sec. 3.
"""

import numpy as np
import pandas as pd

from dynamics.curves import describe_curve
from dynamics.statistics import proportion
from dynamics.traces import Run, Study

FALL = 0.5
"""Share of its peak that a trace must have fallen to for the fall to count."""

_CURVES = {
    "fisher_trace": ("fisher_trace", "total"),
    "empirical_fisher_trace": ("empirical_fisher_trace", "total"),
    "train_accuracy": ("accuracy", "train"),
    "test_accuracy": ("accuracy", "test"),
}


def plasticity_curves(study: Study) -> pd.DataFrame:
    """Fisher traces and accuracies of every run over epochs.

    Args:
        study: A study whose runs recorded `fisher_trace`.

    Returns:
        One row per run, curve and epoch: `run`, the study's factors, `curve` (fisher_trace,
        empirical_fisher_trace, train_accuracy, test_accuracy), `epoch, value, stderr`.
    """
    tables = [_curves_of(run, list(study.factors)) for run in study.runs]
    columns = ["run", *study.factors, "curve", "epoch", "value", "stderr"]
    return pd.concat([pd.DataFrame(columns=columns), *tables]) if tables else pd.DataFrame()


def _curves_of(run: Run, factors: list[str]) -> pd.DataFrame:
    scalars = run.scalars()
    parts = []
    for curve, (name, block) in _CURVES.items():
        rows = scalars[(scalars["name"] == name) & (scalars["block"] == block)]
        part = rows[["epoch", "value", "stderr"]].copy()
        part.insert(0, "curve", curve)
        parts.append(part)
    table = pd.concat(parts)
    for factor in reversed(factors):
        table.insert(0, factor, run.config.get(factor))
    table.insert(0, "run", run.name)
    return table


def plasticity_table(study: Study) -> pd.DataFrame:
    """What the Fisher trace of each run did.

    Args:
        study: A study whose runs recorded `fisher_trace` and training accuracy by epoch.

    Returns:
        One row per run that has measured the trace twice or more: `run`, the study's factors,
        `ended_cleanly`; `first`, `peak`, `peak_stderr`, `peak_epoch`, `last`, `last_stderr` of the
        trace; `last_over_peak` and `last_over_peak_stderr`, and `empirical_last_over_peak` of the
        empirical trace; `train_accuracy_at_peak`, `train_accuracy`, `test_accuracy` (last);
        `has_interior_peak`, `falls` (to half of the peak or less), `still_learns` (training
        accuracy at the end above that at the peak by more than 1.96 standard errors), and
        `rises_and_falls`, all three.
    """
    curves = plasticity_curves(study)
    rows = []
    for run in study.runs:
        mine = curves[curves["run"] == run.name] if len(curves) else curves
        if len(mine) and (mine["curve"] == "fisher_trace").sum() >= 2:
            levels = {factor: run.config.get(factor) for factor in study.factors}
            about = {"run": run.name, **levels, "ended_cleanly": run.ended_cleanly}
            rows.append(about | _phases(mine))
    return pd.DataFrame(rows)


def summarise_plasticity(table: pd.DataFrame) -> pd.DataFrame:
    """How many seeds of each setting rise and fall.

    Args:
        table: Rows of `plasticity_table` with a column `setting`.

    Returns:
        One row per setting, in the order of the table: `n` seeds; `n_rises_and_falls`, with the
        share's 95 % Wilson interval `low`, `high`; `n_has_interior_peak`, `n_falls`; medians over
        seeds of `peak_epoch`, `last_over_peak` and `empirical_last_over_peak`; means of
        `train_accuracy` and `test_accuracy`.
    """
    rows = []
    for setting in dict.fromkeys(table["setting"]):
        runs = table[table["setting"] == setting]
        whole = proportion(int(runs["rises_and_falls"].sum()), len(runs))
        row = {"setting": setting, "n": len(runs), "low": whole.low, "high": whole.high}
        for name in ("rises_and_falls", "has_interior_peak", "falls"):
            row[f"n_{name}"] = int(runs[name].sum())
        for name in ("peak_epoch", "last_over_peak", "empirical_last_over_peak"):
            row[name] = runs[name].median() if name in runs else float("nan")
        for name in ("train_accuracy", "test_accuracy"):
            row[name] = runs[name].mean() if name in runs else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def curves_over_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """The middle of each curve over the seeds of a setting.

    Args:
        curves: Rows of `plasticity_curves` with a column `setting`.

    Returns:
        One row per setting, curve and epoch: `n` seeds, `mean`, `stderr` (of the mean, from the
        spread between seeds; missing for one seed) and `median`.
    """
    keys = ["setting", "curve", "epoch"]
    known = curves.dropna(subset=["value"]).astype({"value": float})
    found = known.groupby(keys, sort=False)["value"].agg(["size", "mean", "sem", "median"])
    return found.rename(columns={"size": "n", "sem": "stderr"}).reset_index()


def _phases(curves: pd.DataFrame) -> dict[str, float | bool]:
    by_curve = {name: rows for name, rows in curves.groupby("curve") if rows["value"].notna().any()}
    trace = describe_curve(by_curve["fisher_trace"])
    ratio = trace.last / trace.peak
    error = ratio * np.hypot(trace.last_stderr / trace.last, trace.peak_stderr / trace.peak)
    found: dict[str, float | bool] = {
        "first": trace.first,
        "peak": trace.peak,
        "peak_stderr": trace.peak_stderr,
        "peak_epoch": trace.peak_epoch,
        "last": trace.last,
        "last_stderr": trace.last_stderr,
        "last_over_peak": ratio,
        "last_over_peak_stderr": float(error),
        "has_interior_peak": trace.has_interior_peak,
        "falls": ratio <= FALL,
    }
    empirical = by_curve.get("empirical_fisher_trace")
    if empirical is not None:
        shape = describe_curve(empirical)
        found["empirical_last_over_peak"] = shape.last / shape.peak
    learns = False
    if "train_accuracy" in by_curve:
        at_peak, at_peak_error = _at(by_curve["train_accuracy"], trace.peak_epoch)
        last, last_error = _at(by_curve["train_accuracy"], None)
        learns = last - at_peak > 1.96 * np.hypot(at_peak_error, last_error)
        found |= {"train_accuracy_at_peak": at_peak, "train_accuracy": last}
    if "test_accuracy" in by_curve:
        found["test_accuracy"] = _at(by_curve["test_accuracy"], None)[0]
    found["still_learns"] = bool(learns)
    found["rises_and_falls"] = bool(trace.has_interior_peak and ratio <= FALL and learns)
    return found


def _at(rows: pd.DataFrame, epoch: int | None) -> tuple[float, float]:
    """Value and error of a curve at the last epoch up to the given one, or at its end."""
    rows = rows.sort_values("epoch")
    known = rows if epoch is None else rows[rows["epoch"] <= max(epoch, rows["epoch"].iloc[0])]
    return float(known["value"].iloc[-1]), float(known["stderr"].iloc[-1])
