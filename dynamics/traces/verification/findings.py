"""What `verify` found: how bad, in which file, what, and how to mend it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

import pandas as pd


class Severity(IntEnum):
    """How bad a finding is; a command's exit code follows the worst."""

    note = 0
    """Worth knowing; nothing is wrong."""
    finding = 1
    """Unexpected, but what is read is what was recorded."""
    damage = 3
    """Bytes or files are not those written; rows are lost or cannot be read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in a run."""

    severity: Severity
    file: Path
    what: str
    mend: str = ""


def findings_table(run: Path, findings: Iterable[Finding]) -> pd.DataFrame:
    """Findings as a table, worst first.

    Args:
        run: Folder of the run; files are named from there.
        findings: What was found.

    Returns:
        Columns `run, severity, file, what, mend`, all text.
    """
    rows = []
    for found in sorted(findings, key=lambda f: (-f.severity, str(f.file))):
        inside = found.file.is_relative_to(run)
        file = found.file.relative_to(run).as_posix() if inside else str(found.file)
        names = {"severity": found.severity.name, "file": file}
        names["what"] = found.what.removeprefix(f"{found.file} ")
        rows.append({"run": run.name} | asdict(found) | names)
    return pd.DataFrame(rows, columns=["run", "severity", "file", "what", "mend"])
