"""The phases of a Fisher trace: rise, peak and decay with intervals, boundaries, depth.

The trace is looked at on a log axis, where a phase is a stretch on which it rises or falls by about
the same factor an epoch. Boundaries between phases are found by change-point detection. What is
uncertain within one run is the measurement; what another seed would do is told by several runs
(`dynamics.statistics.mean_over_seeds`).

References:
    Achille, Rovere and Soatto, ICLR 2019, Sec. 3. Change points: Truong, Oudre and Vayatis, Signal
    Processing 167, 2020 (`ruptures`).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import ruptures
from ruptures.base import BaseCost
from scipy.signal import savgol_filter

from dynamics.curves import describe_curve
from dynamics.statistics import Estimate

PENALTY = 3.5
"""Times log(points): what a boundary must gain in χ² (calibrated on straight lines)."""

MAX_BOUNDARIES = 3
_SHORTEST = 3
_WINDOW, _SMOOTHED_FROM = 5, 20


@dataclass(frozen=True, slots=True)
class FisherPhases:
    """What one run's Fisher trace did, with intervals for its measurement error.

    Attributes:
        rise: Peak over first value.
        peak: Largest value of the smoothed trace.
        peak_epoch: Epoch of the peak.
        fall: Last value over peak.
        boundaries: Epochs at which a phase ends and another begins.
        has_interior_peak: Whether the peak stands out from both ends (`describe_curve`).
        n_points: Number of measurements.
    """

    rise: Estimate
    peak: Estimate
    peak_epoch: Estimate
    fall: Estimate
    boundaries: tuple[Estimate, ...]
    has_interior_peak: bool
    n_points: int


class _LineCost(BaseCost):  # type: ignore[misc]  # untyped in ruptures
    """Squared error of the straight line through a stretch, from running sums: O(1) each."""

    model = "line"
    min_size = _SHORTEST

    def fit(self, signal: np.ndarray) -> "_LineCost":
        self.signal = signal
        x, y = signal.T
        products = np.column_stack([np.ones_like(x), x, y, x * x, x * y, y * y])
        self.sums = np.vstack([np.zeros(6), products.cumsum(axis=0)])
        return self

    def error(self, start: int, end: int) -> float:
        n, x, y, xx, xy, yy = self.sums[end] - self.sums[start]
        spread = xx - x * x / n
        slope = (xy - x * y / n) / spread if spread > 0 else 0.0
        return float(max(yy - y * y / n - slope * (xy - x * y / n), 0.0))


def describe_phases(table: pd.DataFrame, *, draws: int = 300, seed: int = 0) -> FisherPhases:
    """Rise, peak, decay and boundaries of one trace, with 95 % intervals.

    The log of a trace of 20 points or more is smoothed by a quadratic over five. Measurement errors
    are drawn anew around it. Intervals of rise, peak and fall are the log ± 1.96 standard errors of
    the redrawn ones, that of the peak's epoch holds the middle 95 % of them. In simulations those
    of rise and fall cover 93 to 95 %, those of the peak 91 to 95 % (the largest of several noisy
    values is too large), those of the epoch 99 % and more.

    Args:
        table: Rows of `run.scalars("fisher_trace")` of one block: columns `epoch, value, stderr`.
        draws: Number of redrawn curves.
        seed: Seed of the draws.

    Returns:
        The phases.

    Raises:
        ValueError: If there are fewer than three positive values.
    """
    rows = table[table["value"] > 0].sort_values("epoch", kind="stable")
    if len(rows) < 3:
        raise ValueError(f"Phases need three values above 0 or more, but there are {len(rows)}.")
    epoch = rows["epoch"].to_numpy(dtype=np.float64)
    level = np.log(rows["value"].to_numpy(dtype=np.float64))
    sigma = _noise_of(rows, level)
    smooth = _smoothed(level)
    rng = np.random.default_rng(seed)
    noise = sigma * rng.standard_normal((draws, len(level)))
    found = _shape(epoch, smooth)
    drawn = np.array([_shape(epoch, _smoothed(smooth + e)) for e in noise])
    method = f"parametric bootstrap over measurement error, {draws}"
    n = len(level)

    def estimate(which: int) -> Estimate:
        half = 1.96 * float(drawn[:, which].std(ddof=1))
        value, low, high = (float(np.exp(found[which] + step)) for step in (0.0, -half, half))
        return Estimate(value, low, high, n, method)

    low, high = np.quantile(drawn[:, 2], [0.025, 0.975])
    return FisherPhases(
        rise=estimate(0),
        peak=estimate(1),
        peak_epoch=Estimate(float(found[2]), float(low), float(high), n, method),
        fall=estimate(3),
        boundaries=find_boundaries(epoch, level, sigma, draws=min(draws, 100), seed=seed),
        has_interior_peak=describe_curve(table).has_interior_peak,
        n_points=n,
    )


def tabulate_phases(traces: pd.DataFrame, keys: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Phases of several traces, and their boundaries.

    Args:
        traces: Columns `epoch, value, stderr`, and those in `keys`.
        keys: Columns that tell one trace from another.

    Returns:
        One row per trace: `keys`, `rise, peak, peak_epoch, fall`, each with `_low` and `_high`,
        `n_boundaries` and `has_interior_peak`; and one row per boundary: `keys, value, low, high`.
        Traces of fewer than three points have no row.
    """
    rows, boundaries = [], []
    for levels, trace in traces.groupby(keys, sort=False):
        if (trace["value"] > 0).sum() < 3:
            continue
        found = describe_phases(trace)
        about = dict(zip(keys, levels, strict=True))
        row = about | {"n_boundaries": len(found.boundaries)}
        for name in ("rise", "peak", "peak_epoch", "fall"):
            part: Estimate = getattr(found, name)
            row |= {name: part.value, f"{name}_low": part.low, f"{name}_high": part.high}
        rows.append(row | {"has_interior_peak": found.has_interior_peak})
        boundaries += [
            about | {"value": b.value, "low": b.low, "high": b.high} for b in found.boundaries
        ]
    columns = [*keys, "value", "low", "high"]
    return pd.DataFrame(rows), pd.DataFrame(boundaries, columns=columns)


def find_boundaries(
    epoch: np.ndarray, level: np.ndarray, sigma: np.ndarray, *, draws: int = 100, seed: int = 0
) -> tuple[Estimate, ...]:
    """Where a curve of straight stretches turns from one into the next.

    The best partition into one to four lines is found by dynamic programming; each boundary must
    lower χ² by `PENALTY`·log n. Intervals: errors are drawn anew around the fitted lines, and the
    same number of boundaries is found again.

    Args:
        epoch: Ascending, shape (n,).
        level: Log of the trace, shape (n,).
        sigma: Standard error of each level, shape (n,).
        draws: Number of redrawn curves.
        seed: Seed of the draws.

    Returns:
        The boundaries in order, each midway between the last epoch of one stretch and the first of
        the next; none where one line does.
    """
    scale = float(np.median(sigma))
    most = min(MAX_BOUNDARIES, len(level) // _SHORTEST - 1)
    if scale <= 0 or most < 1:
        return ()
    partitions = [_partition(epoch, level / scale, k) for k in range(most + 1)]
    penalised = [
        error + PENALTY * k * np.log(len(level)) for k, (_, error) in enumerate(partitions)
    ]
    n_found = int(np.argmin(penalised))
    ends = partitions[n_found][0]
    fitted = _fitted(epoch, level, ends)
    rng = np.random.default_rng(seed)
    drawn = [
        _midpoints(epoch, _partition(epoch, (fitted + e) / scale, n_found)[0])
        for e in scale * rng.standard_normal((draws if n_found else 0, len(level)))
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0) if drawn else ([], [])
    found = _midpoints(epoch, ends)
    method = f"least squares, parametric bootstrap, {draws}"
    return tuple(
        Estimate(float(b), float(min(lo, b)), float(max(hi, b)), len(level), method)
        for b, lo, hi in zip(found, low, high, strict=True)
    )


def trace_depth(scalars: pd.DataFrame) -> pd.DataFrame:
    """How deep in the network the Fisher trace sits: the centre of mass of its shares by block.

    Args:
        scalars: `run.scalars()`, with `fisher_share` by block in the model's order.

    Returns:
        One row per epoch: `epoch`, `depth` from 0 (all in the first block) to 1 (all in the last),
        and `stderr`, blocks' errors taken as independent. Empty for fewer than two blocks.
    """
    rows = scalars[scalars["name"] == "fisher_share"]
    blocks = list(dict.fromkeys(rows["block"]))
    if len(blocks) < 2:
        return pd.DataFrame(columns=["epoch", "depth", "stderr"])
    place = rows["block"].map({block: i / (len(blocks) - 1) for i, block in enumerate(blocks)})
    total = (rows["value"] * place).groupby(rows["epoch"]).sum()
    whole = rows["value"].groupby(rows["epoch"]).sum()
    depth = total / whole
    distance = place - rows["epoch"].map(depth)
    variance = ((distance * rows["stderr"]) ** 2).groupby(rows["epoch"]).sum()
    return pd.DataFrame({"depth": depth, "stderr": np.sqrt(variance) / whole}).reset_index()


def plasticity_over_epochs(scalars: pd.DataFrame) -> pd.DataFrame:
    """What the Fisher trace of one run says at each epoch, beside what could explain it away.

    Args:
        scalars: `run.scalars()`.

    Returns:
        One row per epoch: `epoch`, `fisher_trace`, `stderr`, `information_plasticity` (the trace as
        a share of its peak, the sense in which Achille et al. speak of it), `scale_free`
        (Σ w² F), `weight_norm_sq` and `depth`. With batch normalisation the trace falls as
        1/‖w‖² while weights grow: a fall that `scale_free` does not show is that.
    """
    total = scalars[scalars["block"] == "total"]
    by_name = {name: rows.set_index("epoch") for name, rows in total.groupby("name")}
    trace = by_name["fisher_trace"][["value", "stderr"]].rename(columns={"value": "fisher_trace"})
    trace["information_plasticity"] = trace["fisher_trace"] / trace["fisher_trace"].max()
    for column, name in (
        ("scale_free", "scale_free_fisher_trace"),
        ("weight_norm_sq", "weight_norm_sq"),
    ):
        trace[column] = by_name[name]["value"] if name in by_name else float("nan")
    trace["depth"] = trace_depth(scalars).set_index("epoch")["depth"].astype(float)
    return trace.sort_index().reset_index()


def _noise_of(rows: pd.DataFrame, level: np.ndarray) -> np.ndarray:
    """Error of each log value: the stated one, or that of second differences if larger."""
    stated = rows["stderr"].to_numpy(dtype=np.float64) / rows["value"].to_numpy(dtype=np.float64)
    bends = np.abs(np.diff(level, 2))
    rough = float(np.median(bends)) / 0.6745 / np.sqrt(6) if len(bends) > 3 else 0.0
    return np.maximum(np.nan_to_num(stated), rough)


def _smoothed(level: np.ndarray) -> np.ndarray:
    if len(level) < _SMOOTHED_FROM:
        return level  # so few points that a window would flatten a true peak
    return np.asarray(savgol_filter(level, _WINDOW, 2))


def _shape(epoch: np.ndarray, level: np.ndarray) -> np.ndarray:
    top = int(level.argmax())
    return np.array([level[top] - level[0], level[top], epoch[top], level[-1] - level[top]])


def _partition(epoch: np.ndarray, level: np.ndarray, n_boundaries: int) -> tuple[list[int], float]:
    """Ends of the stretches of the best partition, and its squared error."""
    cost = _LineCost()
    signal = np.column_stack([epoch, level])
    if n_boundaries == 0:
        return [len(level)], cost.fit(signal).error(0, len(level))
    search = ruptures.Dynp(custom_cost=cost, min_size=_SHORTEST, jump=1).fit(signal)
    ends = search.predict(n_bkps=n_boundaries)
    return ends, float(sum(cost.error(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)))


def _midpoints(epoch: np.ndarray, ends: list[int]) -> list[float]:
    return [float(epoch[end - 1] + epoch[end]) / 2 for end in ends[:-1]]


def _fitted(epoch: np.ndarray, level: np.ndarray, ends: list[int]) -> np.ndarray:
    parts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        x, y = epoch[start:end], level[start:end]
        parts.append(np.polyval(np.polyfit(x, y, 1), x))
    return np.concatenate(parts)
