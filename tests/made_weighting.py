"""Hand-made runs of an example-weighting study: shares, drops and costs known beforehand."""

import json

import numpy as np
from recorded import info, scalar, write_run

from dynamics import open_study
from dynamics.traces import SCHEMA_VERSION

FACTORS = ("task", "level", "scheme", "seed")
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
TRUE = np.array([0, 0, 0, 0, 1, 1, 0, 0])  # samples 6 and 7 are wrong in the task noise


def made_run(scheme, *, task="noise", level=0.4, seed=0, clean=True, **values):
    """A run as a dict; values are `weights` (epochs, 8), `norms`, `p_true`, `test`, `seconds`."""
    ones = np.ones((2, 8))
    told = {"weights": ones, "norms": ones, "p_true": 0.5 * ones, "test": [0.9, 0.7]}
    told |= {"seconds": 1.0, "prepared": 0.0, "corrected": None, "fit": 0.8}
    run = {"task": task, "level": level, "scheme": scheme, "seed": seed, "clean": clean}
    return run | told | values


def write_weighting_study(path, runs):
    path.mkdir(parents=True)
    levels = {f: sorted({run[f] for run in runs}) for f in FACTORS}
    content = {"schema_version": SCHEMA_VERSION, "name": "example-weighting", "factors": levels}
    (path / "study.json").write_text(json.dumps(content), encoding="utf-8")
    for run in runs:
        config = {"study": "example-weighting", **{f: run[f] for f in FACTORS}}
        name = f"{run['task']}-{run['level']:g}-{run['scheme']}-seed{run['seed']}"
        tables = {"samples": _samples(run), "scalars": _scalars(run), "roster": [_roster(run)]}
        write_run(path / name, tables, clean=run["clean"], about=info(config=config))
    return open_study(path)


def _roster(run):
    labels = LABELS if run["task"] == "noise" else np.array([0, 0, 1, 1, 1, 1, 1, 1])
    true = TRUE if run["task"] == "noise" else labels
    return {"sample_id": np.arange(8), "label": labels, "true_label": true}


def _samples(run):
    for epoch, rows in enumerate(zip(run["weights"], run["norms"], run["p_true"], strict=True)):
        weight, norm, p_true = (np.asarray(values, dtype=float) for values in rows)
        yield {
            "step": np.full(8, epoch),
            "epoch": np.full(8, epoch),
            "sample_id": np.arange(8),
            "weight": weight,
            "p_true": p_true,
            "output_grad_norm": np.where(weight > 0, norm, np.nan),
        }


def _scalars(run):
    rows = [scalar(-1, "prepare_seconds", run["prepared"], steps=1)]
    for epoch, accuracy in enumerate(run["test"]):
        rows.append(scalar(epoch, "accuracy", accuracy, "test", steps=1))
        rows.append(scalar(epoch, "accuracy", run["fit"], "train, given labels", steps=1))
        rows.append(scalar(epoch, "step_seconds", run["seconds"], n=10, steps=1))
        if run["task"] == "imbalance":
            rows.append(scalar(epoch, "accuracy", accuracy / 2, "test, rare class", steps=1))
        if run["corrected"] is not None:
            share, right = run["corrected"]
            rows.append(scalar(epoch, "corrected_fraction", share, steps=1))
            rows.append(scalar(epoch, "accuracy", right, "corrected labels", steps=1))
    return rows
