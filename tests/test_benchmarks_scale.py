"""The benchmark of scale compares what workers found, and its model is arithmetic."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))


@pytest.fixture(scope="module")
def model():
    return pytest.importorskip("scale_model", exc_type=ImportError)


def measured(n_rows, seconds, workers=(1, 2)):
    """A size at which one worker takes so many seconds, two 5/8 of that, four no less."""
    factors = {1: 1.0, 2: 0.625, 4: 0.625}
    rows = [
        {
            "executor": name,
            "workers": n,
            "start_s": 4.0,
            "call_s": 0.0,
            "work_s": seconds * factors[n],
            "worker_peak_bytes": 2**28,
            "same_ids": True,
            "same_counts": True,
            "same_bits": name == "process",
            "largest_difference": 0.0 if name == "process" else 2e-7,
        }
        for name in ("process", "ray")
        for n in workers
    ]
    form = {"embedded_s": seconds / 2, "executors": rows}
    size = {"n_rows": n_rows, "n_samples": n_rows // 80, "bytes_per_row": 10.0, "rows_per_s": 1e6}
    return size | {"as_written": form}


def test_the_constants_are_those_of_ten_million_rows(model):
    described = model.describe_model([measured(10**6, 9.0), measured(10**7, 1.0)], cores=2)
    ray = described["constants"]["ray"]
    assert ray["s_per_row"] == pytest.approx(1e-7)
    assert ray["efficiency"] == pytest.approx(0.8)
    errors = {(r["n_rows"], r["workers"]): r["relative_error"] for r in described["checks"]}
    assert errors[10**7, 1] == pytest.approx(0)
    assert errors[10**7, 2] == pytest.approx(0)
    assert errors[10**6, 1] == pytest.approx(0.1 / 9 - 1)


def test_more_workers_than_cores_are_no_faster(model):
    constants = {"s_per_row": 1e-7, "efficiency": 0.8, "call_s": 0.0}
    seconds = [model.predict(10**8, n, constants, 2) for n in (1, 2, 4)]
    assert seconds == pytest.approx([10.0, 6.25, 6.25])


def test_what_it_implies_in_the_head(model):
    """192 billion rows of 10 bytes; 19,200 core seconds at 80 %: 24,000 over 16 cores, 1,500 s."""
    described = model.describe_model([measured(10**7, 1.0)], cores=2)
    implied = described["extrapolated"]
    assert implied["n_rows"] == 192_000_000_000
    assert implied["n_bytes"] == pytest.approx(1.92e12)
    assert implied["core_s"] == pytest.approx(24_000)
    one, four = implied["machines"][:2]
    assert one["compute_s"] == pytest.approx(1500)
    assert one["network_s"] == pytest.approx(1536)
    assert one["seconds"] == pytest.approx(1540)
    assert four["dollars"] == pytest.approx(4 * (384 + 4) / 3600 * 0.8)
    by_cores = {r["cores"]: r["n_rows"] for r in described["crossovers"] if r["executor"] == "ray"}
    assert by_cores[2] is None  # 50 ns embedded, 62.5 by two workers
    assert by_cores[4] == pytest.approx(4 / (50e-9 - 31.25e-9))


def test_results_become_the_page(model):
    page_of = pytest.importorskip("scale").describe_scale
    sizes = [measured(10**7, 1.0, (1, 2, 4))]
    content = {"environment": {"cores": "2"}, "epochs": 80, "sizes": sizes}
    content["model"] = model.describe_model(sizes, 2)
    page = page_of(json.loads(json.dumps(content)))
    assert (
        "| 10 M rows, 125,000 samples | as written | ray | 2 | 0.62 | 0.80 | equal | 2e-07 |"
        in page
    )
    assert (
        "| 10 M rows, 125,000 samples | as written | process | 1 | 1.00 | 1.00 | equal | "
        "same bits |" in page
    )
    assert "| 2 | never | never |" in page
    sizes[0]["as_written"]["executors"][0]["same_counts"] = False
    assert "**differ**" in page_of(content)


def test_a_difference_is_seen(model):
    """`scale` is the page's name, too, so the benchmark is loaded from its file."""
    import importlib.util

    path = Path(__file__).parent.parent / "benchmarks" / "scale.py"
    spec = importlib.util.spec_from_file_location("benchmarks_scale", path)
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    counts = {name: [1, 2] for name in scale.COUNTS}
    expected = pd.DataFrame(counts | {"mean_loss": [0.5, np.nan]}, index=[7, 8])
    assert scale.compare(expected.copy(), expected) == {
        "same_ids": True,
        "same_counts": True,
        "same_bits": True,
        "largest_difference": 0.0,
    }
    other = expected.assign(mean_loss=[0.5 + 1e-6, np.nan], n_correct=[1, 3])
    found = scale.compare(other, expected)
    assert (found["same_ids"], found["same_counts"], found["same_bits"]) == (True, False, False)
    assert found["largest_difference"] == pytest.approx(2e-6)
