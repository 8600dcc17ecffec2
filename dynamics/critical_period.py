"""What deficits at different times cost: drops, the critical window, and what explains them.

Units are seeds: a run with a deficit is compared with the run without one that shares its seed,
network and learning-rate arm. A drop is the final accuracy of the latter minus that of the former.

References:
    Achille, Rovere and Soatto, ICLR 2019. Testing in a fixed order: Westfall and Krishen, Journal
    of Statistical Planning and Inference 99, 2001.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import isotonic_regression

from dynamics.statistics import (
    Estimate,
    hierarchical_bootstrap,
    holm,
    mean_over_seeds,
    paired_difference,
)
from dynamics.traces import Run, Study

SERIES = ["network", "deficit", "rate"]
ALPHA = 0.05

RateExplanation = Literal[
    "rate confound", "critical period", "partly the rate", "no drop", "not resolved"
]


@dataclass(frozen=True, slots=True)
class CriticalWindow:
    """Onsets at which a deficit in a window costs accuracy.

    Attributes:
        opens: First onset at which it does; None where it does at none.
        closes: First onset after that at which it does no longer; None where it still does at the
            last, or never does.
        p_values: One-sided p-value of each onset, adjusted after Holm.
        n: Seeds at the onset that has fewest.
    """

    opens: int | None
    closes: int | None
    p_values: tuple[float, ...]
    n: int


@dataclass(frozen=True, slots=True)
class RateVerdict:
    """Whether a drop is the deficit's doing or the decaying learning rate's.

    Attributes:
        explanation: `rate confound`: the decayed arm drops, each other one does not, and the
            difference is resolved. `critical period`: every arm drops, and none by less than half
            of the decayed one's mean. `partly the rate`: some arm's drop is resolved to be smaller,
            yet not all are gone. `no drop`: no arm drops. `not resolved`: anything else.
        until: End t0 of the deficit, the largest one run.
        drops: Drop of each arm.
        differences: Drop of the decayed arm minus that of each other one, paired by seed.
    """

    explanation: RateExplanation
    until: int
    drops: dict[str, Estimate]
    differences: dict[str, Estimate]


def critical_table(study: Study) -> pd.DataFrame:
    """How each run of a critical-period study ended.

    Args:
        study: A study whose runs recorded accuracy on train and test.

    Returns:
        One row per run: `run`, the study's factors, `ended_cleanly`, `train_accuracy` and
        `test_accuracy` at the end, and `drop`: final test accuracy of the run without a deficit
        that shares network, rate and seed, minus its own; missing where that has not ended. The
        reset arm is compared with the decayed one's, which without a deficit is the same training.
    """
    rows = [_row_of(run, list(study.factors)) for run in study.runs]
    columns = ["run", *study.factors, "ended_cleanly", "train_accuracy", "test_accuracy"]
    table = pd.DataFrame(rows, columns=columns)
    control = table[table["deficit"].eq("none") & table["ended_cleanly"].astype(bool)]
    known = control.set_index(["network", "rate", "seed"])["test_accuracy"]
    keys = zip(
        table["network"], table["rate"].replace("reset", "decayed"), table["seed"], strict=True
    )
    without = pd.Series([known.get(key, np.nan) for key in keys], table.index, dtype=float)
    table["drop"] = without - table["test_accuracy"]
    return table


def _row_of(run: Run, factors: list[str]) -> dict[str, object]:
    scalars = run.scalars()
    accuracy = scalars[scalars["name"] == "accuracy"].sort_values("epoch", kind="stable")
    last = accuracy.groupby("block")["value"].last()
    levels = {factor: run.config.get(factor) for factor in factors}
    ends = {f"{block}_accuracy": last.get(block, np.nan) for block in ("train", "test")}
    return {"run": run.name, **levels, "ended_cleanly": run.ended_cleanly, **ends}


def removal_drops(table: pd.DataFrame) -> pd.DataFrame:
    """The drop against the end t0 of a deficit that begins with training.

    The monotone fit pools neighbouring t0 so that the drop never falls with t0, beginning from 0;
    over seeds it is bootstrapped. Where the truth is flat, a monotone fit is too high at its end
    and too low at its beginning: verdicts rest on the plain paired drops.

    Args:
        table: Ended rows of `critical_table`.

    Returns:
        One row per network, deficit, rate and `until`: `drop, low, high, n` paired by seed,
        `p_value` (one-sided, that there is no drop), `accuracy, accuracy_low, accuracy_high`, and
        `monotone, monotone_low, monotone_high`, missing where no seed has every t0.
    """
    rows = []
    hit = table[(table["deficit"] != "none") & (table["onset"] == 0)]
    for keys, series in hit.groupby(SERIES, sort=False):
        by_seed = series.pivot_table(index="seed", columns="until", values="drop")
        fits = monotone_fit(by_seed.dropna().to_numpy())
        ends: Any = by_seed.columns
        for place, until in enumerate(ends):
            end = series[series["until"] == until]
            rows.append(
                dict(zip(SERIES, keys, strict=True))
                | {"until": int(until)}
                | _told("drop", mean_over_seeds(end["drop"].to_numpy()))
                | {"p_value": drop_p_value(end["drop"].to_numpy())}
                | _told("accuracy", mean_over_seeds(end["test_accuracy"].to_numpy()))
                | _told("monotone", fits[place] if fits else _unknown())
            )
    return pd.DataFrame(rows)


def control_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """Final accuracy without a deficit, by network and rate.

    Args:
        table: Ended rows of `critical_table`.

    Returns:
        One row per network and rate: `accuracy, accuracy_low, accuracy_high, n`; the reset arm has
        the decayed one's.
    """
    rows = []
    for (network, rate), runs in table[table["deficit"] == "none"].groupby(["network", "rate"]):
        found = _told("accuracy", mean_over_seeds(runs["test_accuracy"].to_numpy()))
        rows.append({"network": network, "rate": rate, **found})
        if rate == "decayed":
            rows.append({"network": network, "rate": "reset", **found})
    return pd.DataFrame(rows)


def monotone_fit(drops: np.ndarray, *, draws: int = 400, seed: int = 0) -> list[Estimate]:
    """Non-decreasing mean drop over t0, bootstrapped over seeds.

    Args:
        drops: Shape (seeds, ends), ends ascending.
        draws: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        One estimate per end; none for no seed.
    """
    if not len(drops):
        return []

    def fit(seeds: list[np.ndarray], place: int) -> float:
        mean = np.concatenate([[0.0], np.mean(seeds, axis=0)])
        weights = np.ones(len(mean))
        weights[0] = 1e6  # without a deficit there is no drop
        return float(isotonic_regression(mean, weights=weights).x[1 + place])

    groups, places = list(drops), range(drops.shape[1])
    if len(groups) == 1:
        nan = float("nan")
        return [Estimate(fit(groups, place), nan, nan, 1, "one seed") for place in places]
    return [
        hierarchical_bootstrap(partial(fit, place=place), groups, draws=draws, seed=seed)
        for place in places
    ]


def smallest_harmful_end(drops: pd.DataFrame, *, alpha: float = ALPHA) -> int | None:
    """The smallest t0 from which on a deficit costs accuracy.

    Ends are tested from the largest down and testing stops at the first that shows no drop, so that
    the chance of any false alarm is at most `alpha` without a correction.

    Args:
        drops: Rows of `removal_drops` of one network, deficit and rate.
        alpha: Level of the tests.

    Returns:
        That t0; None where not even the largest shows a drop.
    """
    found = None
    for row in drops.sort_values("until", ascending=False).to_dict("records"):
        if not row["p_value"] < alpha:
            break
        found = int(row["until"])
    return found


def sensitivity_table(table: pd.DataFrame) -> pd.DataFrame:
    """The drop against the onset of a deficit in a window of fixed length.

    Args:
        table: Ended rows of `critical_table`.

    Returns:
        One row per network, deficit, rate and `onset`: `length`, `sensitivity, low, high, n` paired
        by seed, and `p_value` (one-sided). Only series with two onsets or more; of several lengths
        the one with most onsets.
    """
    hit = table[table["deficit"] != "none"]
    hit = hit.assign(length=hit["until"] - hit["onset"])
    rows = []
    for keys, series in hit.groupby(SERIES, sort=False):
        counts: Any = series.groupby("length")["onset"].nunique()
        length = int(counts.idxmax())
        if counts.max() < 2:
            continue
        mine = series[series["length"] == length]
        groups: Any = mine.groupby("onset")
        for onset, runs in groups:
            rows.append(
                dict(zip(SERIES, keys, strict=True))
                | {"onset": int(onset), "length": length}
                | _told("sensitivity", mean_over_seeds(runs["drop"].to_numpy()))
                | {"p_value": drop_p_value(runs["drop"].to_numpy())}
            )
    return pd.DataFrame(rows)


def find_critical_window(rows: pd.DataFrame, *, alpha: float = ALPHA) -> CriticalWindow:
    """Where sensitivity leaves zero, and where it returns.

    Args:
        rows: Rows of `sensitivity_table` of one network, deficit and rate.
        alpha: Chance of an alarm at any onset where there is no sensitivity at all.

    Returns:
        The first unbroken stretch of onsets at which a deficit costs accuracy.
    """
    rows = rows.sort_values("onset")
    onsets = [int(onset) for onset in rows["onset"]]
    adjusted = holm([1.0 if np.isnan(p) else float(p) for p in rows["p_value"]])
    hurts = [bool(p < alpha) for p in adjusted]
    p_values, n = tuple(float(p) for p in adjusted), int(rows["n"].min())
    if not any(hurts):
        return CriticalWindow(None, None, p_values, n)
    first = hurts.index(True)
    closed = [onset for onset, hurt in zip(onsets[first:], hurts[first:], strict=True) if not hurt]
    return CriticalWindow(onsets[first], closed[0] if closed else None, p_values, n)


def judge_rate(table: pd.DataFrame) -> RateVerdict | None:
    """Whether the drop of one network and deficit survives a rate that is fixed or reset.

    Args:
        table: Ended rows of `critical_table` of one network and deficit.

    Returns:
        The verdict at the largest t0 that the decayed arm and another one share; None without one.
    """
    runs = table[table["onset"] == 0].dropna(subset=["drop"])
    ends = {rate: set(rows["until"]) for rate, rows in runs.groupby("rate")}
    others = [rate for rate in ("fixed", "reset") if rate in ends]
    shared = ends.get("decayed", set()).intersection(*(ends[rate] for rate in others))
    if not others or not shared:
        return None
    until = int(max(shared))
    by_rate = runs[runs["until"] == until].pivot_table(index="seed", columns="rate", values="drop")
    drops = {rate: mean_over_seeds(by_rate[rate].to_numpy()) for rate in ("decayed", *others)}
    differences = {
        rate: paired_difference(by_rate["decayed"].to_numpy(), by_rate[rate].to_numpy())
        for rate in others
    }
    return RateVerdict(_explain(drops, differences), until, drops, differences)


def _explain(drops: dict[str, Estimate], differences: dict[str, Estimate]) -> RateExplanation:
    drop = {rate: estimate.low > 0 for rate, estimate in drops.items()}
    smaller = {rate: estimate.low > 0 for rate, estimate in differences.items()}
    if not any(drop.values()):
        return "no drop" if all(np.isfinite(e.low) for e in drops.values()) else "not resolved"
    if not drop["decayed"]:
        return "not resolved"
    if all(smaller[rate] and not drop[rate] for rate in differences):
        return "rate confound"
    half = drops["decayed"].value / 2
    if all(drop[rate] and drops[rate].value >= half for rate in differences):
        return "critical period"
    return "partly the rate" if any(smaller.values()) else "not resolved"


def compare_deficits(table: pd.DataFrame, *, against: str = "blur") -> pd.DataFrame:
    """Whether other deficits cost at most half of what blur until the same t0 costs.

    Args:
        table: Ended rows of `critical_table`.
        against: The deficit to compare with.

    Returns:
        One row per network, rate, `until` and other deficit: `drop, low, high` of it, `n`,
        `against_drop`, `spare, spare_low, spare_high` (half of the drop under `against` minus its
        own, paired by seed), and `verdict`: `at most half`, `more than half`, or `not resolved`.
    """
    hit = table[(table["deficit"] != "none") & (table["onset"] == 0)].dropna(subset=["drop"])
    rows = []
    groups: Any = hit.groupby(["network", "rate", "until"])
    for (network, rate, until), runs in groups:
        by_seed = runs.pivot_table(index="seed", columns="deficit", values="drop")
        if against not in by_seed:
            continue
        for other in [name for name in by_seed if name != against]:
            both = by_seed[[against, other]].dropna()
            spare = paired_difference(both[against].to_numpy() / 2, both[other].to_numpy())
            verdict = "at most half" if spare.low > 0 else "not resolved"
            rows.append(
                {"network": network, "rate": rate, "until": int(until), "deficit": other}
                | _told("drop", mean_over_seeds(both[other].to_numpy()))
                | {"against_drop": float(both[against].mean())}
                | _told("spare", spare)
                | {"verdict": "more than half" if spare.high < 0 else verdict}
            )
    return pd.DataFrame(rows)


def drop_p_value(drops: Sequence[float] | np.ndarray) -> float:
    """One-sided p-value that the mean drop over seeds is not above 0, by Student's t.

    Args:
        drops: One drop per seed; missing ones are left out.

    Returns:
        The p-value; NaN for fewer than two seeds.
    """
    values = np.asarray(drops, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return float("nan")
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    if error == 0:
        return 0.0 if values.mean() > 0 else 1.0
    return float(stats.t.sf(values.mean() / error, len(values) - 1))


def _told(name: str, estimate: Estimate) -> dict[str, float | int]:
    prefix = "" if name in {"drop", "sensitivity"} else f"{name}_"
    told = {name: estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}
    return told if prefix else told | {"n": estimate.n}


def _unknown() -> Estimate:
    return Estimate(float("nan"), float("nan"), float("nan"), 0, "no seed has every end")
