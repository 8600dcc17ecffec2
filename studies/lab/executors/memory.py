"""Whether there is memory for one more process."""

from collections.abc import Sequence
from pathlib import Path

_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def has_room(available: int, peak: int, resident: Sequence[int]) -> bool:
    """Whether one more process fits, once those that run have grown to their peak.

    Args:
        available: Bytes that are free now.
        peak: Bytes that a process holds at most.
        resident: Bytes that each running process holds now.

    Returns:
        available − Σ max(0, peak − resident_i) ≥ peak.
    """
    return available - sum(max(0, peak - held) for held in resident) >= peak


def available_bytes() -> int | None:
    """Bytes that processes may still take: the machine's, or the container's if those are fewer.

    Returns:
        The bytes; None where the system does not say, as on macOS.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}["MemAvailable"]
    for limit, used in _LIMITS:
        try:
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # no such file, or `max`: no limit
            continue
    return free


def resident_bytes(pid: int) -> int:
    """Bytes that a process holds now.

    Args:
        pid: The process.

    Returns:
        Its resident set; 0 if it has ended or the system does not say.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 if "VmRSS:" in status else 0
