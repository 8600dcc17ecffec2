"""What a store can refuse, what can break on the way, and how much the cache may hold."""

import os

import pytest
from made_runs import make_run
from object_store import BUCKET, KEYS, local_store

from dynamics import open_run, open_study
from dynamics.traces import TraceError
from dynamics.traces.object_store import StoredFolder, make_room


@pytest.fixture
def store(tmp_path):
    with local_store(tmp_path / "cache") as store:
        yield store


def test_a_bucket_or_folder_that_is_not_there(store):
    with pytest.raises(FileNotFoundError, match="no bucket 'nowhere'"):
        open_run("s3://nowhere/runs/a")
    with pytest.raises(FileNotFoundError, match="no bucket 'nowhere'"):
        open_study("s3://nowhere/runs")
    with pytest.raises(TraceError, match=f"s3://{BUCKET}/runs/a holds nothing"):
        open_run(f"s3://{BUCKET}/runs/a")
    store.put("runs/b/x.txt", b"")
    with pytest.raises(TraceError, match=r"runs/b has no run.json"):
        open_run(f"s3://{BUCKET}/runs/b")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@traces/a", "must not hold credentials"),
        ("s3://traces", "does not name a folder"),
        ("s3://traces/a/../b", "does not name a folder"),
        ("gopher://traces/a", "not a place that pyarrow can read"),
    ],
)
def test_a_url_that_cannot_be_one(store, url, message):
    with pytest.raises(ValueError, match=message) as error:
        open_run(url)
    assert "secret" not in str(error.value)


def test_a_store_that_does_not_know_us(store, monkeypatch):
    """moto checks no signature unless told to; then it knows nobody."""
    from moto.core import set_initial_no_auth_action_count

    @set_initial_no_auth_action_count(0)
    def refused():
        with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID") as error:
            open_run(f"s3://{BUCKET}/runs/a")
        assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(error.value)

    refused()


def test_a_store_that_is_gone_when_a_part_is_asked_for(store, tmp_path):
    made = make_run(tmp_path / "a", 0)
    url = store.upload(made.path, "runs/a")
    run = open_run(url)
    parts = run.parts("samples")
    store.server.stop()
    try:
        with pytest.raises(ConnectionError, match=r"Check the network.*what was copied so far"):
            run.footers_of(parts)
    finally:
        store.server.start()


def test_a_connection_that_breaks_within_a_part_leaves_nothing_and_can_be_tried_again(
    store, tmp_path, monkeypatch
):
    made = make_run(tmp_path / "a", 0)
    run = open_run(store.upload(made.path, "runs/a"))
    whole = StoredFolder._chunks

    def short(self, remote):
        yield from (chunk[: len(chunk) // 2] for chunk in whole(self, remote))

    monkeypatch.setattr(StoredFolder, "_chunks", short)
    with pytest.raises(ConnectionError, match=r"ended after \d+ of \d+ bytes"):
        run.samples()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    monkeypatch.setattr(StoredFolder, "_chunks", whole)
    assert len(run.samples()) == len(made.run.samples())


def files(cache, **sizes):
    cache.mkdir()
    for at, (name, size) in enumerate(sizes.items()):
        (cache / name).write_bytes(bytes(size))
        os.utime(cache / name, ns=(10**9 * at, 10**9 * (9 - at)))  # last used, last written
    return cache


def test_what_was_used_longest_ago_makes_room(tmp_path, monkeypatch):
    cache = files(tmp_path / "cache", a=30, b=30, c=30)
    monkeypatch.setenv("DYNAMICS_CACHE_BYTES", "100")
    make_room(cache, 10, keep=[])
    assert {path.name for path in cache.iterdir()} == {"a", "b", "c"}
    make_room(cache, 40, keep=[cache / "a"])
    assert {path.name for path in cache.iterdir()} == {"a", "c"}
    with pytest.raises(TraceError, match=r"DYNAMICS_CACHE_BYTES"):
        make_room(cache, 80, keep=[cache / "a"])


def test_reading_again_counts_as_use_and_the_cache_stays_within_its_bound(
    store, tmp_path, monkeypatch
):
    runs, sizes = {}, {}
    for name in "abc":
        made = make_run(tmp_path / name, ord(name))
        runs[name] = open_run(store.upload(made.path, f"runs/{name}"))
        sizes[name] = sum(part.path.stat().st_size for part in made.run.parts("samples"))
    runs["a"].footers(), runs["b"].footers(), runs["a"].footers()
    held = lambda: {p.parent.parent.parent.name for p in (tmp_path / "cache").rglob("*.parquet")}  # noqa: E731
    assert held() == {"a", "b"}
    monkeypatch.setenv("DYNAMICS_CACHE_BYTES", str(sum(sizes.values()) - 1))
    runs["c"].footers()
    assert {"a", "c"} <= held()
    left = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.parquet"))
    assert left <= sum(sizes.values()) - 1
    assert len(runs["b"].samples()) > 0  # what made room is copied again
