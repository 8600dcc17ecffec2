"""What the benchmarks share: the environment they ran in, and the peak memory of a process."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path


def environment(device: str, *packages: str) -> dict[str, str]:
    """What the numbers depend on."""
    import torch  # here, so that a process that measures memory need not load it

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        **{name: version(name) for name in ("torch", *packages)},
    }


def peak_alone(script: str, *arguments: str) -> int | None:
    """What a script prints as its peak, in a process of its own; None if that fails."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def peak_bytes(device: str) -> int:
    """Most bytes that this process has held so far."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
