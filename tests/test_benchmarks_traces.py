"""The benchmark of traces runs, and its peers agree on what they compute; nothing is timed here."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))

N = 50


@pytest.fixture(scope="module")
def traces():
    return pytest.importorskip("traces", exc_type=ImportError)


@pytest.fixture(scope="module")
def path(traces, tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "run"
    written = traces.write_trace(path, N, traces.VALUES)
    assert written["parts"] == 1
    assert 9 < written["bytes_per_row"] < 40  # a small part is mostly footer
    return path


def means(method, table):
    if method.startswith("ours"):
        return table["mean_loss"].to_numpy()
    if method == "pandas":
        return table["loss"]["mean"].to_numpy()
    ids, mean = ("sample_id", "loss_mean") if method == "pyarrow" else ("sample_id", "mean")
    return np.asarray(table[mean])[np.argsort(np.asarray(table[ids]))]


@pytest.mark.parametrize("method", ["ours, DuckDB", "pandas", "pyarrow", "Polars", "DuckDB"])
def test_peers_compute_the_same_means(traces, path, method):
    if method == "Polars":
        pytest.importorskip("polars")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = traces.METHODS[method][0](path)
    expected = traces.METHODS["ours, NumPy"][0](path)["mean_loss"]
    np.testing.assert_allclose(means(method, found), expected, rtol=1e-6)


def test_a_method_alone_tells_its_seconds_and_its_peak(traces, path):
    result = traces.alone("one sample", path)
    assert {"seconds", "peak_bytes", "first_s", "later_s"} == set(result)
    assert "does not exist" in traces.alone("ours, NumPy", path / "no run")["refused"]


def test_a_peer_that_is_not_there_is_a_result(traces, path, monkeypatch):
    nowhere = (traces.by_polars, ("no_such_package",))
    monkeypatch.setitem(traces.METHODS, "nobody", nowhere)
    assert "refused" in traces.alone("nobody", path)


def test_the_writer_takes_its_rows_while_a_loop_trains(traces, tmp_path):
    load = traces.load_on_training(tmp_path, 1, steps=64)
    assert load["ratio"] > 0
    assert 0 < load["share_within_append"] < 1
    assert list(tmp_path.iterdir()) == []


def test_results_become_a_section_of_the_page(traces, path):
    performance = pytest.importorskip("performance")
    one = {"method": "ours", "seconds": 1.0, "peak_bytes": 2**20}
    sample = one | {"method": "one sample", "first_s": 0.5, "later_s": 0.01}
    refused = {"method": "Polars", "refused": "not installed"}
    size = {"n_rows": 1e6, "n_samples": 12_500, "rows_per_s": 1e6, "bytes_per_row": 9.0, "parts": 1}
    load = {"step_s": 0.01, "ratio": 1.005, "ratio_low": 1.0, "ratio_high": 1.01, "rounds": 3}
    content = {
        "environment": {"cores": "2"},
        "load": load | {"share_within_append": 0.001},
        "two_values": size,
        "report": one | {"n_rows": 1e7},
        "sizes": [size | {"methods": [one, refused, sample]}],
    }
    page = "\n".join(performance._describe_traces("traces-cpu", json.loads(json.dumps(content))))
    assert "| ours | 1.00 s (1000 ns a row), 1 MiB |" in page
    assert "| Polars | – (not installed) |" in page
    assert "takes +0.5% with the writer at work" in page
