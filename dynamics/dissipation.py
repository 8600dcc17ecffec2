"""How the effect of importance weights wears off over training, from a study of weight ratios.

The effect in an epoch is the slope of the logit of the fraction of inputs assigned to the first
class on log2 of the weight ratio: by how much doubling the ratio moves the log-odds of the classes
that are predicted. Weights move the best log-odds by log 2 = .69 per doubling; a network that does
not care has slope 0. Seeds are the units of every interval.

Reference:
    Byrd and Lipton, What is the Effect of Importance Weighting in Deep Learning?, ICML 2019,
    arXiv:1812.03372.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dynamics.statistics import Estimate, equivalence, hierarchical_bootstrap, mean_over_seeds

LIMIT = 4.0
"""Largest |log2 ratio| that the slope and the spread are over: 1:16 to 16:1."""
EARLY = 5
"""Epochs at the beginning whose mean is the early effect."""
LATE = 10
"""Epochs at the end whose mean is the effect that is left."""
MARGIN = 0.05
"""Difference of fractions that does not matter, for equivalence with an unweighted run."""
PATIENCE = 10
"""Epochs without a lower weighted loss on held-out data after which early stopping stops."""


@dataclass(frozen=True, slots=True)
class Dissipation:
    """How the effect of weights went, in one arm and on one set of inputs.

    Attributes:
        early: Mean effect over the first `EARLY` epochs.
        late: Mean effect over the last `LATE` epochs.
        left: late / early.
        half_life: Epochs in which the effect falls halfway to its asymptote, in the fit
            asymptote + fall · 2^(−epoch / half-life); NaN where the fit does not fall.
        asymptote: Where that fit goes.
        spread_left: Largest minus smallest fraction over the ratios, mean of the last `LATE`
            epochs over the mean of the first `EARLY`.
    """

    early: Estimate
    late: Estimate
    left: Estimate
    half_life: Estimate
    asymptote: Estimate
    spread_left: Estimate


def effect_sizes(fractions: pd.DataFrame, *, limit: float = LIMIT) -> pd.DataFrame:
    """The effect of the weights in each epoch, seed by seed.

    A fraction k/n enters as its empirical logit log((k + ½)/(n − k + ½)), which is finite at 0 and
    1; with n = 500 it reaches ± 6.9.

    Args:
        fractions: Columns `arm, set, seed, epoch, log2_ratio, frac, n`, as from
            `predicted_fractions`.
        limit: Largest |log2 ratio| used, so that arms with more extreme ratios can be compared.

    Returns:
        One row per arm, set, seed and epoch with two ratios or more: `slope` (least squares),
        `stderr` (of the fit; missing for two ratios), `spread` (largest minus smallest fraction)
        and `n_ratios`.
    """
    rows = fractions[fractions["log2_ratio"].abs() <= limit]
    count = rows["frac"] * rows["n"]
    logit = np.log((count + 0.5) / (rows["n"] - count + 0.5))
    rows = rows.assign(x=rows["log2_ratio"].astype(float), y=logit)
    keys = ["arm", "set", "seed", "epoch"]
    centred = rows[["x", "y"]] - rows.groupby(keys)[["x", "y"]].transform("mean")
    products = rows[keys].assign(
        xx=centred["x"] ** 2, xy=centred["x"] * centred["y"], yy=centred["y"] ** 2
    )
    found = products.groupby(keys, sort=False)[["xx", "xy", "yy"]].sum()
    by = rows.groupby(keys, sort=False)
    found["n_ratios"] = by["x"].nunique()
    found["spread"] = by["frac"].max() - by["frac"].min()
    found = found[found["n_ratios"] >= 2].reset_index()
    found["slope"] = found["xy"] / found["xx"]
    residual = (found["yy"] - found["slope"] * found["xy"]).clip(lower=0)
    free = (found["n_ratios"] - 2).where(found["n_ratios"] > 2)
    found["stderr"] = np.sqrt(residual / free / found["xx"])
    return found[[*keys, "slope", "stderr", "spread", "n_ratios"]]


def mean_curves(table: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """Mean of a quantity over seeds, curve by curve.

    Args:
        table: A row per seed and point of a curve.
        keys: Columns that tell the curves and their points apart, such as arm, set and epoch.
        column: The quantity.

    Returns:
        One row per combination of `keys`: `value, low, high` (Student's 95 % interval over seeds,
        missing for one seed) and `n` seeds.
    """
    records = []
    for of, values in table.dropna(subset=[column]).groupby(keys, sort=False)[column]:
        mean = mean_over_seeds(values.to_numpy())
        found = {"value": mean.value, "low": mean.low, "high": mean.high, "n": mean.n}
        records.append(dict(zip(keys, of, strict=True)) | found)
    return pd.DataFrame(records, columns=[*keys, "value", "low", "high", "n"])


def measure_dissipation(effects: pd.DataFrame, *, draws: int = 300, seed: int = 0) -> Dissipation:
    """How the effect of one arm on one set went from the first epoch to the last.

    Ratios, half-life and asymptote are of the mean curve over seeds; their intervals are from a
    bootstrap over seeds, the half-life's on the log scale; with one seed there are none.

    Args:
        effects: Rows of `effect_sizes` of one arm and set.
        draws: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        The estimates; n is the number of seeds.

    Raises:
        ValueError: If an epoch is missing for a seed, or there are fewer than `EARLY` + `LATE`.
    """
    effects = effects[effects["epoch"] >= 0]
    slopes = effects.pivot(index="seed", columns="epoch", values="slope")
    spreads = effects.pivot(index="seed", columns="epoch", values="spread").to_numpy()
    epochs, curves = slopes.columns.to_numpy(dtype=float), slopes.to_numpy()
    if len(epochs) < EARLY + LATE or not np.isfinite(curves).all():
        raise ValueError(
            f"The effect's course needs every seed in each of {EARLY + LATE} epochs or more, but "
            f"there are {len(epochs)} epochs and {int(np.isnan(curves).sum())} missing values."
        )
    fit = DecayFit(epochs)

    def estimate(statistic: Callable[[np.ndarray], float], of: np.ndarray = curves) -> Estimate:
        if len(of) == 1:
            nan, value = float("nan"), float(statistic(of[0]))
            return Estimate(value, nan, nan, 1, "one seed, no interval")
        return hierarchical_bootstrap(
            lambda chosen: statistic(np.mean(chosen, axis=0)), list(of), draws=draws, seed=seed
        )

    log_life = estimate(lambda mean: np.log(fit(mean)[0]))
    life, low, high = (float(np.exp(x)) for x in (log_life.value, log_life.low, log_life.high))
    return Dissipation(
        early=mean_over_seeds(curves[:, :EARLY].mean(1)),
        late=mean_over_seeds(curves[:, -LATE:].mean(1)),
        left=estimate(_late_over_early),
        half_life=Estimate(life, low, high, log_life.n, f"{log_life.method}, of the log"),
        asymptote=estimate(lambda mean: fit(mean)[1]),
        spread_left=estimate(_late_over_early, spreads),
    )


class DecayFit:
    """Least squares of asymptote + fall · 2^(−epoch / half-life), for many curves on one grid.

    The half-life is searched on a grid from half an epoch to twice the number of epochs, 60 values
    with a parabola through the best three; for each, the other two are linear.

    Args:
        epochs: Epochs of the curves, shape (T,), ascending.
    """

    def __init__(self, epochs: np.ndarray) -> None:
        self._log_lives = np.linspace(np.log(0.5), np.log(2 * np.ptp(epochs) + 1), 60)
        self._since = epochs - epochs[0]
        decays = 2.0 ** (-self._since / np.exp(self._log_lives)[:, None])
        self._decays = decays - decays.mean(1, keepdims=True)
        self._squares = (self._decays**2).sum(1)

    def __call__(self, curve: np.ndarray) -> tuple[float, float]:
        """Fit one curve.

        Args:
            curve: Effect in each epoch, shape (T,).

        Returns:
            Half-life and asymptote; both NaN where the best fit does not fall, or falls so slowly
            that its half-life is at the end of the grid.
        """
        falls = self._decays @ curve / self._squares
        gain = falls**2 * self._squares
        best = int(gain.argmax())
        if falls[best] <= 0 or best in (0, len(gain) - 1):
            return float("nan"), float("nan")
        before, at, after = gain[best - 1 : best + 2]
        shift = (before - after) / (2 * (before - 2 * at + after))
        step = self._log_lives[1] - self._log_lives[0]
        life = np.exp(self._log_lives[best] + shift * step)
        decay = 2.0 ** (-self._since / life)
        centred = decay - decay.mean()
        fall = centred @ curve / (centred @ centred)
        return float(life), float(curve.mean() - fall * decay.mean())


def _late_over_early(curve: np.ndarray) -> float:
    return float(curve[-LATE:].mean() / curve[:EARLY].mean())


def first_equivalent(fractions: pd.DataFrame, *, margin: float = MARGIN) -> pd.DataFrame:
    """From which epoch on a weighted run predicts like the unweighted one of its arm.

    Two one-sided t-tests in each epoch, runs paired by seed; equivalence must hold in every epoch
    from there to the end, so testing many epochs does not add false alarms.

    Args:
        fractions: Columns `arm, set, seed, epoch, log2_ratio, frac`; ratio 0 is the unweighted run.
        margin: Largest difference of fractions that does not matter.

    Returns:
        One row per arm, set and weighted ratio: `first_epoch` (missing if never), `n` seeds, and at
        the last epoch `difference` with its 90 % interval `low`, `high` and `p_value`.
    """
    records = []
    keys = ["arm", "set"]
    for (arm, name), rows in fractions[fractions["epoch"] >= 0].groupby(keys, sort=False):
        table = rows.pivot(index=["log2_ratio", "epoch"], columns="seed", values="frac")
        for ratio in [r for r in rows["log2_ratio"].unique() if r != 0]:
            if 0 not in table.index.get_level_values(0):
                continue
            weighted, plain = table.loc[ratio].align(table.loc[0], join="inner")
            tests = [
                equivalence(a, b, margin)
                for a, b in zip(weighted.to_numpy(), plain.to_numpy(), strict=True)
            ]
            failed = [i for i, test in enumerate(tests) if not test.equivalent]
            after = failed[-1] + 1 if failed else 0
            first = float(weighted.index[after]) if after < len(tests) else float("nan")
            last = tests[-1]
            record = {"arm": arm, "set": name, "log2_ratio": ratio, "first_epoch": first}
            record |= {"n": last.difference.n, "difference": last.difference.value}
            record |= {"low": last.difference.low, "high": last.difference.high}
            records.append(record | {"p_value": last.p_value})
    return pd.DataFrame(records)


def early_stopping_epochs(losses: pd.DataFrame, *, patience: int = PATIENCE) -> pd.DataFrame:
    """Where early stopping would have kept each run: at its lowest loss before patience ran out.

    Args:
        losses: Columns `run, epoch, loss`.
        patience: Epochs without a new lowest loss after which training stops.

    Returns:
        Columns `run, epoch`.
    """
    records = []
    for run, rows in losses.sort_values("epoch").groupby("run", sort=False):
        best, best_epoch = np.inf, int(rows["epoch"].iloc[0])
        for epoch, loss in zip(rows["epoch"], rows["loss"], strict=True):
            if loss < best:
                best, best_epoch = loss, int(epoch)
            elif epoch - best_epoch >= patience:
                break
        records.append({"run": run, "epoch": best_epoch})
    return pd.DataFrame(records, columns=["run", "epoch"])


def stop_early(fractions: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """What the unregularised runs would have predicted, had each been stopped early.

    A run that stops early is the beginning of one that does not, so no run of its own is needed.

    Args:
        fractions: What `predicted_fractions` returned.
        losses: What `held_out_losses` returned; the loss is weighted like the training loss.

    Returns:
        The rows of arm `none` at each run's stopping epoch, as arm `early stopping`; `epoch` is 0,
        and `stopped_at` the epoch.
    """
    stops = early_stopping_epochs(losses).rename(columns={"epoch": "stopped_at"})
    rows = fractions[fractions["arm"] == "none"].merge(stops, on="run")
    rows = rows[rows["epoch"] == rows["stopped_at"]]
    return rows.assign(arm="early stopping", epoch=0)
