"""What example weighting does: how hard each group of samples pulls, and what comes of it.

The pull of a sample on a step is w_i ‖∂ℓ_i/∂z_i‖₂: its weight times the norm of its loss's gradient
at the network's output, for whatever loss the scheme trains on. It is what is left of a weight once
the network has had its say: a large weight on a sample that is fitted pulls at nothing. Where a
scheme has corrected a label, the pull is towards the corrected one.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from dynamics.statistics import Estimate, area_under_roc, mean_over_seeds, paired_difference
from dynamics.summary import summarise_samples
from dynamics.traces import Run, Study

PLAIN, CONTROL = "uniform", "random"
"""Plain training, and the random weights that stand beside every scheme."""

HARD = 0.25
"""Share of the clean samples called hard: those of lowest mean p_true under plain training."""

MEASURES = {
    "best": "best test accuracy over epochs",
    "final": "test accuracy after the last epoch",
    "drop": "best minus final",
    "fit": "accuracy on the training set's given labels after the last epoch",
    "rare_final": "test accuracy on the rare class after the last epoch",
    "peak_auc": "best AUC over epochs of 1 − p_true against wrong labels",
    "final_auc": "the same in the last epoch",
    "weight_auc": "AUC of the mean weight, second half of training, for clean or rare samples",
    "suspect_share": "share of the pull that wrong labels, or the rare class, have at the end",
    "cost": "processor time of all training against plain training",
}
"""What is measured of a run; a measure that does not fit its task is missing."""

_FACTORS = ["task", "level", "scheme", "seed"]
_SETTING = ["task", "level"]


def pull_shares(run: Run, groups: pd.Series) -> pd.DataFrame:
    """How the pull on the network is shared between groups of samples, over epochs.

    Args:
        run: A run with `weight` and `output_grad_norm` recorded.
        groups: Name of each sample's group, index `sample_id`.

    Returns:
        One row per epoch and group: `epoch, group, n` (presentations), `weight_share` =
        Σ_{i∈g} w_i / Σ w_i, `pull_share` = Σ_{i∈g} w_i‖∂ℓ_i/∂z_i‖ / Σ w_i‖∂ℓ_i/∂z_i‖, and `p_true`,
        the mean probability of the given label. Every presentation counts, also repeats. A share
        of a sum of 0 is missing.
    """
    sums = pd.concat([_sum_by_group(rows, groups) for rows in _presentations(run)])
    sums = sums.groupby(["epoch", "group"]).sum()
    totals = sums.groupby("epoch").transform("sum")
    table = pd.DataFrame(
        {
            "n": sums["n"].astype(int),
            "weight_share": sums["weight"] / totals["weight"].where(totals["weight"] > 0),
            "pull_share": sums["pull"] / totals["pull"].where(totals["pull"] > 0),
            "p_true": sums["p_true"] / sums["n"],
        }
    )
    return table.reset_index()


def _presentations(run: Run) -> Iterator[pd.DataFrame]:
    yield from run.iter_samples(["weight", "output_grad_norm", "p_true"], repeats=True)


def _sum_by_group(rows: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    weight = rows["weight"].astype(np.float64)
    values = pd.DataFrame(
        {
            "epoch": rows["epoch"],
            "group": rows["sample_id"].map(groups),
            "n": 1.0,
            "weight": weight,
            "pull": weight * rows["output_grad_norm"],  # missing at weight 0, and left out of sums
            "p_true": rows["p_true"].astype(np.float64),
        }
    )
    return values.groupby(["epoch", "group"]).sum()


def sample_groups(run: Run, plain: Run | None = None) -> pd.Series:
    """Which group each sample of a run is in.

    Args:
        run: A run of an example-weighting study.
        plain: The run of plain training on the same samples; without it, clean samples are not
            told apart.

    Returns:
        Index `sample_id`. Task imbalance: `rare` or `common`. Task noise: `wrong label`, and of
        the rest `hard`, the quarter with the lowest mean p_true under plain training, or `easy`.
    """
    roster = run.roster()
    if run.config.get("task") == "imbalance":
        rare = roster["label"] == 0
        return pd.Series(np.where(rare, "rare", "common"), roster.index, name="group")
    wrong = (roster["label"] != roster["true_label"]).to_numpy()
    if plain is None:
        return pd.Series(np.where(wrong, "wrong label", "clean"), roster.index, name="group")
    p_true = summarise_samples(plain)["mean_p_true"].reindex(roster.index)
    is_hard = (p_true <= p_true[~wrong].quantile(HARD)).to_numpy()
    names = np.where(wrong, "wrong label", np.where(is_hard, "hard", "easy"))
    return pd.Series(names, roster.index, name="group")


def pull_curves(study: Study) -> pd.DataFrame:
    """Pull shares of every run that has come to its end.

    Args:
        study: A study named example-weighting.

    Returns:
        `pull_shares` of each with its `task, level, scheme, seed`.
    """
    ended = [run for run in study.runs if run.ended_cleanly]
    plain = {_key(run): run for run in ended if run.config["scheme"] == PLAIN}
    tables = []
    for run in ended:
        shares = pull_shares(run, sample_groups(run, plain.get(_key(run))))
        tables.append(shares.assign(**{name: run.config[name] for name in _FACTORS}))
    columns = [*_FACTORS, "epoch", "group", "n", "weight_share", "pull_share", "p_true"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def _key(run: Run) -> tuple[object, ...]:
    return tuple(run.config[name] for name in ("task", "level", "seed"))


def pull_over_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds of each scheme's pull shares.

    Args:
        curves: `pull_curves(study)`.

    Returns:
        One row per `task, level, scheme, group, epoch`: `value` with Student's interval `low` to
        `high` over `n` seeds.
    """
    keys = [*_SETTING, "scheme", "group", "epoch"]
    records = []
    for values, rows in curves.groupby(keys):
        estimate = mean_over_seeds(rows["pull_share"].to_numpy())
        records.append(dict(zip(keys, values, strict=True)) | _columns(estimate))
    return pd.DataFrame(records, columns=[*keys, "value", "low", "high", "n"])


def _columns(estimate: Estimate, name: str = "value") -> dict[str, float]:
    prefix = "" if name == "value" else f"{name}_"
    ends = {f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}
    return {name: estimate.value, **ends, f"{prefix}n": estimate.n}


def weighting_table(study: Study) -> pd.DataFrame:
    """What came of each run that has come to its end.

    Args:
        study: A study named example-weighting.

    Returns:
        One row per run: `run, task, level, scheme, seed, epochs, best_epoch` and `MEASURES`.
        `cost` is missing where plain training of the same seed has not ended.
    """
    records = [_measure(run) for run in study.runs if run.ended_cleanly]
    columns = ["run", *_FACTORS, "epochs", "best_epoch", *MEASURES]
    if not records:
        return pd.DataFrame(columns=columns)
    table = pd.DataFrame(records)
    keys = [*_SETTING, "seed"]
    plain = table[table["scheme"] == PLAIN].set_index(keys)["seconds"]
    reference = plain.reindex(pd.MultiIndex.from_frame(table[keys]))
    table["cost"] = table["seconds"].to_numpy() / reference.to_numpy()
    return table[columns]


def _measure(run: Run) -> dict[str, object]:
    scalars = run.scalars()
    accuracy = scalars[scalars["name"] == "accuracy"].set_index("epoch").sort_index()
    test = accuracy["value"][accuracy["block"] == "test"]
    rare = accuracy["value"][accuracy["block"] == "test, rare class"]
    steps = scalars[scalars["name"] == "step_seconds"]
    prepared = scalars.loc[scalars["name"] == "prepare_seconds", "value"].sum()
    record: dict[str, object] = {"run": run.name}
    record |= {name: run.config[name] for name in _FACTORS}
    record |= {"epochs": len(test), "best_epoch": test.idxmax()}
    record |= {"best": test.max(), "final": test.iloc[-1], "drop": test.max() - test.iloc[-1]}
    fit = accuracy["value"][accuracy["block"] == "train, given labels"]
    record |= {"fit": fit.iloc[-1] if len(fit) else np.nan}
    record |= {"rare_final": rare.iloc[-1] if len(rare) else np.nan}
    record |= {"seconds": prepared + (steps["value"] * steps["n"]).sum()}
    return record | _detection(run)


def _detection(run: Run) -> dict[str, float]:
    """How well the loss tells wrong labels, and the weight clean or rare samples."""
    groups = sample_groups(run)
    aimed = groups.isin(["clean", "rare"])
    shares = pull_shares(run, groups)
    at_end = shares[shares["epoch"] == shares["epoch"].max()].set_index("group")["pull_share"]
    suspect = "rare" if "rare" in set(groups) else "wrong label"
    rows = run.samples(columns=["weight", "p_true"])
    late = rows[rows["epoch"] >= rows["epoch"].max() / 2]
    weight = late.groupby("sample_id")["weight"].mean().reindex(groups.index)
    found = {
        "weight_auc": area_under_roc(weight.to_numpy(np.float64), aimed.to_numpy())[0],
        "suspect_share": float(at_end.get(suspect, np.nan)),
    }
    if suspect == "rare":
        return found | {"peak_auc": float("nan"), "final_auc": float("nan")}
    wrong = rows["sample_id"].map(~aimed).to_numpy(dtype=bool)
    doubt = 1 - rows["p_true"].to_numpy(np.float64)
    epochs = rows["epoch"].to_numpy()
    by_epoch = [
        area_under_roc(doubt[epochs == e], wrong[epochs == e])[0] for e in np.unique(epochs)
    ]
    return found | {"peak_auc": float(np.nanmax(by_epoch)), "final_auc": by_epoch[-1]}


def summarise_schemes(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of what came of each scheme, and what it changes against plain and random.

    Args:
        table: `weighting_table(study)`.

    Returns:
        One row per `task, level, scheme`, best final accuracy first: `n_seeds`; each measure with
        its interval (`<name>`, `<name>_low`, `<name>_high`, `<name>_n`); and paired by seed
        `over_plain` and `over_random`, differences of the final accuracy, and `drop_saved`, plain
        training's drop minus the scheme's. Intervals are Student's; missing for one seed.
    """
    records = []
    for (task, level), rows in table.groupby(_SETTING):
        for scheme, mine in rows.groupby("scheme"):
            record: dict[str, object] = {"task": task, "level": level, "scheme": scheme}
            record |= {"n_seeds": mine["seed"].nunique()}
            for name in MEASURES:
                record |= _columns(mean_over_seeds(mine[name].to_numpy(np.float64)), name)
            record |= _columns(_paired(rows, str(scheme), PLAIN, "final"), "over_plain")
            record |= _columns(_paired(rows, str(scheme), CONTROL, "final"), "over_random")
            record |= _columns(_paired(rows, PLAIN, str(scheme), "drop"), "drop_saved")
            records.append(record)
    summary = pd.DataFrame(records)
    order = ["task", "level", "final"]
    return summary.sort_values(order, ascending=[True, False, False], kind="stable")


def _paired(rows: pd.DataFrame, a: str, b: str, measure: str) -> Estimate:
    """Mean of a − b over the seeds that both have."""
    wide = rows.pivot_table(index="seed", columns="scheme", values=measure)
    wide = wide.reindex(columns=wide.columns.union([a, b]))
    return paired_difference(wide[a].to_numpy(), wide[b].to_numpy())


def accuracy_curves(study: Study) -> pd.DataFrame:
    """Test accuracy over epochs of each scheme, mean over seeds.

    Args:
        study: A study named example-weighting.

    Returns:
        One row per `task, level, scheme, epoch`: `value, low, high, n`, as in `pull_over_seeds`.
    """
    tables = []
    for run in (run for run in study.runs if run.ended_cleanly):
        rows = run.scalars("accuracy")
        rows = rows[rows["block"] == "test"][["epoch", "value"]]
        tables.append(rows.assign(**{name: run.config[name] for name in _FACTORS}))
    keys = [*_SETTING, "scheme", "epoch"]
    records = []
    for values, rows in pd.concat(tables).groupby(keys) if tables else ():
        estimate = mean_over_seeds(rows["value"].to_numpy())
        records.append(dict(zip(keys, values, strict=True)) | _columns(estimate))
    return pd.DataFrame(records, columns=[*keys, "value", "low", "high", "n"])


def corrected_labels(study: Study) -> pd.DataFrame:
    """How many labels a scheme has corrected for good, and how many of these rightly.

    Args:
        study: A study named example-weighting.

    Returns:
        One row per run and epoch in which any label was: `task, level, scheme, seed, epoch,
        fraction, precision`.
    """
    tables = []
    for run in (run for run in study.runs if run.ended_cleanly):
        rows = run.scalars()
        right = rows[rows["block"] == "corrected labels"].set_index("epoch")["value"]
        share = rows[rows["name"] == "corrected_fraction"].set_index("epoch")["value"]
        if len(right):
            both = pd.DataFrame({"fraction": share, "precision": right}).dropna().reset_index()
            tables.append(both.assign(**{name: run.config[name] for name in _FACTORS}))
    columns = [*_FACTORS, "epoch", "fraction", "precision"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)
