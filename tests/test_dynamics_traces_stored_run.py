"""Runs and studies on an object store read as those on a disk do, and say what is wrong if not."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import compacted, make_run
from object_store import BUCKET, local_store
from typer.testing import CliRunner

from dynamics import open_run, open_study
from dynamics.describe import describe_run
from dynamics.summary import summarise_samples
from dynamics.traces import CorruptTraceError, TraceError, TraceWriter, begin_attempt, create_run
from dynamics.traces.compaction.compact import compact
from dynamics.traces.layout import write_durably
from dynamics.traces.stored_run import StoredRun
from dynamics.traces.vectors import encode_vector, vector_file_name


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with local_store(tmp_path_factory.mktemp("cache")) as store:
        yield store


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(tmp_path):
    made = make_run(tmp_path / "made", 3, ids="63-bit", world_sizes=(1, 2))
    vector = encode_vector({"w": np.array([1.0, 2.0])})
    folder = made.path / "vectors" / "rank-00000"
    folder.mkdir(parents=True)
    write_durably(folder, vector_file_name("v", vector, attempt=1, step=99, epoch=9), vector)
    return made


def copies(cache):
    return [path for path in cache.rglob("*.parquet")]


def assert_reads_as(stored, local):
    pd.testing.assert_frame_equal(stored.samples(repeats=True), local.samples(repeats=True))
    pd.testing.assert_frame_equal(stored.scalars(), local.scalars())
    pd.testing.assert_frame_equal(stored.events(), local.events())
    pd.testing.assert_frame_equal(stored.roster(), local.roster())
    assert stored.attempts == local.attempts
    assert stored.ended_cleanly is local.ended_cleanly is True
    for engine in ("numpy", "duckdb"):
        of_stored = summarise_samples(stored, engine=engine)
        pd.testing.assert_frame_equal(of_stored, summarise_samples(local, engine=engine))
    assert stored.vector("v")["w"].tolist() == [1.0, 2.0]
    assert stored.name == "a"


def test_a_run_reads_as_it_does_from_the_disk_before_and_after_compaction(store, cache, made):
    stored = open_run(store.upload(made.path, "as-is/a"))
    assert_reads_as(stored, made.run)
    assert repr(stored) == f"Run('s3://{BUCKET}/as-is/a')"
    assert describe_run(stored)["run"] == f"s3://{BUCKET}/as-is/a"
    compacted(made)
    again = open_run(store.upload(made.path, "compacted/a"))
    assert len(again.parts("samples")) > 1
    assert all(part.sample_range for part in again.parts("samples"))
    assert_reads_as(again, made.run)


def test_one_sample_of_a_compacted_run_copies_one_bucket_and_a_second_time_none(store, cache, made):
    compacted(made)
    run = open_run(store.upload(made.path, "one/a"))
    assert len(run.parts("samples")) > 1
    assert copies(cache) == []
    sample = int(run.parts("samples")[0].sample_range[0])
    expected = made.run.samples(sample_id=sample)
    pd.testing.assert_frame_equal(run.samples(sample_id=sample), expected)
    (only,) = copies(cache)
    inode = only.stat().st_ino
    open_run(f"s3://{BUCKET}/one/a").samples(sample_id=sample)
    assert copies(cache) == [only]
    assert only.stat().st_ino == inode


def test_a_run_that_grows_or_is_compacted_is_seen_anew(store, cache, tmp_path):
    folder = tmp_path / "a"
    create_run(folder, {})
    attempt = begin_attempt(folder, from_step=0, from_epoch=0)
    writer = TraceWriter(folder, attempt=attempt, max_rows=2, max_seconds=1e9)
    stored = None
    for epoch in range(3):
        keys = {"step": [epoch] * 2, "epoch": [epoch] * 2, "sample_id": [5, 6]}
        writer.append("samples", keys | {"loss": [1.0, 2.0]})
        writer.flush()
        url = store.upload(folder, "growing/a")
        stored = stored or open_run(url)
        assert len(stored.samples()) == 2 * (epoch + 1)
        assert not stored.ended_cleanly
    writer.close()
    compact(folder)
    store.upload(folder, "growing/a")
    assert len(stored.samples()) == 6  # the parts that it replaces are still there too
    for key in store.keys("growing/a/samples/"):
        store.delete(key)
    assert len(stored.samples()) == 6
    assert stored.ended_cleanly


def test_a_study_is_opened_with_its_runs_and_nothing_else(store, cache, tmp_path):
    study = {"schema_version": "1.0", "name": "s", "factors": {"ratio": [0.0, 0.5]}}
    study["schema_version"] = json.loads(
        (make_run(tmp_path / "study" / "r1", 1).path / "run.json").read_text()
    )["schema_version"]
    make_run(tmp_path / "study" / "r2", 2)
    (tmp_path / "study" / "study.json").write_text(json.dumps(study))
    (tmp_path / "study" / "notes").mkdir()
    (tmp_path / "study" / "notes" / "a.txt").write_text("not a run")
    url = store.upload(tmp_path / "study", "studies/one")
    stored, local = open_study(url), open_study(tmp_path / "study")
    assert [run.name for run in stored.runs] == ["r1", "r2"]
    pd.testing.assert_frame_equal(stored.table(), local.table())
    query = "SELECT run, count(*) AS n, sum(loss) AS loss FROM samples GROUP BY run ORDER BY run"
    pd.testing.assert_frame_equal(stored.sql(query), local.sql(query))
    assert repr(stored) == f"Study('{url}')"
    with pytest.raises(TraceError, match="is a study, not a run"):
        open_run(url)
    with pytest.raises(TraceError, match="is a run, not a study"):
        open_study(f"{url}/r1")


def test_a_worker_that_gets_the_run_needs_neither_listing_nor_small_files(store, cache, made):
    run = open_run(store.upload(made.path, "worker/a"))
    parts, expected = run.parts("samples"), made.run.footers()
    sent = copy.deepcopy(run)  # as pickle does
    assert isinstance(sent, StoredRun)
    shutil.rmtree(run.path)
    found = sent.footers_of(parts, threads=1)
    assert [f.part.name for f in found] == [f.part.name for f in expected]
    assert sent.attempts == made.run.attempts


def test_what_an_upload_has_not_brought_yet_is_named(store, cache, made):
    names = sorted(p.name for p in (made.path / "samples" / "rank-00000").iterdir())
    first = f"samples/rank-00000/{names[0]}"
    run = open_run(store.upload(made.path, "half/a", but=[first]))
    with pytest.raises(TraceError, match=r"lacks samples/rank-00000/part-0000-000000-… and|lacks"):
        run.samples()
    store.put("half/a/" + first, (made.path / first).read_bytes())
    assert len(run.samples()) == len(made.run.samples())
    url = store.upload(made.path, "no-attempt/a", but=["attempts/attempt-0001.json"])
    with pytest.raises(CorruptTraceError, match="no record of attempt 1"):
        open_run(url).samples()
    compacted(made)
    manifest = "compacted/v0001/manifest.json"
    url = store.upload(made.path, "no-manifest/a", but=[manifest])
    with pytest.raises(TraceError, match="not yet their manifest"):
        open_run(url)
    bucket = made.run.parts("samples")[0].path.relative_to(made.path).as_posix()
    url = store.upload(made.path, "no-bucket/a", but=[bucket])
    with pytest.raises(TraceError, match=f"lacks {bucket}"):
        open_run(url).samples()


def test_a_damaged_part_never_reaches_the_cache(store, cache, made):
    run = open_run(store.upload(made.path, "damaged/a"))
    name = run.parts("samples")[0].path.name
    key = next(key for key in store.keys("damaged/a/samples") if name in key)
    data = bytearray(store.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(CorruptTraceError, match=r"is damaged.*Upload the file again"):
        run.samples()
    assert name not in {path.name for path in copies(cache)}
    assert not [*cache.rglob(".tmp-*")]


def test_a_copy_that_rots_is_found_and_the_way_out_named(store, cache, made):
    url = store.upload(made.path, "rotten/a")
    open_run(url).samples()
    rotten = copies(cache)[0]
    data = bytearray(rotten.read_bytes())
    data[len(data) // 2] ^= 1
    rotten.write_bytes(data)
    with pytest.raises(CorruptTraceError, match=f"delete {rotten.parents[2]}") as error:
        summarise_samples(open_run(url))
    assert url in str(error.value)
    shutil.rmtree(rotten.parents[2])
    assert len(summarise_samples(open_run(url))) == len(summarise_samples(made.run))


def test_writing_and_mending_are_refused_on_a_store(store, cache, made, tmp_path, monkeypatch):
    from dynamics.traces.mending.repair import repair
    from dynamics.traces.verification.verify import verify

    monkeypatch.chdir(tmp_path)
    url = store.upload(made.path, "refused/a")
    for function in (compact, repair, verify):
        with pytest.raises(TraceError, match="aws s3 sync"):
            function(url)
    from dynamics.traces.layout import run_folder

    with pytest.raises(TraceError, match="never written"):
        run_folder(Path(url).parent, "a")
    assert not (tmp_path / "s3:").exists()


def test_two_runs_uploaded_to_one_place_are_not_read_as_one(store, cache, made, tmp_path):
    store.upload(made.path, "twice/a")
    other = make_run(tmp_path / "other", 3, ids="63-bit", world_sizes=(1, 2))
    data = (other.path / "samples").rglob("part-*.parquet")
    name = next(data).relative_to(other.path).as_posix()
    run = open_run(store.upload(made.path, "twice/a"))
    assert len(run.samples()) > 0
    changed = name[: -len("0123456789abcdef.parquet")] + "0123456789abcdef.parquet"
    store.put(f"twice/a/{changed}", b"another run's")
    with pytest.raises(TraceError, match="two runs were uploaded to one place"):
        run.samples()


def test_the_command_line_takes_a_url(store, cache, made, tmp_path, monkeypatch):
    from studies.cli import app

    monkeypatch.chdir(tmp_path)
    url = store.upload(made.path, "command/a")
    described = CliRunner().invoke(app, ["inspect", url, "--json"])
    assert described.exit_code == 0, described.output
    assert json.loads(described.stdout) == describe_run(open_run(url))
    exported = CliRunner().invoke(app, ["export", url, "--out", "rows.csv"])
    assert exported.exit_code == 0, exported.output
    assert len(pd.read_csv("rows.csv")) == len(made.run.samples(repeats=True))
    reported = CliRunner().invoke(app, ["report", url])
    assert reported.exit_code == 0, reported.output
    assert url in (tmp_path / "report.html").read_text(encoding="utf-8")
    refused = CliRunner().invoke(app, ["report", f"s3://{BUCKET}/nothing"])
    assert refused.exit_code == 2
    assert "holds nothing" in refused.output
