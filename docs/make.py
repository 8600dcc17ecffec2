"""Writes the generated pages and the README's figures: run by `make docs`."""

import shutil
import sys
import tempfile
from pathlib import Path

from integrations import describe_integrations
from performance import describe_performance
from scale import write_scale

from dynamics import open_run
from dynamics.traces.format_page import describe_format
from reports import write_report
from studies.demo import run_demo

DOCS = Path(__file__).parent


def main() -> None:
    """Write the pages that are made from code and results, and the figures of a demo run."""
    (DOCS / "trace-format.md").write_text(describe_format(), encoding="utf-8")
    (DOCS / "performance.md").write_text(describe_performance(), encoding="utf-8")
    (DOCS / "integrations.md").write_text(describe_integrations(), encoding="utf-8")
    write_scale()
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder) / "run")
        run = open_run(Path(folder) / "run")
        write_report(run, Path(folder) / "report.html", figures=Path(folder) / "figures")
        shutil.copy(Path(folder) / "figures" / "loss.png", DOCS / "demo-loss.png")
        shutil.copy(Path(folder) / "figures" / "detection_auc.png", DOCS / "demo-detection.png")
    sys.stdout.write("docs written\n")


if __name__ == "__main__":
    main()
