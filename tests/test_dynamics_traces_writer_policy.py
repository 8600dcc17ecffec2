"""What happens when the trace cannot be written: raise, go on without, or wait."""

import errno
import resource
import shutil
import signal
import subprocess
import threading
import time
import warnings

import numpy as np
import pytest
from processes import CONTEXT

from dynamics import open_run
from dynamics.traces import StaleWriterError, TraceError, TraceWriter, begin_attempt, create_run
from dynamics.traces import buffer as buffer_module
from dynamics.traces import writer as writer_module


@pytest.fixture
def folder(tmp_path):
    create_run(tmp_path / "run", {})
    begin_attempt(tmp_path / "run", from_step=0, from_epoch=0)
    return tmp_path / "run"


@pytest.fixture
def start(folder):
    writers = []

    def start(**settings):
        writers.append(TraceWriter(folder, attempt=0, **{"max_seconds": 1e9} | settings))
        return writers[-1]

    yield start
    for writer in writers:
        writer._give_up.set()
        writer._queue.put(None)  # whatever the test left behind, no thread stays


def rows(n, *, step=0):
    keys = {"step": np.full(n, step), "epoch": np.zeros(n, int), "sample_id": np.arange(n)}
    values = np.random.default_rng(step).random((2, n), dtype=np.float32)
    return keys | {"loss": values[0], "grad_norm": values[1]}


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while `disk.error` is set."""

    class Disk:
        error = None
        tries = 0

    written = buffer_module.Outbox.write.__globals__["write_durably"]

    def write(*args):
        Disk.tries += 1
        if Disk.error is not None:
            raise Disk.error
        return written(*args)

    monkeypatch.setattr("dynamics.traces.outbox.write_durably", write)
    return Disk


ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EIO, errno.EROFS]


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_disable_raises_nothing_tells_why_and_writes_when_it_can(folder, start, disk, code):
    writer = start(on_error="disable")
    writer.append("samples", rows(2))
    writer.flush()
    disk.error = OSError(code, "no")
    writer.append("samples", rows(3, step=1))
    writer.flush()
    assert writer.failure.errno == code
    assert writer.n_waiting == 3
    writer.append("samples", rows(4, step=2))
    writer.flush()
    assert writer.n_waiting == 7
    disk.error = None
    writer.close()
    assert (writer.failure, writer.n_waiting) == (None, 0)
    assert open_run(folder).samples(repeats=True)["step"].value_counts().to_dict() == {
        0: 2, 1: 3, 2: 4,
    }  # fmt: skip


def test_disable_at_the_close_says_how_much_is_lost_and_leaves_no_end(folder, start, disk):
    writer = start(on_error="disable")
    writer.append("samples", rows(2))
    writer.flush()
    disk.error = OSError(errno.ENOSPC, "full")
    writer.append("samples", rows(3, step=1))
    writer.close()
    assert writer.n_waiting == 3
    run = open_run(folder)
    assert len(run.samples()) == 2
    assert not run.ended_cleanly


def test_an_end_that_cannot_be_put_on_record_is_told(folder, start, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("dynamics.traces.writer.write_json_once", fail)
    writer = start(on_error="disable")
    writer.append("samples", rows(2))
    writer.close()
    assert writer.failure.errno == errno.ENOSPC
    with pytest.raises(TraceError, match="not on record"):
        start(on_error="raise").close()


def test_it_is_tried_again_in_time_without_a_call(folder, start, disk):
    writer = start(on_error="disable", max_seconds=0.02)
    disk.error = OSError(errno.ENOSPC, "full")
    writer.append("samples", rows(2))
    while disk.tries < 3:
        time.sleep(0.005)
    disk.error = None
    while writer.n_waiting:
        time.sleep(0.005)
    assert len(open_run(folder).samples()) == 2


def test_a_part_is_cut_in_time_though_no_more_rows_come(folder, start):
    start(max_seconds=0.02).append("samples", rows(2))
    while not open_run(folder).parts("samples"):
        time.sleep(0.005)


@pytest.mark.parametrize("on_error", ["raise", "disable"])
def test_past_the_cap_the_newest_rows_are_dropped_and_counted(
    folder, start, disk, monkeypatch, on_error
):
    monkeypatch.setattr(buffer_module, "KEPT_BYTES", 4000)
    writer = start(on_error=on_error)
    writer.append("samples", rows(1000))  # more than the cap, but all is well
    writer.flush()
    assert len(open_run(folder).samples()) == 1000
    disk.error = OSError(errno.ENOSPC, "full")
    for step in range(1, 200):
        writer.append("samples", rows(10, step=step))
        try:
            writer.flush()
        except TraceError as error:
            assert on_error == "raise" and "No space" not in str(error)  # noqa: PT017, PT018
    kept = writer.n_waiting
    assert 0 < kept < 1990
    disk.error = None
    writer.append("scalars", {"step": [9], "epoch": [0], "name": ["a"], "block": ["total"]})
    writer.close()
    run = open_run(folder)
    steps = run.samples(repeats=True)["step"].value_counts().drop(0)
    assert set(steps) == {10}
    assert sorted(steps.index) == list(range(1, 1 + len(steps)))  # the oldest are kept
    events = run.events()
    assert set(events["name"]) == {"rows_dropped"}
    told = sum(int(text.split()[0]) for text in events["detail"])
    assert told == 1990 - len(steps) * 10
    assert events["step"].iloc[0] == 1 + len(steps)
    assert len(run.scalars()) == 1


def test_vectors_past_the_cap_are_dropped_and_counted(folder, start, disk, monkeypatch):
    monkeypatch.setattr(buffer_module, "KEPT_BYTES", 1000)
    writer = start(on_error="disable")
    disk.error = OSError(errno.ENOSPC, "full")
    for step in range(5):
        writer.append_vector("fisher_diagonal", {"a": rows(500)["loss"]}, step=step, epoch=0)
        writer.flush()
    disk.error = None
    writer.close()
    run = open_run(folder)
    assert len(run.vectors()) == 1
    assert sum(int(text.split()[3]) for text in run.events()["detail"]) == 4


def test_block_holds_the_caller_until_it_is_written_and_says_so_once(
    folder, start, disk, monkeypatch
):
    monkeypatch.setattr(writer_module, "_PATIENCE_S", 0.01)
    disk.error = OSError(errno.ENOSPC, "full")
    writer = start(on_error="block")
    writer.append("samples", rows(2))
    flushed = []

    def free():
        while disk.tries < 4:
            time.sleep(0.005)
        flushed.append(len(open_run(folder).samples()))
        disk.error = None

    helper = threading.Thread(target=free)
    helper.start()
    with pytest.warns(UserWarning, match="on_error='block'") as caught:
        writer.flush()
    helper.join()
    assert flushed == [0]
    assert len(caught) == 1
    assert len(open_run(folder).samples()) == 2
    writer.close()
    assert open_run(folder).ended_cleanly


def test_block_holds_back_a_loop_that_goes_on_appending(start, disk, monkeypatch):
    monkeypatch.setattr(writer_module, "_PATIENCE_S", 0.01)
    disk.error = OSError(errno.ENOSPC, "full")
    writer = start(on_error="block", max_rows=1)
    n_appended = 0

    def loop():
        nonlocal n_appended
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in range(1000):
                writer.append("samples", rows(1, step=step))
                n_appended += 1

    thread = threading.Thread(target=loop)
    thread.start()
    while disk.tries < 5:
        time.sleep(0.01)
    assert n_appended <= 70  # 64 in the queue
    disk.error = None
    thread.join()
    writer.close()
    assert len(open_run(writer.folder).samples(repeats=True)) == 1000


def test_block_gives_up_when_training_has_ended_in_an_error(folder, start, disk):
    writer = start(on_error="block")
    disk.error = OSError(errno.ENOSPC, "full")
    writer.append("samples", rows(2))
    writer._has_warned = True
    with pytest.raises(TraceError, match="full"):
        writer.close(clean=False)


@pytest.mark.parametrize("on_error", ["disable", "block"])
def test_mistakes_and_a_run_taken_over_raise_under_every_policy(folder, start, on_error):
    writer = start(on_error=on_error)
    writer.append("samples", rows(2) | {"loss": np.zeros(3)})
    with pytest.raises(TraceError, match="loss"):
        writer.flush()
    begin_attempt(folder, from_step=0, from_epoch=0)
    writer.append("samples", rows(2))
    with pytest.raises(StaleWriterError):
        writer.flush()


def test_an_unknown_policy_is_refused(folder):
    with pytest.raises(ValueError, match="on_error"):
        TraceWriter(folder, attempt=0, on_error="warn")


def test_a_deleted_folder_is_not_made_again(folder, start):
    writer = start(on_error="disable")
    writer.append("samples", rows(2))
    shutil.rmtree(folder)
    writer.close()
    assert isinstance(writer.failure, FileNotFoundError)
    assert not folder.exists()


def past_the_limit(folder, answers):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = TraceWriter(folder, attempt=0, max_seconds=1e9)
    writer.append("samples", rows(1000))
    writer.flush()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    writer.append("samples", rows(300_000, step=1))
    writer.append("scalars", {"step": [1], "epoch": [0], "name": ["a"], "block": ["total"]})
    try:
        writer.flush()
    except TraceError as error:
        run = open_run(folder)
        left = [str(path) for path in folder.rglob(".tmp-*")]
        answers.put((error.__cause__.errno, len(run.samples()), len(run.scalars()), left))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    writer.append("samples", rows(1000, step=2))
    writer.close()


@pytest.mark.crash
def test_a_file_size_limit_keeps_what_is_written_and_what_is_not_yet(folder):
    """Other tables are written though the large part is not; it is written later, once."""
    answers = CONTEXT.Queue()
    process = CONTEXT.Process(target=past_the_limit, args=(folder, answers))
    process.start()
    assert answers.get(timeout=60) == (errno.EFBIG, 1000, 1, [])
    process.join()
    assert process.exitcode == 0
    run = open_run(folder)
    counts = run.samples(repeats=True)["step"].value_counts().to_dict()
    assert counts == {0: 1000, 1: 300_000, 2: 1000}
    assert run.ended_cleanly


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system of 1 MB cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.crash
def test_a_full_file_system_keeps_all_committed_rows_and_takes_the_rest_later(small_disk):
    folder = small_disk / "run"
    create_run(folder, {})
    begin_attempt(folder, from_step=0, from_epoch=0)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(400_000))
    writer = TraceWriter(folder, attempt=0, max_seconds=1e9)
    committed = 0
    try:
        while committed < 200:
            writer.append("samples", rows(4000, step=committed))
            writer.flush()
            committed += 1
    except TraceError as error:
        assert error.__cause__.errno == errno.ENOSPC  # noqa: PT017
    assert 1 < committed < 200
    run = open_run(folder)
    assert len(run.samples(repeats=True)) == 4000 * committed
    assert list(folder.rglob(".tmp-*")) == []
    filler.unlink()
    writer.flush()
    writer.close()
    run = open_run(folder)
    assert len(run.samples(repeats=True)) == 4000 * (committed + 1)
    assert run.ended_cleanly
