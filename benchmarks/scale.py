"""What the summary of a trace costs when workers share it: the constants of docs/scale.md.

Runs of 80 epochs with three random values a row and sparse 63-bit ids are written, and each is
summarised by the embedded engine, by processes and by Ray, as it was written and compacted. Every
answer is compared with the embedded one. Workers are started and have imported everything before
the clock runs; what that takes is quoted by itself. The hash of every byte is within the time.

    python benchmarks/scale.py [--rows 1e6 1e7 1e8] [--workers 1 2 4] [--folder /tmp/scale-bench]

Some 8 minutes and 4 GB of disk on two cores that nothing else uses. `python docs/scale.py` then
makes the page from the results.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import environment, peak_bytes
from scale_model import describe_model
from traces import EPOCHS, VALUES, write_trace

from dynamics import open_run
from dynamics.executors import Spread, open_executor
from dynamics.sample_ranges import summarise_ranges
from dynamics.summary import summarise_samples
from dynamics.traces.compaction.compact import compact

LIMITS = {"until_epoch": None, "memory_limit": 10**9}
COUNTS = ("n_observed", "n_correct", "n_forgotten")
COMPACT_UP_TO = 2e7
"""Rows up to which the compacted form is measured too; it takes long, and its cost is linear."""


def nap(seconds: float, _: int) -> tuple[int, int]:
    """A call that does nothing for so long that others get one too; who did it, and its peak."""
    import dynamics.sample_ranges  # noqa: F401  # what a worker needs is there when it is timed

    time.sleep(seconds)
    return os.getpid(), peak_bytes("cpu")


def start_all(spread: Spread, workers: int) -> None:
    """Wait until every worker has done something."""
    seen: set[int] = set()
    while len(seen) < workers:
        seen |= {pid for pid, _ in spread(nap, 0.1, range(workers))}


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a function takes, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(found: pd.DataFrame, expected: pd.DataFrame) -> dict[str, Any]:
    """How far a summary is from the embedded one."""
    means = [column for column in expected if column not in COUNTS]
    x, y = found[means].to_numpy(), expected[means].to_numpy()
    return {
        "same_ids": bool(np.array_equal(found.index, expected.index)),
        "same_counts": all(found[c].equals(expected[c]) for c in COUNTS),
        "same_bits": bool(found.equals(expected)),
        "largest_difference": float(np.nanmax(np.abs(x - y) / np.maximum(np.abs(y), 1e-12))),
    }


def by_executor(
    name: str, workers: int, path: Path, expected: pd.DataFrame, rounds: int
) -> dict[str, Any]:
    """Start workers, let them summarise a run some times, and compare what they found."""
    start = time.perf_counter()
    with open_executor(name, workers) as (spread, _):  # type: ignore[arg-type]
        start_all(spread, workers)
        started = time.perf_counter() - start
        call = timed(lambda: [*spread(nap, 0.0, range(100))])[0] / 100
        runs = [
            timed(lambda: summarise_ranges(open_run(path), spread, workers, **LIMITS))
            for _ in range(rounds)
        ]
        peaks = [*spread(nap, 0.2, range(workers))]
    return {
        "executor": name,
        "workers": workers,
        "start_s": started,
        "call_s": call,
        "work_s": statistics.median(seconds for seconds, _ in runs),
        "work_s_lowest": min(seconds for seconds, _ in runs),
        "worker_peak_bytes": max(peak for _, peak in peaks),
        **compare(runs[-1][1], expected),
    }


def measure_form(path: Path, workers: Sequence[int], rounds: int) -> dict[str, Any]:
    """Every engine on one run as it lies."""
    seconds = [timed(lambda: summarise_samples(open_run(path))) for _ in range(rounds)]
    expected = seconds[-1][1]
    rows = []
    for name in ("process", "ray"):
        for n in workers:
            rows.append(by_executor(name, n, path, expected, rounds))
            print(path.name, rows[-1], flush=True)
    return {"embedded_s": statistics.median(s for s, _ in seconds), "executors": rows}


def measure_size(folder: Path, n_rows: float, workers: Sequence[int], rounds: int) -> dict:
    """Write a run, summarise it as written and compacted, delete it."""
    n_samples = round(n_rows / EPOCHS)
    path = folder / f"rows-{n_rows:.0e}"
    ids = np.unique(np.random.default_rng(2).integers(0, 2**63 - 1, n_samples))
    written = write_trace(path, len(ids), VALUES, ids)
    result = {"n_rows": len(ids) * EPOCHS, "n_samples": len(ids), **written}
    print(result, flush=True)
    result["as_written"] = measure_form(path, workers, rounds)
    if n_rows <= COMPACT_UP_TO:
        result["compact_s"], _ = timed(lambda: compact(path))
        size = sum(file.stat().st_size for file in path.rglob("*.parquet"))
        result["compacted_bytes_per_row"] = size / result["n_rows"]
        result["compacted"] = measure_form(path, workers, rounds)
    shutil.rmtree(path)
    return result


def main() -> None:
    """Measure everything and write the JSON that docs/scale.md is made from."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7, 1e8])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/scale-bench"))
    parser.add_argument("--note", default="")
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "scale-cpu.json")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    content: dict[str, Any] = {
        "environment": environment("cpu", "pyarrow", "pandas", "numpy", "ray")
        | {"note": arguments.note},
        "epochs": EPOCHS,
        "sizes": [],
    }
    for n_rows in sorted(arguments.rows):
        rounds = arguments.rounds if n_rows <= COMPACT_UP_TO else 1
        size = measure_size(arguments.folder, n_rows, arguments.workers, rounds)
        content["sizes"].append(size)
        content["model"] = describe_model(content["sizes"], os.cpu_count() or 1)
        arguments.out.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
