"""One pass over a trace: to a row per sample, or to a row per epoch and group.

`summarise_samples` streams: parts are read one after the other, and only arrays with one number per
sample are kept, whatever the length of the run. The definitions are those of the papers named at
each column; where papers differ, ours is stated.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from dynamics.traces import Run, Status

_COLUMNS = ("loss", "margin", "p_true", "el2n", "grad_norm", "correct")
_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def summarise_samples(run: Run, *, until_epoch: int | None = None) -> pd.DataFrame:
    """Reduce a trace to one row per sample.

    Args:
        run: The run.
        until_epoch: Last epoch to look at; the last recorded one by default. Scores for label noise
            are best before the network has memorised, see `choose_epoch`.

    Returns:
        Index `sample_id`; columns of the roster, and

        - `n_observed`: presentations recorded,
        - `mean_loss`, `var_loss` (population), `first_loss`, `last_loss`,
        - `first_learned`: first epoch in which it was classified as labelled; missing if never,
        - `n_forgotten`: times it was wrong at a presentation after being right at the one before
          (Toneva et al., ICLR 2019, Sec. 3); 0 also for a sample never learned, which
          `first_learned` tells apart,
        - `n_correct`: presentations at which it was classified as labelled,
        - `aum`: mean margin (Pleiss et al., NeurIPS 2020, Sec. 3),
        - `mean_p_true`, `std_p_true` (population): confidence and variability of the data map
          (Swayamdipta et al., EMNLP 2020, Sec. 2),
        - `mean_el2n`, `mean_grad_norm`.

        Means are over the recorded values; a column that was not recorded is all missing.
    """
    reducer = _SampleReducer()
    for rows in run.iter_samples(["loss", "margin", "p_true", "el2n", "grad_norm", "correct"]):
        within = rows if until_epoch is None else rows[rows["epoch"] <= until_epoch]
        if len(within):
            reducer.add(within)
    summary = reducer.result()
    roster = run.roster()
    return roster.join(summary, how="outer") if len(roster) else summary


class _SampleReducer:
    """Running sums per sample, in arrays that grow with the samples seen."""

    def __init__(self) -> None:
        self._ids = np.empty(0, dtype=np.int64)
        self._state = {name: np.empty(0) for name in self._initial(0)}

    @staticmethod
    def _initial(n: int) -> dict[str, np.ndarray]:
        state = {"n_observed": np.zeros(n), "n_correct": np.zeros(n), "n_forgotten": np.zeros(n)}
        state |= {"first_learned": np.full(n, np.nan), "was_correct": np.full(n, np.nan)}
        state |= {"first_loss": np.full(n, np.nan), "last_loss": np.full(n, np.nan)}
        for column in ("loss", "margin", "p_true", "el2n", "grad_norm"):
            state |= {f"n_{column}": np.zeros(n), f"mean_{column}": np.zeros(n)}
            state |= {f"m2_{column}": np.zeros(n)}
        return state

    def add(self, rows: pd.DataFrame) -> None:
        """Take the rows of a part, in which each sample's rows are in order of time."""
        ids = rows["sample_id"].to_numpy()
        self._admit(np.unique(ids))
        slots = np.searchsorted(self._ids, ids)
        order = np.argsort(slots, kind="stable")
        slots = slots[order]
        starts = np.flatnonzero(np.r_[True, slots[1:] != slots[:-1]])
        turn = np.arange(len(slots)) - np.repeat(starts, np.diff(np.r_[starts, len(slots)]))
        values = {
            name: rows[name].to_numpy(dtype=np.float64)[order] for name in (*_COLUMNS, "epoch")
        }
        for t in range(int(turn.max()) + 1):  # each sample at most once per turn
            now = turn == t
            self._present(slots[now], {name: column[now] for name, column in values.items()})

    def _admit(self, ids: np.ndarray) -> None:
        new = np.setdiff1d(ids, self._ids, assume_unique=True)
        if not len(new):
            return
        merged = np.concatenate([self._ids, new])
        order = np.argsort(merged, kind="stable")
        fresh = self._initial(len(new))
        self._state = {k: np.concatenate([v, fresh[k]])[order] for k, v in self._state.items()}
        self._ids = merged[order]

    def _present(self, at: np.ndarray, values: dict[str, np.ndarray]) -> None:
        state = self._state
        state["n_observed"][at] += 1
        for column in ("loss", "margin", "p_true", "el2n", "grad_norm"):
            known = np.isfinite(values[column])
            slots, x = at[known], values[column][known]
            state[f"n_{column}"][slots] += 1
            delta = x - state[f"mean_{column}"][slots]
            state[f"mean_{column}"][slots] += delta / state[f"n_{column}"][slots]
            state[f"m2_{column}"][slots] += delta * (x - state[f"mean_{column}"][slots])
        loss_known = np.isfinite(values["loss"])
        slots, loss = at[loss_known], values["loss"][loss_known]
        unset = np.isnan(state["first_loss"][slots])
        state["first_loss"][slots[unset]] = loss[unset]
        state["last_loss"][slots] = loss
        self._learn(at, values["correct"], values["epoch"])

    def _learn(self, at: np.ndarray, correct: np.ndarray, epoch: np.ndarray) -> None:
        state = self._state
        known = np.isfinite(correct)
        slots, right, epoch = at[known], correct[known] == 1, epoch[known]
        state["n_correct"][slots] += right
        state["n_forgotten"][slots] += (state["was_correct"][slots] == 1) & ~right
        first = right & np.isnan(state["first_learned"][slots])
        state["first_learned"][slots[first]] = epoch[first]
        state["was_correct"][slots] = right

    def result(self) -> pd.DataFrame:
        """The summary so far."""
        state = self._state
        mean, std = {}, {}
        for column in ("loss", "margin", "p_true", "el2n", "grad_norm"):
            seen = state[f"n_{column}"] > 0
            mean[column] = np.where(seen, state[f"mean_{column}"], np.nan)
            counts = np.where(seen, state[f"n_{column}"], 1)
            std[column] = np.where(seen, np.sqrt(state[f"m2_{column}"] / counts), np.nan)
        columns = {
            "n_observed": state["n_observed"].astype(np.int64),
            "mean_loss": mean["loss"],
            "var_loss": std["loss"] ** 2,
            "first_loss": state["first_loss"],
            "last_loss": state["last_loss"],
            "first_learned": state["first_learned"],
            "n_forgotten": state["n_forgotten"].astype(np.int64),
            "n_correct": state["n_correct"].astype(np.int64),
            "aum": mean["margin"],
            "mean_p_true": mean["p_true"],
            "std_p_true": std["p_true"],
            "mean_el2n": mean["el2n"],
            "mean_grad_norm": mean["grad_norm"],
        }
        return pd.DataFrame(columns, index=pd.Index(self._ids, name="sample_id"))


def iter_epochs(run: Run, columns: Sequence[str]) -> Iterator[tuple[int, pd.DataFrame]]:
    """Rows of one epoch after the other, in bounded memory.

    Args:
        run: The run.
        columns: Columns to read beside the keys.

    Yields:
        Epoch and its rows, one per sample, index `sample_id`.
    """
    pending: dict[int, list[pd.DataFrame]] = {}
    for rows in run.iter_samples(columns):
        current = int(rows["epoch"].min())
        for epoch in sorted(e for e in pending if e < current):  # parts come in order of step
            yield epoch, pd.concat(pending.pop(epoch)).set_index("sample_id")
        for epoch in rows["epoch"].unique().tolist():
            pending.setdefault(epoch, []).append(rows[rows["epoch"] == epoch])
    for epoch in sorted(pending):
        yield epoch, pd.concat(pending[epoch]).set_index("sample_id")


def summarise_epochs(run: Run, column: str, *, groups: pd.Series | None = None) -> pd.DataFrame:
    """Distribution of a per-sample column in each epoch, by group.

    Args:
        run: The run.
        column: Column of `samples`, such as loss or grad_norm.
        groups: Name of each sample's group, index `sample_id`; one group `all` by default.

    Returns:
        Columns `epoch, group, n, mean, stderr` (of the mean), `q05, q25, median, q75, q95`; one row
        per epoch and group with a recorded value.
    """
    records = []
    for epoch, rows in iter_epochs(run, [column]):
        values = rows[column].dropna()
        names = groups.reindex(values.index) if groups is not None else "all"
        keys = pd.Series(names, index=values.index, dtype=object)
        for group, part in values.groupby(keys):
            x = part.to_numpy(dtype=np.float64)
            spread = x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
            quantiles = dict(
                zip(_QUANTILES, np.quantile(x, list(_QUANTILES.values())), strict=True)
            )
            records.append(
                {"epoch": epoch, "group": group, "n": len(x), "mean": x.mean(), "stderr": spread}
                | quantiles
            )
    names_ = ["epoch", "group", "n", "mean", "stderr", *_QUANTILES]
    return pd.DataFrame(records, columns=names_)


def count_missing(run: Run) -> pd.DataFrame:
    """Values that were not finite when they were recorded.

    Args:
        run: The run.

    Returns:
        Columns `column, n, first_epoch, first_sample`, one row per column with such values; values
        computed from the logits are counted together as `output`. First is by step, and among the
        samples of a step by id.
    """
    bits = {
        "loss": Status.NON_FINITE_LOSS,
        "grad_norm": Status.NON_FINITE_GRAD_NORM,
        "output": Status.NON_FINITE_OUTPUT,
    }
    counts = dict.fromkeys(bits, 0)
    order = ["step", "epoch", "sample_id"]
    first: dict[str, tuple[int, ...]] = {}
    for rows in run.iter_samples(["status"], repeats=True):
        for column, bit in bits.items():
            odd = rows[(rows["status"] & int(bit)) != 0]
            counts[column] += len(odd)
            if len(odd):
                key = tuple(odd.sort_values(order)[order].iloc[0].tolist())
                first[column] = min(first.get(column, key), key)
    records = [(column, counts[column], *first[column][1:]) for column in first]
    return pd.DataFrame(records, columns=["column", "n", "first_epoch", "first_sample"])
