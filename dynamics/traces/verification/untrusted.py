"""Verifies a trace from a stranger in a process of its own, with limits: `verify_untrusted`.

Decoders are large programs, and a file may be made to break one. Here it can break only a child
process, which may neither write files, nor use more than a stated memory and time.
"""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from dynamics.traces.errors import TraceError
from dynamics.traces.verification.findings import Finding, Severity, findings_table
from dynamics.traces.verification.verify import verify

MEMORY = 1 << 30
"""Bytes that the child may use beyond what it has once everything is imported."""

BYTES_PER_SECOND = 2_000_000
_PATIENCE_S = 30


def verify_untrusted(path: str | Path) -> pd.DataFrame:
    """Check a run or study as `verify` does, in a child process with limits.

    The child gets 1 GiB of memory beyond its start, half a minute and a second for every 2 MB, and
    cannot write to files. If it dies, that is a damage, named after the file it had in hand.

    Args:
        path: Folder of the run or study.

    Returns:
        As `verify`.

    Raises:
        TraceError: If there is neither a run nor a study.
    """
    path = Path(path)
    timeout_s = _PATIENCE_S + _size(path) / BYTES_PER_SECOND
    command = [sys.executable, "-m", "dynamics.traces.verification.untrusted", str(path.absolute())]
    # Other pools reserve a gigabyte, and so does malloc: an arena for each thread that must wait.
    plain = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
    plain |= {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(  # noqa: S603 (this interpreter, and a path as one argument)
            command, capture_output=True, text=True, timeout=timeout_s, env=plain, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else ""
        return _death(path, said, f"took more than {timeout_s:.0f} s")
    if done.returncode != 0:
        return _death(path, done.stderr, f"ended the process with exit code {done.returncode}")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise TraceError(answer["error"])
    return pd.DataFrame(answer["findings"], columns=["run", "severity", "file", "what", "mend"])


def _size(path: Path) -> int:
    files = (p for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(file.stat().st_size for file in files)


def _death(path: Path, said: str, how: str) -> pd.DataFrame:
    at = [line.removeprefix("at ") for line in said.splitlines() if line.startswith("at ")]
    what = f"checking it {how}. It was not written by this toolkit: do not open it."
    return findings_table(path, [Finding(Severity.damage, Path(at[-1]) if at else path, what)])


def _announce(items: Iterable[object]) -> Iterator[object]:
    for item in items:
        part = item[1] if isinstance(item, tuple) else item
        print(f"at {getattr(part, 'path', part)}", file=sys.stderr, flush=True)  # noqa: T201 (to the parent)
        yield item


def main() -> None:
    """The child: limit itself, verify, print the findings as JSON."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    used = pages * resource.getpagesize()
    if used:  # elsewhere the system does not say, and may not hold such a limit
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        found = verify(sys.argv[1], progress=_announce)
        answer: dict[str, object] = {"findings": found.to_dict("records")}
    except TraceError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))  # noqa: T201 (to the parent)


if __name__ == "__main__":
    main()
