"""Every way to train with every probe, for docs/integrations.md: `python benchmarks/modes.py`."""

import json
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from ddp_modes import judge_distributed
from modes import MODES, PROBES, judge

OUT = Path(__file__).parent / "results" / "modes.json"


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for mode in MODES:
            for probe in PROBES:
                torch._dynamo.reset()
                folder = Path(name) / f"{len(rows)}" / "run"
                folder.parent.mkdir()
                rows.append({"mode": mode, "probe": probe, **asdict(judge(mode, probe, folder))})
                print(rows[-1])
        rows += judge_distributed(Path(name))
    for row in rows:
        row["error"] = None if row["error"] is None else float(f"{row['error']:.1e}")
    content = {"environment": {"torch": torch.__version__}, "verdicts": rows}
    OUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
