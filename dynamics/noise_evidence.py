"""What the runs of a noise-ratio study say beyond their accuracy: losses, and who is confused."""

from typing import Any

import numpy as np
import pandas as pd

from dynamics.label_noise import SEPARATES, choose_epoch, fit_each_epoch
from dynamics.noise_law import NoiseKind, transition_matrix
from dynamics.traces import Study, TraceError


def mixture_rates(study: Study) -> pd.DataFrame:
    """The loss mixture's noise rate of each plain run, from its training losses alone.

    Args:
        study: A study whose runs record losses.

    Returns:
        One row per finished plain run that a mixture can be fitted to: `run, epoch, noise_rate,
        confidence, separates`, of the epoch that `choose_epoch` chooses.
    """
    records = []
    for run in study.runs:
        if not run.ended_cleanly or run.config.get("arm", "plain") != "plain":
            continue
        fits = fit_each_epoch(run)
        try:
            chosen = fits[fits["epoch"] == choose_epoch(fits)].iloc[0]
        except TraceError:
            continue  # no losses were recorded, or all are equal: there is no estimate to show
        record = {"run": run.name, **chosen[["epoch", "noise_rate", "confidence"]].to_dict()}
        records.append(record | {"separates": chosen["confidence"] >= SEPARATES})
    columns = ["run", "epoch", "noise_rate", "confidence", "separates"]
    return pd.DataFrame(records, columns=columns)


def prediction_shares(study: Study) -> pd.DataFrame:
    """Where the held-out predictions of each class go: kept, flipped as the labels are, or neither.

    The law takes the confusion of predictions M to be the transition matrix T, so that nothing is
    neither. With equally frequent classes the accuracy on noisy labels is the mean over classes of
    Σ_j M_cj T_cj, so that kept and neither alone explain most of what is missing from the law.

    Args:
        study: A study whose runs record `confusion` at their end.

    Returns:
        One row per finished run and class: `run, noise, ratio, arm, width, seed, label, kept,
        flipped, neither, expected`, where `expected` is that class's Σ_j M_cj T_cj and `kept`,
        `flipped` and `neither` add up to 1. Flipped: to any class that wrong labels go to.
    """
    records = []
    record: dict[str, Any]
    for run in study.runs:
        scalars = run.scalars("confusion")
        if scalars.empty or not run.ended_cleanly:
            continue
        confusion = _matrix(scalars)
        config = run.config
        kind: NoiseKind = config["noise"]
        transition = transition_matrix(config["ratio"], kind=kind, n_classes=len(confusion))
        reached = transition_matrix(0.5, kind=kind, n_classes=len(confusion)) > 0
        factors = {f: config.get(f) for f in ("noise", "ratio", "arm", "width", "seed")}
        for label, row in enumerate(confusion):
            kept, allowed = float(row[label]), float(row[reached[label]].sum())
            record = {"run": run.name, **factors, "label": label, "kept": kept}
            record |= {"flipped": allowed - kept, "neither": 1 - allowed}
            records.append(record | {"expected": float(row @ transition[label])})
    columns = ["run", "noise", "ratio", "arm", "width", "seed", "label"]
    return pd.DataFrame(records, columns=[*columns, "kept", "flipped", "neither", "expected"])


def _matrix(scalars: pd.DataFrame) -> np.ndarray:
    """The confusion recorded as blocks `true as predicted`, shape (C, C)."""
    cells = scalars["block"].str.split(" as ", expand=True).astype(int)
    size = int(cells.to_numpy().max()) + 1
    confusion = np.zeros((size, size))
    confusion[cells[0], cells[1]] = scalars["value"]
    return confusion


def shares_by_ratio(shares: pd.DataFrame) -> pd.DataFrame:
    """Prediction shares averaged over classes and seeds, beside what the law takes them to be.

    Args:
        shares: `prediction_shares(study)`.

    Returns:
        One row per arm, width, kind and ratio: mean `kept, flipped, neither`, and `missing` =
        (1 − ε) · neither, about what the predictions that are neither cost in accuracy on noisy
        labels if they had been kept.
    """
    keys = ["arm", "width", "noise", "ratio"]
    means = shares.groupby(keys, dropna=False)[["kept", "flipped", "neither"]].mean().reset_index()
    return means.assign(missing=(1 - means["ratio"]) * means["neither"])
