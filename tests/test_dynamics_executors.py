"""Workers: the same result, errors that arrive as they were, and Ray as one would want it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import compacted, make_run
from object_store import local_store

from dynamics import open_run
from dynamics.executors import open_executor
from dynamics.summary import summarise_samples
from dynamics.traces import CorruptTraceError, TraceWriter, begin_attempt, create_run

ROOT = Path(__file__).parent.parent


def add(common, argument):
    return common + argument


def die(common, argument):
    os._exit(1)


def die_twice(folder, argument):
    """Ends its process, as a kill does, the first two times."""
    for at in (1, 2):
        marker = Path(folder) / f"died-{argument}-{at}"
        if argument == 3 and not marker.exists():
            marker.touch()
            os._exit(1)
    return argument * argument


def write_sparse_run(folder, n_samples=20_000, epochs=10):
    """Samples with ids anywhere below 2⁶³, seen in another order in every epoch."""
    rng = np.random.default_rng(1)
    ids = np.unique(rng.integers(0, 2**63 - 1, n_samples))
    create_run(folder, {})
    attempt = begin_attempt(folder, from_step=0, from_epoch=0)
    writer = TraceWriter(folder, attempt=attempt, max_rows=50_000)
    for epoch in range(epochs):
        n = len(ids)
        rows = {"step": np.arange(n) // 128, "epoch": np.full(n, epoch)}
        rows |= {name: rng.random(n, dtype=np.float32) for name in ("loss", "margin", "p_true")}
        writer.append("samples", rows | {"sample_id": rng.permutation(ids), "correct": ids % 2})
    writer.close()
    return folder


def damage(path):
    part = open_run(path).parts("samples")[0].path
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


@pytest.mark.ddp
def test_processes_share_a_run_on_the_disk_and_one_on_an_object_store(tmp_path):
    made = make_run(tmp_path / "a", 2, ids="63-bit", world_sizes=(1, 2))
    expected = summarise_samples(made.run)
    found = summarise_samples(made.run, executor="process", workers=2)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    with local_store(tmp_path / "cache") as store:
        run = open_run(store.upload(compacted(made).path, "runs/a"))
        found = summarise_samples(run, executor="process", workers=2)
        pd.testing.assert_frame_equal(found, expected)


@pytest.mark.ddp
def test_what_goes_wrong_in_a_process_is_told_here(tmp_path):
    made = make_run(tmp_path / "a", 2)
    damage(made.path)
    with pytest.raises(CorruptTraceError, match="is damaged"):
        summarise_samples(made.run, executor="process", workers=1)
    with (
        pytest.raises(RuntimeError, match="A worker process died"),
        open_executor("process", 1) as (spread, _),
    ):
        list(spread(die, 0, [1]))


def test_what_cannot_be_asked_for(tmp_path):
    run = make_run(tmp_path / "a", 2).run
    with pytest.raises(ValueError, match="not 'dask'"):
        summarise_samples(run, executor="dask")
    with pytest.raises(ValueError, match="workers must be at least 1"):
        summarise_samples(run, executor="process", workers=0)
    with pytest.raises(ValueError, match="workers are those of an executor"):
        summarise_samples(run, workers=2)
    with pytest.raises(ValueError, match="leave engine away"):
        summarise_samples(run, executor="process", engine="duckdb")


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_of_ray_is_imported_unless_it_is_asked_for(tmp_path):
    made = make_run(tmp_path / "a", 2)
    code = (
        "import sys; from dynamics import open_run; from dynamics.summary import summarise_samples"
        "\nimport dynamics.traces.stored_run"
        "\nassert len(summarise_samples(open_run(sys.argv[1])))"
        "\nprint(sorted(m for m in sys.modules if m.partition('.')[0] == 'ray'))"
    )
    assert run_python(code, made.path) == "[]\n"


def test_without_ray_the_error_says_what_to_install(tmp_path):
    made = make_run(tmp_path / "a", 2)
    code = (
        "import sys; from dynamics import open_run; from dynamics.summary import summarise_samples"
        "\nsys.modules['ray'] = None"
        "\ntry: summarise_samples(open_run(sys.argv[1]), executor='ray')"
        "\nexcept ImportError as error: print(error)"
    )
    assert "pip install 'training-dynamics[ray]'" in run_python(code, made.path)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One for all: a process keeps the first token that it has read."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def ray_at_home(home, monkeypatch):
    """Ray that takes a folder of the tests for the user's home, and none before or after."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    for name in ("RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    yield ray
    ray.shutdown()


@pytest.mark.ray
def test_a_ray_of_our_own_gives_the_same_bits_outlives_its_workers_and_ends(
    ray_at_home, home, tmp_path
):
    path = write_sparse_run(tmp_path / "a")
    expected = summarise_samples(open_run(path))
    with open_executor("ray", 2) as (spread, workers):
        assert workers == 2
        from dynamics.sample_ranges import summarise_ranges

        limits = {"until_epoch": None, "memory_limit": 10**9}
        found = summarise_ranges(open_run(path), spread, workers, **limits)
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
        assert list(spread(die_twice, str(tmp_path), range(5))) == [0, 1, 4, 9, 16]
        damage(path)
        with pytest.raises(CorruptTraceError, match="is damaged"):
            summarise_ranges(open_run(path), spread, workers, **limits)
        store = ray_at_home.cluster_resources()["object_store_memory"]
        assert store <= 512 << 20
        assert ray_at_home._private.worker.global_worker.node.webui_url in (None, "")
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not ray_at_home.is_initialized()
    assert (home / ".ray" / "auth_token").is_file()  # authentication was left on


@pytest.mark.ray
def test_a_ray_that_was_there_before_is_used_and_left_running(ray_at_home, tmp_path):
    ray_at_home.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
    )
    made = compacted(make_run(tmp_path / "a", 2, ids="sparse"))
    found = summarise_samples(made.run, executor="ray")
    pd.testing.assert_frame_equal(found, summarise_samples(made.run), check_exact=True)
    assert ray_at_home.is_initialized()
