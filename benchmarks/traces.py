"""What traces cost: bytes and time a row to write, and seconds and memory to read them back.

A trace of 80 epochs is written by the real writer, 16,384 rows at a time as the recorder hands them
over, with three values of random bits for each presentation: the worst case for its size. Every
reader runs in a process of its own, whose peak memory is quoted with the interpreter; peers read
the same files. Methods are interleaved over the rounds, and the median is quoted.

    python benchmarks/traces.py [--rows 1e6 1e7 1.024e8] [--rounds 3] [--folder /tmp/traces-bench]

At full size this takes some 15 minutes, 1.5 GB of disk and, for pandas, 6 GB of memory. Polars is
compared where it is installed.
"""

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS, BATCH, ROWS_PER_APPEND = 80, 256, 16_384
VALUES = ("loss", "margin", "grad_norm")


def write_trace(
    path: Path, n_samples: int, values: Sequence[str], ids: np.ndarray | None = None
) -> dict[str, float]:
    """Write a run of random values, and tell what that took; sample ids from 0 by default."""
    from dynamics.traces import TraceWriter, begin_attempt, create_run

    create_run(path, {"n_samples": n_samples})
    attempt = begin_attempt(path, from_step=0, from_epoch=0)
    writer = TraceWriter(path, attempt=attempt, max_seconds=1e9)
    rng = np.random.default_rng(0)
    all_ids = np.arange(n_samples) if ids is None else ids
    step, start = 0, time.perf_counter()
    for epoch in range(EPOCHS):
        order = rng.permutation(all_ids)
        for first in range(0, n_samples, ROWS_PER_APPEND):
            chosen = order[first : first + ROWS_PER_APPEND]
            columns = random_rows(rng, chosen, epoch, step, values)
            writer.append("samples", columns)
            step = int(columns["step"][-1]) + 1
    writer.close()
    seconds = time.perf_counter() - start
    parts = list(path.glob("samples/*/part-*.parquet"))
    n_rows = n_samples * EPOCHS
    size = sum(part.stat().st_size for part in parts)
    return {"bytes_per_row": size / n_rows, "rows_per_s": n_rows / seconds, "parts": len(parts)}


def random_rows(
    rng: np.random.Generator, ids: np.ndarray, epoch: int, step: int, values: Sequence[str]
) -> dict[str, np.ndarray]:
    """Rows of consecutive batches, values uniform over the 2²⁴ float32 in [0, 1)."""
    n = len(ids)
    keys = {"step": step + np.arange(n) // BATCH, "epoch": np.full(n, epoch), "sample_id": ids}
    return keys | {name: rng.random(n, dtype=np.float32) for name in values}


def write_full_trace(path: Path, n_samples: int) -> None:
    """A run with every column that a report draws from, a fifth of its labels wrong."""
    from dynamics.traces import TraceWriter, begin_attempt, create_run

    create_run(path, {"n_samples": n_samples})
    attempt = begin_attempt(path, from_step=0, from_epoch=0)
    writer = TraceWriter(path, attempt=attempt, max_seconds=1e9)
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, n_samples)
    is_wrong = rng.random(n_samples) < 0.2
    label = np.where(is_wrong, (true + 1) % 10, true)
    roster = {"sample_id": np.arange(n_samples), "label": label, "true_label": true}
    writer.append("roster", roster)
    step = 0
    for epoch in range(EPOCHS):
        order = rng.permutation(n_samples)
        for first in range(0, n_samples, ROWS_PER_APPEND):
            ids = order[first : first + ROWS_PER_APPEND]
            columns = random_rows(rng, ids, epoch, step, ["margin", "el2n", "grad_norm"])
            step = int(columns["step"][-1]) + 1
            high = is_wrong[ids] & (epoch < 30)
            loss = np.where(high, 3.0, 0.1) * rng.uniform(0.7, 1.3, len(ids))
            columns |= {"loss": loss, "p_true": np.exp(-loss), "correct": (~high).astype(np.int8)}
            columns["predicted"] = np.where(high, true[ids], label[ids])
            writer.append("samples", columns)
    writer.close()


def load_on_training(folder: Path, rounds: int, steps: int = 512) -> dict[str, Any]:
    """Seconds of a training loop of fixed work, alone and while a writer takes its rows."""
    import torch

    from dynamics.traces import TraceWriter, begin_attempt, create_run

    torch.set_num_threads(1)
    x, w = torch.randn(BATCH, 1024), torch.randn(1024, 1024)
    rng = np.random.default_rng(0)
    per_append = ROWS_PER_APPEND // BATCH
    rows = [random_rows(rng, rng.permutation(ROWS_PER_APPEND), 0, i, VALUES) for i in range(8)]

    def loop(writer: TraceWriter | None) -> tuple[float, float]:
        """Seconds in all, and those within `append`."""
        start, within = time.perf_counter(), 0.0
        for step in range(steps):
            for _ in range(n_products):
                torch.mm(x, w)
            if writer is not None and (step + 1) % per_append == 0:
                before = time.perf_counter()
                columns = rows[step // per_append % len(rows)]
                writer.append("samples", columns | {"epoch": np.full(ROWS_PER_APPEND, step)})
                within += time.perf_counter() - before
        return time.perf_counter() - start, within

    n_products = 1
    once = min(loop(None)[0] for _ in range(3)) / steps
    n_products = max(1, round(0.010 / once))
    pairs = []
    for number in range(rounds):
        path = folder / f"load-{number}"
        create_run(path, {})
        attempt = begin_attempt(path, from_step=0, from_epoch=0)
        writer = TraceWriter(path, attempt=attempt, max_rows=4 * ROWS_PER_APPEND)
        turns = [lambda: loop(None), lambda writer=writer: loop(writer)]
        first = number % 2
        results = {i: turns[i]() for i in (first, 1 - first)}
        writer.close()
        shutil.rmtree(path)
        pairs.append((results[0][0], *results[1]))
    ratios = [recorded / plain for plain, recorded, _ in pairs]
    return {
        "step_s": statistics.median(plain for plain, _, _ in pairs) / steps,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "share_within_append": statistics.median(within / r for _, r, within in pairs),
        "rounds": rounds,
    }


def paths_of(path: Path) -> list[str]:
    """The parts, as a peer is given them."""
    return sorted(map(str, path.glob("samples/*/part-*.parquet")))


def ours(engine: str) -> Callable[[Path], Any]:
    """`summarise_samples`: thirteen columns, every part verified first."""

    def summarise(path: Path) -> Any:
        from dynamics import open_run
        from dynamics.summary import summarise_samples

        return summarise_samples(open_run(path), engine=engine)  # type: ignore[arg-type]

    return summarise


def by_pandas(path: Path) -> Any:
    """Count, mean and variance of the loss and two means, all parts in memory."""
    import pandas as pd

    frame = pd.concat(
        pd.read_parquet(part, columns=["sample_id", *VALUES]) for part in paths_of(path)
    )
    return frame.groupby("sample_id").agg(
        {"loss": ["count", "mean", "var"], "margin": "mean", "grad_norm": "mean"}
    )


def by_pyarrow(path: Path) -> Any:
    """The same by pyarrow's group_by."""
    import pyarrow.parquet as pq

    table = pq.read_table(paths_of(path), columns=["sample_id", *VALUES])
    wanted = [("loss", "count"), ("loss", "mean"), ("loss", "variance"), ("margin", "mean")]
    return table.group_by("sample_id").aggregate([*wanted, ("grad_norm", "mean")])


def by_polars(path: Path) -> Any:
    """The same by Polars, streaming."""
    import polars as pl

    loss = pl.col("loss")
    wanted = [loss.count(), loss.mean().alias("mean"), loss.var().alias("var")]
    wanted += [pl.col("margin").mean(), pl.col("grad_norm").mean()]
    table = pl.scan_parquet(paths_of(path)).group_by("sample_id").agg(wanted)
    return table.collect(engine="streaming")


def by_duckdb(path: Path) -> Any:
    """The same by DuckDB, unverified, at a limit of 1 GB."""
    import duckdb

    with duckdb.connect(config={"threads": os.cpu_count() or 1, "memory_limit": "1GB"}) as database:
        database.execute("SET preserve_insertion_order = false")
        return database.execute(
            "SELECT sample_id, count(loss), avg(loss::DOUBLE) AS mean, var_samp(loss::DOUBLE), "
            "avg(margin::DOUBLE), avg(grad_norm::DOUBLE) FROM read_parquet(?) GROUP BY sample_id",
            [paths_of(path)],
        ).fetchnumpy()


def one_sample(path: Path) -> dict[str, float]:
    """Seconds for the trajectory of one sample: a run's first, and the median of later ones."""
    from dynamics import open_run

    run = open_run(path)
    ids = np.random.default_rng(0).integers(0, run.info["n_samples"], 21).tolist()
    seconds = []
    for sample_id in ids:
        start = time.perf_counter()
        assert len(run.samples(sample_id=sample_id)) == EPOCHS
        seconds.append(time.perf_counter() - start)
    return {"first_s": seconds[0], "later_s": statistics.median(seconds[1:])}


def report(path: Path) -> None:
    """`write_report`."""
    from dynamics import open_run
    from reports import write_report

    write_report(open_run(path), path / "report.html")


METHODS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "ours, NumPy": (ours("numpy"), ("dynamics.summary",)),
    "ours, DuckDB": (ours("duckdb"), ("dynamics.summary", "duckdb")),
    "pandas": (by_pandas, ("pandas", "pyarrow.parquet")),
    "pyarrow": (by_pyarrow, ("pyarrow.parquet",)),
    "Polars": (by_polars, ("polars",)),
    "DuckDB": (by_duckdb, ("duckdb",)),
    "one sample": (one_sample, ("dynamics",)),
    "report": (report, ("reports", "matplotlib.figure")),
}
"""By name: what to do, and the modules whose import is not timed."""


def alone(method: str, path: Path) -> dict[str, Any]:
    """Run a method in a process of its own: its seconds, its peak, and what it returned."""
    command = [sys.executable, __file__, "--alone", method, "--folder", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"refused": (done.stderr.strip().splitlines() or ["killed"])[-1][:120]}
    return json.loads(done.stdout.splitlines()[-1])


def run_alone(method: str, path: Path) -> None:
    """What the process of `alone` does."""
    from measuring import peak_bytes

    measure, modules = METHODS[method]
    for module in modules:
        importlib.import_module(module)
    start = time.perf_counter()
    returned = measure(path)
    seconds = time.perf_counter() - start
    more = returned if method == "one sample" else {}
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes("cpu"), **more}))


def medians(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of each number over the rounds; a refusal if there was one."""
    refused = [result for result in results if "refused" in result]
    if refused:
        return refused[0]
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def compare(path: Path, methods: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Every method on one trace, interleaved over the rounds."""
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method in methods:
            results[method].append(alone(method, path))
            print(f"{path.name:<16} {method:<14} {results[method][-1]}", flush=True)
    return [{"method": method, **medians(found)} for method, found in results.items()]


def measure_size(folder: Path, n_rows: float, rounds: int) -> dict[str, Any]:
    """Write a trace, read it by every method, delete it."""
    path = folder / f"rows-{n_rows:.0e}"
    n_samples = round(n_rows / EPOCHS)
    written = write_trace(path, n_samples, VALUES)
    print(path.name, written, flush=True)
    try:
        methods = [name for name in METHODS if name != "report"]
        return {
            "n_rows": n_samples * EPOCHS,
            "n_samples": n_samples,
            **written,
            "methods": compare(path, methods, rounds),
        }
    finally:
        shutil.rmtree(path)


def main() -> None:
    """Measure everything and write the JSON that docs/performance.md is made from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7, 1.024e8])
    parser.add_argument("--report-rows", type=float, default=1e7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/traces-bench"))
    parser.add_argument("--note", default="")
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "traces-cpu.json")
    parser.add_argument("--alone")
    arguments = parser.parse_args()
    if arguments.alone:
        run_alone(arguments.alone, arguments.folder)
        return
    from measuring import environment

    folder, rounds = arguments.folder, arguments.rounds
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "environment": environment("cpu", "pyarrow", "duckdb", "pandas", "numpy")
        | {"note": arguments.note}
    }
    content["load"] = load_on_training(folder, 3 * rounds)
    print(content["load"], flush=True)
    content["two_values"] = write_trace(folder / "two", 125_000, VALUES[:2])
    shutil.rmtree(folder / "two")
    write_full_trace(folder / "full", round(arguments.report_rows / EPOCHS))
    content["report"] = {
        "n_rows": arguments.report_rows,
        **compare(folder / "full", ["report"], rounds)[0],
    }
    shutil.rmtree(folder / "full")
    content["sizes"] = []
    for n_rows in arguments.rows:
        content["sizes"].append(measure_size(folder, n_rows, rounds))
        arguments.out.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
