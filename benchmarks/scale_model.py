"""The cost model of docs/scale.md: a few measured constants, checked, then extrapolated.

    T(N, W) = N c / (min(W, cores) e) + calls · call_s

N rows, W workers; c the seconds a row takes one worker, e the efficiency of two workers, both from
the run of ten million rows alone. Starting the workers is added where they are started for one
question. All other sizes are predicted and compared.
"""

from typing import Any

REFERENCE_ROWS = 1e7
ROWS_PER_CALL, ROWS_PER_RANGE = 4e6, 16 * 2**20
TARGET = {"n_samples": 1_280_000, "n_epochs": 300, "n_runs": 500}
ASSUMED = {
    "cores_per_machine": 16,
    "dollars_per_machine_hour": 0.80,
    "network_bytes_per_s": 1.25e9,
    "dollars_per_gb_month": 0.023,
    "dollars_per_1000_reads": 0.0004,
    "dollars_per_1000_writes": 0.005,
}
"""Prices and machines as a large cloud lists them; nothing here was bought."""


def describe_model(sizes: list[dict[str, Any]], cores: int) -> dict[str, Any]:
    """Constants, predictions beside what was measured, and what they imply.

    Args:
        sizes: What `measure_size` returned, ascending.
        cores: Cores of the machine that measured.

    Returns:
        JSON-able values by name.
    """
    reference = min(sizes, key=lambda size: abs(size["n_rows"] - REFERENCE_ROWS))
    constants = {name: fit(reference, name) for name in ("process", "ray")}
    checks = [
        check(size, row, constants[row["executor"]], cores)
        for size in sizes
        for row in size["as_written"]["executors"]
    ]
    largest = sizes[-1]
    embedded = largest["as_written"]["embedded_s"] / largest["n_rows"]
    return {
        "reference_rows": reference["n_rows"],
        "constants": constants,
        "checks": checks,
        "target": TARGET,
        "assumed": ASSUMED,
        "embedded_s_per_row": embedded,
        "extrapolated": extrapolate(constants["ray"], largest, embedded),
        "crossovers": crossovers(constants, embedded),
    }


def fit(size: dict[str, Any], name: str) -> dict[str, float]:
    """Constants of an executor from one size."""
    rows = {r["workers"]: r for r in size["as_written"]["executors"] if r["executor"] == name}
    one, two = rows[1]["work_s"], rows[2]["work_s"]
    return {
        "s_per_row": one / size["n_rows"],
        "efficiency": min(1.0, one / (2 * two)),
        "call_s": min(row["call_s"] for row in rows.values()),
        "start_s": min(row["start_s"] for row in rows.values()),
        "worker_peak_bytes": max(row["worker_peak_bytes"] for row in rows.values()),
    }


def predict(n_rows: float, workers: int, constants: dict[str, float], cores: int) -> float:
    """Seconds for a run, with the workers already there."""
    at_once = min(workers, cores)
    efficiency = constants["efficiency"] if at_once > 1 else 1.0
    calls = -(-n_rows // ROWS_PER_CALL) + max(workers, -(-n_rows // ROWS_PER_RANGE))
    return n_rows * constants["s_per_row"] / (at_once * efficiency) + calls * constants["call_s"]


def check(
    size: dict[str, Any], row: dict[str, Any], constants: dict[str, float], cores: int
) -> dict[str, Any]:
    """A prediction beside what was measured."""
    predicted = predict(size["n_rows"], row["workers"], constants, cores)
    keys = {key: row[key] for key in ("executor", "workers", "work_s")}
    error = predicted / row["work_s"] - 1
    return {"n_rows": size["n_rows"], **keys, "predicted_s": predicted, "relative_error": error}


def extrapolate(
    constants: dict[str, float], size: dict[str, Any], embedded: float
) -> dict[str, Any]:
    """What the target takes: bytes, core seconds, and time and money by number of machines."""
    rows_per_run = TARGET["n_samples"] * TARGET["n_epochs"]
    n_rows = rows_per_run * TARGET["n_runs"]
    n_bytes = n_rows * size["bytes_per_row"]
    n_parts = n_rows / 1e6
    core_s = n_rows * constants["s_per_row"] / constants["efficiency"]
    machines = []
    for n in (1, 4, 16, 64):
        compute_s = core_s / (n * ASSUMED["cores_per_machine"])
        network_s = n_bytes / (n * ASSUMED["network_bytes_per_s"])
        seconds = max(compute_s, network_s) + constants["start_s"]
        dollars = n * seconds / 3600 * ASSUMED["dollars_per_machine_hour"]
        parts = {"compute_s": compute_s, "network_s": network_s}
        machines.append({"machines": n, **parts, "seconds": seconds, "dollars": dollars})
    return {
        "n_rows": n_rows,
        "n_bytes": n_bytes,
        "core_s": core_s,
        "write_core_s": n_rows / size["rows_per_s"],
        "embedded_s_per_run": rows_per_run * embedded,
        "embedded_s": n_rows * embedded,
        "result_bytes_per_run": TARGET["n_samples"] * 14 * 8,
        "storage_dollars_per_month": n_bytes / 1e9 * ASSUMED["dollars_per_gb_month"],
        "read_dollars": 2 * n_parts / 1000 * ASSUMED["dollars_per_1000_reads"],
        "write_dollars": n_parts / 1000 * ASSUMED["dollars_per_1000_writes"],
        "machines": machines,
    }


def crossovers(constants: dict[str, dict[str, float]], embedded: float) -> list[dict[str, Any]]:
    """Rows from which on workers, with their start, are faster than the embedded engine."""
    found = []
    for name, known in constants.items():
        for cores in (2, 4, 8, 16, 64):
            gained = embedded - known["s_per_row"] / (cores * known["efficiency"])
            rows = known["start_s"] / gained if gained > 0 else None
            found.append({"executor": name, "cores": cores, "n_rows": rows})
    return found
