"""Who may make a run: one process at a time, on any machine that shares the folder.

The claim is a lock of the operating system (`flock`), so it ends with its process however that
dies, and there is no stale one to clear away. Network file systems need their locks switched on
(NFS has them, Lustre with `-o flock`); without, the trace's own fence still refuses the second
writer.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a claim.

    Args:
        path: File of the claim; its folder exists.
        wait: Whether to wait for a claim that another process holds.

    Yields:
        Whether the claim is held; False only if another process holds it and `wait` is False.
    """
    with path.open("a") as file:
        yield _lock(file.fileno(), wait)


def _lock(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
