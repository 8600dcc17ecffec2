"""The tables of study `weight-ratio`: one row per run and epoch, of the runs that have ended."""

from collections.abc import Callable

import pandas as pd

from dynamics.traces import Run, Study
from dynamics.weight_effect import weighting_over_epochs


def predicted_fractions(study: Study) -> pd.DataFrame:
    """Fractions of each evaluation set assigned to the first class, in the runs that have ended.

    Args:
        study: A study named weight-ratio.

    Returns:
        Columns `run, arm, log2_ratio, seed, epoch` (−1 before training), `set, frac, n`.
    """

    def read(run: Run) -> pd.DataFrame:
        rows = run.scalars("predicted_frac")
        rows = rows[rows["block"].str.endswith(": class 0")]
        names = rows["block"].str.removesuffix(": class 0")
        table = pd.DataFrame({"epoch": rows["epoch"], "set": names, "frac": rows["value"]})
        return table.assign(n=rows["n"])

    return _of_each_run(study, "images", read)


def held_out_losses(study: Study) -> pd.DataFrame:
    """Weighted losses on held-out data, and accuracies, in the runs that have ended.

    Args:
        study: A study named weight-ratio.

    Returns:
        Columns `run, arm, log2_ratio, seed, epoch, loss, held_out_accuracy, train_accuracy` (not in
        every epoch).
    """

    def read(run: Run) -> pd.DataFrame:
        rows = run.scalars()
        rows = rows.assign(what=rows["name"] + " " + rows["block"].astype(str))
        names = {
            "weighted_loss held-out": "loss",
            "accuracy held-out": "held_out_accuracy",
            "accuracy train": "train_accuracy",
        }
        rows = rows[rows["what"].isin(names)]
        table = rows.pivot(index="epoch", columns="what", values="value").rename(columns=names)
        return table.reset_index()

    return _of_each_run(study, "images", read)


def plane_angles(study: Study) -> pd.DataFrame:
    """Directions on the separable plane against the one of the largest margin.

    Args:
        study: A study named weight-ratio.

    Returns:
        Columns `run, arm` (linear or MLP), `log2_ratio, seed, step, angle` (degrees), `frac` (of a
        grid that is assigned to the first class).
    """

    def read(run: Run) -> pd.DataFrame:
        rows = run.scalars()
        table = rows.pivot(index="step", columns="name", values="value").reset_index()
        return table.rename(columns={"predicted_frac": "frac"})[["step", "angle", "frac"]]

    return _of_each_run(study, "plane", read)


def weighting_by_run(study: Study) -> pd.DataFrame:
    """What the weights got of the gradient, and their reach, in the runs that have ended.

    Args:
        study: A study named weight-ratio.

    Returns:
        Columns `run, arm, log2_ratio, seed` and those of `weighting_over_epochs`; runs without
        weights, or with equal ones, have no rows.
    """
    return _of_each_run(study, "images", weighting_over_epochs)


def _of_each_run(study: Study, problem: str, read: Callable[[Run], pd.DataFrame]) -> pd.DataFrame:
    """Tables of a problem's runs under each other, with the levels of their factors."""
    tables = []
    for run in study.runs:
        if run.ended_cleanly and run.config.get("problem") == problem:
            table = read(run)
            levels = {"run": run.name}
            levels |= {key: run.config[key] for key in ("arm", "log2_ratio", "seed")}
            for place, (key, level) in enumerate(levels.items()):
                table.insert(place, key, level)
            tables.append(table)
    columns = ["run", "arm", "log2_ratio", "seed"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
