"""The runs of a noise-ratio study as tables: accuracies by arm, set against the law.

Arms: `memorised` is the last epoch of a plain run. `early-stopped` is the same run at the epoch
with the best accuracy on noisy labels of one fold of the held-out half, measured on the other fold,
and the other way round; no true label chooses anything. The others are regularised runs at their
last epoch.
"""

from typing import Any

import numpy as np
import pandas as pd

from dynamics.noise_law import NoiseKind, invert_law, law_accuracy, lowest_point
from dynamics.statistics import Estimate, mean_over_seeds, paired_difference
from dynamics.traces import Run, Study

MEMORISED, EARLY_STOPPED = "memorised", "early-stopped"
STEEP = 0.5
"""Slope of the law from which its inverse is used: .025 of accuracy are then .05 of ratio."""

TRAIN = ("accuracy", "train, noisy labels")
MEASURES = ["train_accuracy", "held_out_noisy", "held_out_true", "label_precision", "label_recall"]
COLUMNS = [
    *["run", "noise", "ratio", "true_class", "arm", "width", "seed", "ended_cleanly", "epochs"],
    *["train_accuracy", "held_out_noisy", "held_out_noisy_stderr", "held_out_true"],
    *["label_precision", "label_recall"],
]


def noise_table(study: Study) -> pd.DataFrame:
    """What each run of a noise-ratio study reached, in each arm that it has.

    Args:
        study: A study whose runs record accuracies of blocks `train, noisy labels`,
            `held-out, noisy labels` and `held-out, true labels`, and label precision and recall;
            the arm early-stopped needs them of the folds `held-out a` and `held-out b` as well.

    Returns:
        One row per run with values and arm: `run, noise, ratio, true_class, arm, width, seed,
        ended_cleanly, epochs, train_accuracy, held_out_noisy, held_out_noisy_stderr, held_out_true,
        label_precision, label_recall`. `ratio` is the share of wrong labels, true class excluded:
        where a run drew labels from all C classes, it is C⁻¹(C − 1) times the configured one.
    """
    records = []
    for run in study.runs:
        scalars = run.scalars()
        if scalars.empty:
            continue
        values = _by_epoch(scalars, "value")
        errors = _by_epoch(scalars, "stderr")
        about = _describe(run)
        plain = about["arm"] == "plain"
        about |= {"arm": MEMORISED} if plain else {}
        records.append(about | _at_the_end(values, errors))
        if plain and ("accuracy", "held-out a, noisy labels") in values:
            records.append(about | {"arm": EARLY_STOPPED} | _stopped_early(values, errors))
    return pd.DataFrame(records, columns=COLUMNS)


def _describe(run: Run) -> dict[str, Any]:
    config = run.config
    about = {name: config.get(name) for name in ("noise", "ratio", "width", "seed")}
    about |= {"run": run.name, "ended_cleanly": run.ended_cleanly}
    about |= {"arm": config.get("arm", "plain")}
    about["true_class"] = config.get("true_class", "excluded")
    if about["true_class"] == "included":
        n_classes = count_classes(run)
        about["ratio"] = config["ratio"] * (n_classes - 1) / n_classes
    return about


def _by_epoch(scalars: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per epoch, one column per (name, block)."""
    known = scalars[scalars["name"].isin(["accuracy", "label_precision", "label_recall"])]
    return known.pivot_table(
        index="epoch", columns=["name", "block"], values=column, aggfunc="last", dropna=False
    )


def _at_the_end(values: pd.DataFrame, errors: pd.DataFrame) -> dict[str, Any]:
    last: Any = values.index.max()
    return {"epochs": int(last) + 1, **_measures(values, errors, last, "held-out")}


def _stopped_early(values: pd.DataFrame, errors: pd.DataFrame) -> dict[str, Any]:
    """Mean over both ways of choosing the epoch on one fold and measuring on the other."""
    ways: list[dict[str, Any]] = []
    for chosen_on, measured_on in (("held-out a", "held-out b"), ("held-out b", "held-out a")):
        best: Any = values["accuracy", f"{chosen_on}, noisy labels"].idxmax()
        ways.append({"epochs": int(best) + 1, **_measures(values, errors, best, measured_on)})
    mean: Any = pd.DataFrame(ways).mean().to_dict()
    mean["held_out_noisy_stderr"] /= np.sqrt(2)  # of the mean of two folds
    return {**mean, "epochs": round(mean["epochs"])}


def _measures(values: pd.DataFrame, errors: pd.DataFrame, epoch: Any, block: str) -> dict[str, Any]:
    value: Any = values.loc[epoch].get
    noisy = ("accuracy", f"{block}, noisy labels")
    stderr = errors.loc[epoch].get(noisy, float("nan"))
    return {
        "train_accuracy": value(TRAIN, float("nan")),
        "held_out_noisy": value(noisy, float("nan")),
        "held_out_noisy_stderr": stderr,
        "held_out_true": value(("accuracy", f"{block}, true labels"), float("nan")),
        "label_precision": value(("label_precision", block), float("nan")),
        "label_recall": value(("label_recall", block), float("nan")),
    }


def count_classes(run: Run) -> int:
    """Number of classes C that a run's roster names."""
    return int(run.roster()[["label", "true_label"]].max().max()) + 1


def summarise_noise_table(table: pd.DataFrame, *, n_classes: int) -> pd.DataFrame:
    """Runs of a noise-ratio study, averaged over seeds and set against the law.

    Args:
        table: `noise_table(study)`.
        n_classes: Number of classes C.

    Returns:
        One row per arm, width, kind and ratio: `arm, width, noise, ratio, n_runs, epochs_low,
        epochs_high`; mean and standard deviation (`<name>_std`, missing for one run) of each
        accuracy, of label precision and recall, and of `ratio_by_law`, the inverted law; `law`, and
        `deviation` = mean − law with its interval over seeds (`deviation_low, deviation_high`,
        Student's t, missing for one run).
    """
    keys = ["arm", "width", "noise", "ratio"]
    records = []
    groups: Any = table.groupby(keys, dropna=False, sort=True)
    for levels, runs in groups:
        record: dict[str, Any] = dict(zip(keys, levels, strict=True)) | {"n_runs": len(runs)}
        law: dict[str, Any] = {"kind": record["noise"], "n_classes": n_classes}
        accuracies = runs["held_out_noisy"].to_numpy()
        inverted = pd.Series([invert_law(a, **law) for a in accuracies])
        record |= {"epochs_low": runs["epochs"].min(), "epochs_high": runs["epochs"].max()}
        for name, values in {**runs[MEASURES], "ratio_by_law": inverted}.items():
            record |= {str(name): values.mean(), f"{name}_std": values.std(ddof=1)}
        record["law"] = float(law_accuracy(record["ratio"], **law))
        off = mean_over_seeds(accuracies - record["law"])
        record |= {"deviation": off.value, "deviation_low": off.low, "deviation_high": off.high}
        records.append(record)
    return pd.DataFrame(records)


def largest_deviation(
    table: pd.DataFrame, *, kind: NoiseKind, n_classes: int
) -> tuple[float, float]:
    """The run that is furthest from the law.

    Args:
        table: Rows of `noise_table(study)` of one kind, at least one.
        kind: Where wrong labels go.
        n_classes: Number of classes C.

    Returns:
        Its accuracy on held-out noisy labels minus the law, and its noise ratio.
    """
    ratio = table["ratio"].to_numpy(dtype=np.float64)
    law = law_accuracy(ratio, kind=kind, n_classes=n_classes)
    off = table["held_out_noisy"].to_numpy(dtype=np.float64) - law
    worst = int(np.abs(off).argmax())
    return float(off[worst]), float(ratio[worst])


def memorisation_needed(summary: pd.DataFrame, *, tolerance: float) -> float:
    """Training accuracy from which on every setting is within the tolerance of the law.

    Args:
        summary: `summarise_noise_table` of all arms.
        tolerance: Largest deviation that counts as following the law.

    Returns:
        The lowest training accuracy among the settings that are at or above the last failing one;
        NaN if the setting with the highest training accuracy fails itself.
    """
    ordered = summary.sort_values("train_accuracy", ascending=False, kind="stable")
    fails = ordered["deviation"].abs().to_numpy() > tolerance
    holding = int(fails.argmax()) if fails.any() else len(fails)
    return float(ordered["train_accuracy"].iloc[holding - 1]) if holding else float("nan")


def compare_arms(table: pd.DataFrame, *, arm: str, n_classes: int) -> pd.DataFrame:
    """How far an arm lies above full memorisation, and above the law.

    Args:
        table: `noise_table(study)`.
        arm: An arm other than memorised.
        n_classes: Number of classes C.

    Returns:
        One row per width, kind and ratio that both arms have: `noise, ratio, width, n_seeds`, and
        `above_memorised, above_law` with intervals (`_low`, `_high`): the paired difference in
        accuracy on held-out noisy labels over seeds, and the arm's own deviation from the law.
    """
    keys = ["noise", "ratio", "width", "seed"]
    both = table[table["arm"] == MEMORISED].merge(
        table[table["arm"] == arm], on=keys, suffixes=("", "_arm")
    )
    records = []
    groups: Any = both.groupby(keys[:-1], dropna=False)
    for levels, rows in groups:
        noise, ratio, width = levels
        ours, theirs = rows["held_out_noisy_arm"].to_numpy(), rows["held_out_noisy"].to_numpy()
        law = float(law_accuracy(ratio, kind=noise, n_classes=n_classes))
        record: dict[str, Any] = {
            "arm": arm,
            "noise": noise,
            "ratio": ratio,
            "width": width,
            "n_seeds": len(rows),
        }
        record |= _spread("above_memorised", paired_difference(ours, theirs))
        records.append(record | _spread("above_law", mean_over_seeds(ours - law)))
    return pd.DataFrame(records)


def _spread(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def estimate_ratios(table: pd.DataFrame, mixtures: pd.DataFrame, *, n_classes: int) -> pd.DataFrame:
    """The noise ratio as estimated without a true label, against the truth.

    Args:
        table: `noise_table(study)`; its memorised arm is used.
        mixtures: `mixture_rates(study)`.
        n_classes: Number of classes C.

    Returns:
        One row per kind, ratio and estimator (`inverted law`, `loss mixture`): `noise, ratio,
        estimator, estimate, low, high, n, usable`, with intervals over seeds. `usable` is False
        where the law falls by less than `STEEP` per unit of ratio, near its minimum and past it,
        or the mixture's confidence is below the bar in a seed.
    """
    runs = table[table["arm"] == MEMORISED].merge(mixtures, on="run", how="left")
    records = []
    groups: Any = runs.groupby(["noise", "ratio"])
    for (noise, ratio), rows in groups:
        law: dict[str, Any] = {"kind": noise, "n_classes": n_classes}
        inverted = np.array([invert_law(a, **law) for a in rows["held_out_noisy"]])
        falls = 2 * (1 - ratio / lowest_point(**law)) >= STEEP  # minus the derivative of P
        separates = bool(rows["separates"].fillna(False).astype(bool).all())
        for name, values, usable in (
            ("inverted law", inverted, falls),
            ("loss mixture", rows["noise_rate"].to_numpy(dtype=float), separates),
        ):
            values = values[np.isfinite(values)]
            if len(values):
                record: dict[str, Any] = {
                    "noise": noise,
                    "ratio": ratio,
                    "estimator": name,
                    "n": len(values),
                }
                of_seeds = mean_over_seeds(values)
                record |= {"estimate": of_seeds.value, "low": of_seeds.low, "high": of_seeds.high}
                records.append(record | {"usable": usable})
    return pd.DataFrame(records)
