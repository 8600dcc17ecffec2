"""Writes the generated pages and the README's figures: run by `make docs`."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from dynamics import open_run
from dynamics.traces.schema import describe_schema
from reports import write_report
from studies.demo import run_demo

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"


def main() -> None:
    """Write docs/trace-format.md, docs/performance.md, and the figures of a fresh demo run."""
    (DOCS / "trace-format.md").write_text(describe_schema(), encoding="utf-8")
    (DOCS / "performance.md").write_text(describe_performance(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder) / "run")
        run = open_run(Path(folder) / "run")
        write_report(run, Path(folder) / "report.html", figures=Path(folder) / "figures")
        shutil.copy(Path(folder) / "figures" / "loss.png", DOCS / "demo-loss.png")
        shutil.copy(Path(folder) / "figures" / "detection_auc.png", DOCS / "demo-detection.png")
    sys.stdout.write("docs written\n")


def describe_performance() -> str:
    """The page on cost, from the results that benchmarks/grad_norm.py has written."""
    lines = [
        "# What gradient norms cost",
        "",
        "Made by `make docs` from `benchmarks/results/`; do not edit. A step here is forward and "
        "backward pass with the norms of all parameters, written to disk by the recorder; numbers "
        "are the median of paired ratios to the plain step (lowest and highest round in brackets), "
        "interleaved, on one thread. Peers compute the same norms and write nothing. Memory is the "
        "peak of a process of its own, above the plain step's; some 75 MiB of ours is the trace "
        "writer (Arrow), whatever the network.",
        "",
        "Our rows: `fused` lets layers form their gradient from the per-sample ones (equal to "
        "rounding); `backpack engine` leaves training bit-identical; `sketch` estimates. `loss "
        "alone` is `SampleLoss` with margin, p(label) and EL2N; `every 16th step` is the backpack "
        "engine on that schedule.",
    ]
    for path in sorted(RESULTS.glob("grad_norm-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        lines += ["", f"## {path.stem}", ""]
        lines += [", ".join(f"{k} {v}" for k, v in content["environment"].items() if v)]
        for network in content["networks"]:
            lines += ["", f"### {network['network']}", ""]
            lines += [
                "| method | step ÷ plain step | peak memory above plain |",
                "| --- | --- | --- |",
            ]
            plain = next(row for row in network["methods"] if row["method"] == "plain")
            lines += [_row(row, plain) for row in network["methods"]]
    return "\n".join(lines) + "\n"


def _row(row: dict[str, Any], plain: dict[str, Any]) -> str:
    if "refused" in row:
        return f"| {row['method']} | refuses: {row['refused'].split('(')[0].strip()} | – |"
    ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
    peaks = row.get("peak_bytes"), plain.get("peak_bytes")
    extra = "–" if None in peaks else f"{(peaks[0] - peaks[1]) / 2**20:+.0f} MiB"
    return f"| {row['method']} | {ratio} | {extra} |"


if __name__ == "__main__":
    main()
