"""Whatever a log's bytes are, an import gives a run or our error, and leaves nothing else."""

import contextlib
import shutil

import numpy as np
import pandas as pd
import pytest

from dynamics import import_log
from dynamics.traces import TraceError
from tests import foreign_logs

NAMES = ["dynamics_epoch_0.jsonl", "full_aum_records.csv", "a.csv", "a.parquet", "a.jsonl"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    place = tmp_path_factory.mktemp("originals")
    foreign_logs.write_cartography(place / "log")
    shutil.copy(place / "log" / "training_dynamics" / NAMES[0], place / NAMES[0])
    foreign_logs.write_csv(place / NAMES[1], foreign_logs.aum_records())
    rows = foreign_logs.plain_rows()
    foreign_logs.write_csv(place / "a.csv", rows)
    pd.DataFrame(rows).to_parquet(place / "a.parquet")
    pd.DataFrame(rows).to_json(place / "a.jsonl", orient="records", lines=True)
    return {name: (place / name).read_bytes() for name in NAMES}


def mutate(data, rng):
    """One byte changed, the end cut off, a piece doubled, or a piece overwritten."""
    data = bytearray(data)
    first, last = sorted(rng.integers(0, len(data), 2).tolist())
    kind = rng.integers(4)
    if kind == 0:
        data[first] = rng.integers(256)
    elif kind == 1:
        del data[first:]
    elif kind == 2:
        data[first:first] = data[first:last]
    else:
        pieces = [b"\xff" * 8, b"9" * 30, b"\0" * 8, b"-", b'"', b"\n", b"\r", b"[[", b"1e999"]
        data[first : first + 4] = pieces[rng.integers(len(pieces))]
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [8, pytest.param(400, marks=pytest.mark.slow)])
def test_a_mutated_log_gives_a_run_or_our_error(tmp_path, originals, name, n):
    rng = np.random.default_rng(n)
    for _ in range(n):
        (tmp_path / name).write_bytes(mutate(originals[name], rng))
        with contextlib.suppress(TraceError):
            import_log(tmp_path / name, tmp_path / "run")
        assert {path.name for path in tmp_path.iterdir()} <= {name, "run"}
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
