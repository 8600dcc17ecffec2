"""One pass over a trace: to a row per sample, or to a row per epoch and group.

Each table has two engines that agree: NumPy over the streamed row groups, and DuckDB. NumPy is the
faster one and the default; DuckDB takes over where the samples alone do not fit in the memory that
is allowed. The definitions are those of the papers named at each column; where papers differ, ours
is stated.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from dynamics.executors import Executor, open_executor
from dynamics.sample_ranges import summarise_ranges
from dynamics.sample_reducer import reduce_rows
from dynamics.traces import Run, Status
from dynamics.traces.query import MEMORY_LIMIT
from dynamics.traces.scan import check_columns, iter_first

Engine = Literal["auto", "numpy", "duckdb"]

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def summarise_samples(
    run: Run,
    *,
    until_epoch: int | None = None,
    engine: Engine = "auto",
    memory_limit: int = MEMORY_LIMIT,
    executor: Executor | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Reduce a trace to one row per sample.

    Takes some 6 s for 102 M rows of 1.28 M samples and three values each on two cores. Several
    machines share the work through Ray; docs/scale.md says from where on that pays.

    Args:
        run: The run.
        until_epoch: Last epoch to look at; the last recorded one by default. Scores for label noise
            are best before the network has memorised, see `choose_epoch`.
        engine: `numpy` or `duckdb`; by default NumPy, unless the samples do not fit in the limit.
        memory_limit: Bytes for the arrays, beside the rows in flight (some 300 MB), or for DuckDB,
            which was seen to take 0.7 GB more than a limit of 1 GB. Of each worker, if there are
            any.
        executor: `process` or `ray` to share the work by ranges of samples; by default this process
            does it. `ray` uses the Ray that you have joined with `ray.init`, or the cluster at
            `RAY_ADDRESS`, whose machines must all be able to read the run where it is; else it
            starts one here and stops it again. The result is the same.
        workers: Ranges at a time, each on one core; by default as many as there are cores.

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

        A sample counts once an epoch, and its presentations are in the order of their epochs. Means
        are over the recorded values; a column that was not recorded is all missing.

    Raises:
        ImportError: If `executor` is Ray, and that is not installed.
        MemoryError: If `engine` is NumPy, or there are workers, and the samples (of a range) do not
            fit in the limit.
        ValueError: If workers are asked for, and DuckDB or no executor.
    """
    if executor is None and workers is not None:
        raise ValueError('workers are those of an executor: executor="process" or "ray".')
    if executor is not None:
        if engine == "duckdb":
            raise ValueError("An executor's workers reduce by NumPy; leave engine away.")
        with open_executor(executor, workers) as (spread, n_workers):
            summary = summarise_ranges(
                run, spread, n_workers, until_epoch=until_epoch, memory_limit=memory_limit
            )
    elif engine == "duckdb":
        summary = _summarise_by_sql(run, until_epoch, memory_limit)
    else:
        try:
            summary = _summarise_by_numpy(run, until_epoch, memory_limit)
        except MemoryError:
            if engine == "numpy":
                raise
            summary = _summarise_by_sql(run, until_epoch, memory_limit)
    roster = run.roster()
    return roster.join(summary, how="outer") if len(roster) else summary


def _summarise_by_numpy(run: Run, until_epoch: int | None, memory_limit: int) -> pd.DataFrame:
    return reduce_rows(
        run.footers(), run.attempts, until_epoch=until_epoch, memory_limit=memory_limit
    )


_SUMMARY = """
WITH seen AS (SELECT * FROM samples WHERE occurrence = 0 AND epoch <= $until_epoch),
forgetting AS (
    SELECT sample_id, count(*) AS n_forgotten
    FROM (SELECT sample_id, correct, lag(correct) OVER (PARTITION BY sample_id ORDER BY epoch)
          AS before FROM seen WHERE correct IS NOT NULL)
    WHERE before = 1 AND correct <> 1
    GROUP BY sample_id
),
summary AS (
    SELECT
        sample_id,
        count(*) AS n_observed,
        avg(loss::DOUBLE) AS mean_loss,
        var_pop(loss::DOUBLE) AS var_loss,
        min(epoch) FILTER (loss IS NOT NULL) AS first_epoch,
        max(epoch) FILTER (loss IS NOT NULL) AS last_epoch,
        (min(epoch) FILTER (correct = 1))::DOUBLE AS first_learned,
        count(*) FILTER (correct = 1) AS n_correct,
        avg(margin::DOUBLE) AS aum,
        avg(p_true::DOUBLE) AS mean_p_true,
        stddev_pop(p_true::DOUBLE) AS std_p_true,
        avg(el2n::DOUBLE) AS mean_el2n,
        avg(grad_norm::DOUBLE) AS mean_grad_norm
    FROM seen GROUP BY sample_id
),
ends AS (  -- by a join: arg_min and arg_max took ten times as long as all of the above
    SELECT sample_id, max(loss) FILTER (epoch = first_epoch) AS first_loss,
           max(loss) FILTER (epoch = last_epoch) AS last_loss
    FROM seen JOIN summary USING (sample_id)
    WHERE epoch IN (first_epoch, last_epoch)
    GROUP BY sample_id
)
SELECT sample_id, n_observed, mean_loss, var_loss, first_loss::DOUBLE AS first_loss,
       last_loss::DOUBLE AS last_loss, first_learned, coalesce(n_forgotten, 0) AS n_forgotten,
       n_correct, aum, mean_p_true, std_p_true, mean_el2n, mean_grad_norm
FROM summary LEFT JOIN ends USING (sample_id) LEFT JOIN forgetting USING (sample_id)
ORDER BY sample_id
"""


def _summarise_by_sql(run: Run, until_epoch: int | None, memory_limit: int) -> pd.DataFrame:
    last = np.iinfo(np.int32).max if until_epoch is None else until_epoch
    table = run.sql(_SUMMARY, {"until_epoch": last}, memory_limit=memory_limit)
    return table.set_index("sample_id")


def iter_epochs(run: Run, columns: Sequence[str]) -> Iterator[tuple[int, pd.DataFrame]]:
    """Rows of one epoch after the other, in bounded memory.

    Args:
        run: The run.
        columns: Columns to read beside the keys.

    Yields:
        Epoch and its rows, one per sample, index `sample_id`.
    """
    for rows in _iter_epochs(run, columns):
        yield int(rows["epoch"][0]), pd.DataFrame(rows).set_index("sample_id")


def _iter_epochs(run: Run, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    check_columns(columns)
    return iter_first(run.footers(), run.attempts, columns, epoch_by_epoch=True)


def summarise_epochs(
    run: Run,
    column: str,
    *,
    groups: pd.Series | None = None,
    engine: Literal["numpy", "duckdb"] = "numpy",
) -> pd.DataFrame:
    """Distribution of a per-sample column in each epoch, by group.

    Args:
        run: The run.
        column: Column of `samples`, such as loss or grad_norm.
        groups: Name of each sample's group, index `sample_id`; one group `all` by default.
        engine: NumPy holds one epoch at a time, DuckDB every value of the column.

    Returns:
        Columns `epoch, group, n, mean, stderr` (of the mean), `q05, q25, median, q75, q95` (linear
        between order statistics); one row per epoch and group with a recorded value.
    """
    if engine == "duckdb":
        return _summarise_epochs_by_sql(run, column, groups)
    names, find = _find_groups(groups)
    records = []
    for rows in _iter_epochs(run, [column]):
        x = rows[column].astype(np.float64)
        of = find(rows["sample_id"])
        of[np.isnan(x)] = len(names)
        records += [
            {"epoch": int(rows["epoch"][0]), "group": name} | _describe(x[of == code])
            for code, name in enumerate(names)
            if (of == code).any()
        ]
    columns = ["epoch", "group", "n", "mean", "stderr", *_QUANTILES]
    return pd.DataFrame(records, columns=columns)


def _describe(x: np.ndarray) -> dict[str, float]:
    stderr = x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan
    quantiles = np.quantile(x, list(_QUANTILES.values()), overwrite_input=True)
    return {"n": len(x), "mean": x.mean(), "stderr": stderr} | dict(
        zip(_QUANTILES, quantiles, strict=True)
    )


def _find_groups(
    groups: pd.Series | None,
) -> tuple[list[object], Callable[[np.ndarray], np.ndarray]]:
    """Names of groups, and a function from samples to the number of their group's name."""
    if groups is None:
        return ["all"], lambda ids: np.zeros(len(ids), dtype=np.int64)
    by_id = groups.dropna().sort_index()
    codes, names = pd.factorize(by_id.astype(object), sort=True)
    known = by_id.index.to_numpy()

    def find(ids: np.ndarray) -> np.ndarray:
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[at] == ids, codes[at], len(names))

    return list(names), find


def _summarise_epochs_by_sql(run: Run, column: str, groups: pd.Series | None) -> pd.DataFrame:
    levels = list(_QUANTILES.values())
    x = f'"{column.replace(chr(34), chr(34) * 2)}"::DOUBLE'
    if groups is None:
        tables, source, name = {}, "samples", "'all'"
    else:
        known = pd.DataFrame({"sample_id": groups.index, "name": groups.to_numpy()}).dropna()
        tables = {"groups": known}
        source, name = "samples JOIN groups USING (sample_id)", "name"
    quantiles = ", ".join(f"q[{i + 1}] AS {quantile}" for i, quantile in enumerate(_QUANTILES))
    query = f"""
        SELECT * EXCLUDE (q), {quantiles} FROM (
            SELECT epoch::BIGINT AS epoch, {name} AS "group", count({x}) AS n, avg({x}) AS mean,
                   stddev_samp({x}) / sqrt(n) AS stderr, quantile_cont({x}, {levels}) AS q
            FROM {source} WHERE occurrence = 0 AND {x} IS NOT NULL GROUP BY ALL
        ) ORDER BY epoch, "group"
    """  # noqa: S608  # the column is one of the trace, and quoted
    return run.sql(query, tables=tables)


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
