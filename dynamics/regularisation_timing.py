"""What a regulariser does when it is on early, late or in a window; what the Fisher trace tells.

Units are seeds: a run is compared with the runs that never and always have the regulariser and
share its seed.

References:
    Golatkar, Achille and Soatto, NeurIPS 2019, arXiv:1905.13277. Jastrzębski et al., ICML 2021,
    arXiv:2012.14193, for the opposite sign of the Fisher trace's early peak.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dynamics.statistics import Estimate, mean_over_seeds, paired_difference, rank_correlation
from dynamics.traces import Run, Study

INTEREST = 0.01
"""Difference in accuracy that would matter: one percentage point."""

POWER = 0.8


def timing_table(study: Study) -> pd.DataFrame:
    """How each run of a regularisation-timing study ended, and what its Fisher trace did.

    Args:
        study: A study whose runs recorded `fisher_trace` and accuracy on train and test.

    Returns:
        One row per run: `run`, the study's factors, `ended_cleanly`; `schedule` (never, always,
        until, from, window) and its `t0` (end of `until`, otherwise the beginning);
        `train_accuracy` and `test_accuracy` at the end, `peak_fisher` and `final_fisher`.
    """
    return pd.DataFrame([_row_of(run, list(study.factors)) for run in study.runs])


def _row_of(run: Run, factors: list[str]) -> dict[str, object]:
    scalars = run.scalars().sort_values("epoch", kind="stable")
    accuracy = scalars[scalars["name"] == "accuracy"].groupby("block")["value"].last()
    is_trace = (scalars["name"] == "fisher_trace") & (scalars["block"] == "total")
    trace = scalars.loc[is_trace, "value"].dropna()
    levels = {factor: run.config.get(factor) for factor in factors}
    start, end, epochs = (int(run.config[key]) for key in ("on_from", "on_until", "epochs"))
    schedule, t0 = _schedule(start, end, epochs)
    return {
        "run": run.name,
        **levels,
        "ended_cleanly": run.ended_cleanly,
        "schedule": schedule,
        "t0": t0,
        "train_accuracy": accuracy.get("train", np.nan),
        "test_accuracy": accuracy.get("test", np.nan),
        "peak_fisher": trace.max() if len(trace) else np.nan,
        "final_fisher": trace.iloc[-1] if len(trace) else np.nan,
    }


def _schedule(start: int, end: int, epochs: int) -> tuple[str, int]:
    if start >= end:
        return "never", 0
    if start == 0:
        return ("always", epochs) if end >= epochs else ("until", end)
    return ("from" if end >= epochs else "window"), start


def timing_effects(table: pd.DataFrame) -> pd.DataFrame:
    """The effect of each schedule on final accuracy, paired by seed.

    A window that begins with training is the schedule `until` as well.

    Args:
        table: Ended rows of `timing_table`.

    Returns:
        One row per regulariser, schedule and t0: `accuracy` and its `accuracy_low, accuracy_high`;
        `effect, low, high, n` against never; `loss, loss_low, loss_high`, what is lost against
        always; `verdict` on the effect (`helps`, `harms`, `not resolved`); and `seeds_needed` to
        resolve an effect of `INTEREST` with power `POWER`, given the spread between seeds.
    """
    never = table[table["schedule"] == "never"].set_index("seed")["test_accuracy"]
    rows = []
    for regulariser, runs in table[table["schedule"] != "never"].groupby("regulariser", sort=False):
        always = runs[runs["schedule"] == "always"].set_index("seed")["test_accuracy"]
        groups: Any = runs.groupby(["schedule", "t0"])
        for (schedule, t0), same in groups:
            mine = same.set_index("seed")["test_accuracy"]
            effect = _paired(mine, never)
            differences = (mine - never.reindex(mine.index)).dropna()
            spread = float(differences.std(ddof=1)) if len(differences) > 1 else float("nan")
            verdict = "helps" if effect.low > 0 else "harms" if effect.high < 0 else "not resolved"
            rows.append(
                {"regulariser": regulariser, "schedule": schedule, "t0": int(t0)}
                | _told("accuracy", mean_over_seeds(mine.to_numpy()))
                | _told("effect", effect)
                | {"low": effect.low, "high": effect.high, "n": effect.n}
                | _told("loss", _paired(always, mine))
                | {"verdict": verdict, "seeds_needed": seeds_needed(INTEREST, spread)}
            )
    return pd.DataFrame(rows)


def _paired(a: pd.Series, b: pd.Series) -> Estimate:
    seeds = a.index.intersection(b.index)
    return paired_difference(a.loc[seeds].to_numpy(), b.loc[seeds].to_numpy())


def seeds_needed(
    effect: float, spread: float, *, power: float = POWER, alpha: float = 0.05, most: int = 9999
) -> float:
    """Seeds at which a two-sided paired t-test resolves an effect.

    Args:
        effect: Mean difference to be resolved.
        spread: Standard deviation of the difference between seeds.
        power: Chance of resolving it.
        alpha: Level of the test.
        most: Where the search ends.

    Returns:
        The smallest number of seeds from 2 on; NaN for an unknown spread, infinity past `most`.

    Reference:
        Power from the non-central t distribution: Cohen, Statistical Power Analysis, 1988.
    """
    if not np.isfinite(spread):
        return float("nan")
    if spread == 0:
        return 2.0
    n = np.arange(2, most + 1)
    bar = stats.t.ppf(1 - alpha / 2, n - 1)
    reached = np.abs(effect) / spread * np.sqrt(n) > bar + stats.norm.ppf(power) - 2
    for count in n[reached]:  # the exact chance, where it is near
        shift = abs(effect) / spread * np.sqrt(count)
        if stats.nct.sf(stats.t.ppf(1 - alpha / 2, count - 1), count - 1, shift) >= power:
            return float(count)
    return float("inf")


def fisher_against_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation over runs of the Fisher trace's peak, and end, with final accuracy.

    Runs of one seed share initial weights and samples: of each value the mean of its seed is taken
    off first. Golatkar et al. report a positive sign for the peak and none for the end;
    Jastrzębski et al. a negative one for an early peak.

    Args:
        table: Ended rows of `timing_table`.

    Returns:
        One row for all runs and one per regulariser (its runs and those that never have one), each
        for `peak` and `final`: `runs`, `which`, `correlation, low, high, n`, and `sign` (positive,
        negative, or not resolved).
    """
    known = within_seeds(table)
    never = known["schedule"] == "never"
    regularisers = list(dict.fromkeys(known.loc[~never, "regulariser"]))
    groups = {"all": known} if len(regularisers) > 1 else {}
    groups |= {name: known[never | (known["regulariser"] == name)] for name in regularisers}
    rows = []
    for name, runs in groups.items():
        for which in ("peak", "final"):
            found = rank_correlation(
                runs[f"log_{which}_fisher"].to_numpy(), runs["accuracy"].to_numpy()
            )
            sign = "positive" if found.low > 0 else "negative" if found.high < 0 else "not resolved"
            rows.append(
                {"runs": name, "which": which, "correlation": found.value}
                | {"low": found.low, "high": found.high, "n": found.n, "sign": sign}
            )
    return pd.DataFrame(rows)


def within_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Final accuracy and Fisher traces of each run, less the mean of the runs of its seed.

    Args:
        table: Ended rows of `timing_table`.

    Returns:
        Its `regulariser, schedule, seed` with `accuracy`, `log_peak_fisher` and `log_final_fisher`
        (natural logs), centred; runs that lack one of them are left out.
    """
    known = table.dropna(subset=["test_accuracy", "peak_fisher", "final_fisher"])
    known = known[(known["peak_fisher"] > 0) & (known["final_fisher"] > 0)]
    found = known[["regulariser", "schedule", "seed"]].copy()
    values = {"accuracy": known["test_accuracy"].astype(float)}
    for which in ("peak_fisher", "final_fisher"):
        values[f"log_{which}"] = known[which].astype(float).map(math.log)
    for name, value in values.items():
        found[name] = value - value.groupby(known["seed"]).transform("mean")
    return found


def _told(name: str, estimate: Estimate) -> dict[str, float]:
    told = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {name: estimate.value} if name == "effect" else told
