"""What this machine is, for a report of a problem: `dynamics doctor`."""

import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "training-dynamics",
    "torch",
    "backpack-for-pytorch",
    "numpy",
    "pandas",
    "pyarrow",
    "duckdb",
    "matplotlib",
    "lightning",
    "transformers",
    "accelerate",
    "tensorboard",
    "wandb",
    "mlflow-skinny",
    "ray",
)
SLOW_S = 0.1
"""Median time of a durable write above which a run should be written elsewhere."""


def examine(folder: Path, *, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Versions, torch's build, the devices, and how long a durable write takes.

    Args:
        folder: Where runs are going to be written.
        clock: Seconds; only differences count.

    Returns:
        JSON-able values by name. `findings` lists what should be mended, one sentence each.
    """
    packages = {name: _version(name) for name in PACKAGES}
    latencies = measure_writes(folder, clock=clock)
    answer = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": packages,
        "torch": _describe_torch(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "compiler": shutil.which("c++"),
        "disk": {
            "folder": str(folder.resolve()),
            "free_gb": round(shutil.disk_usage(folder).free / 1e9, 1),
            "write_median_s": statistics.median(latencies),
            "write_worst_s": max(latencies),
        },
    }
    return answer | {"findings": list_findings(answer)}


def measure_writes(
    folder: Path, *, n: int = 20, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds that writes of 64 KiB take until they are durable, as a part of a trace is.

    Args:
        folder: Where to write; what is written is removed again.
        n: Number of writes.
        clock: Seconds; only differences count.

    Returns:
        One value per write: temporary file, fsync, rename, fsync of the folder.
    """
    seconds = []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for i in range(n):
            start = clock()
            path = Path(name) / f"{i}.part"
            with path.with_suffix(".tmp").open("wb") as file:
                file.write(bytes(2**16))
                file.flush()
                os.fsync(file.fileno())
            path.with_suffix(".tmp").replace(path)
            descriptor = os.open(name, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            seconds.append(clock() - start)
    return seconds


def list_findings(answer: dict[str, Any]) -> list[str]:
    """What should be mended.

    Args:
        answer: What `examine` has gathered.

    Returns:
        One sentence each; empty if all is well.
    """
    findings = []
    disk = answer["disk"]
    if disk["write_median_s"] > SLOW_S:
        findings.append(
            f"A durable write to {disk['folder']} takes {disk['write_median_s']:.2f} s. Write runs "
            "to a local disk, and copy them when they have ended."
        )
    if disk["free_gb"] < 1:
        findings.append(f"{disk['folder']} has {disk['free_gb']} GB free; a run may fill it.")
    if answer["torch"]["built_for"] != "cpu" and not answer["torch"]["devices"]:
        findings.append(
            f"torch is built for {answer['torch']['built_for']}, but sees no device: look at the "
            "driver, and at CUDA_VISIBLE_DEVICES."
        )
    return findings


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _describe_torch() -> dict[str, Any]:
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "built_for": f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "cpu",
        "devices": devices,
        "threads": torch.get_num_threads(),
    }
