"""A fault at every single call to the file system, one after another: no acknowledged row is lost.

A scripted run with a resume is recorded while its n-th call fails, for every n: with an error
before or after it took effect, or with the death of the process before it (which is its death after
the call before).
"""

import contextlib
import errno
import io
import os

import numpy as np
import pytest

from dynamics import open_run
from dynamics.traces import TraceError, TraceWriter, begin_attempt, create_run
from dynamics.traces.layout import RUN_FILE

STEPS, PER_STEP = 6, 2


class Dead(BaseException):
    """The process has died; nothing that it calls has an effect any more."""


class FaultyDisk:
    """Counts calls, and lets one of them fail."""

    CALLS = ("open", "fsync", "link", "replace", "unlink", "mkdir")

    def __init__(self, root, monkeypatch):
        self.root = str(root)
        self.at, self.mode, self.is_dead = None, None, False
        self.log = []
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.faulty(name, getattr(os, name)))
        monkeypatch.setattr(io, "open", self.open(io.open))

    def fail_at(self, n, mode):
        self.at, self.mode, self.is_dead = n, mode, False

    def call(self, name, action):
        if self.is_dead:
            raise Dead
        self.log.append(name)
        if len(self.log) - 1 != self.at:
            return action()
        if self.mode.endswith("after"):
            opened = action()
            if name == "io.open":
                opened.close()
            elif name == "open":
                os.close(opened)
        if self.mode.startswith("error"):
            raise OSError(errno.ENOSPC, f"No space left on device ({name})")
        self.is_dead = True
        raise Dead

    def faulty(self, name, original):
        def call(target, *args, **kwargs):
            if isinstance(target, int) or str(target).startswith(self.root):
                return self.call(name, lambda: original(target, *args, **kwargs))
            return original(target, *args, **kwargs)

        return call

    def open(self, original):
        def call(path, *args, **kwargs):
            if not str(path).startswith(self.root):
                return original(path, *args, **kwargs)
            file = self.call("io.open", lambda: original(path, *args, **kwargs))
            return FaultyFile(file, self)

        return call


class FaultyFile:
    def __init__(self, file, disk):
        self._file, self._disk = file, disk

    def write(self, data):
        return self._disk.call("write", lambda: self._file.write(data))

    def flush(self):
        return self._disk.call("flush", lambda: self._file.flush())

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


def rows(step):
    """Two samples a step, three steps an epoch; sample 9 comes twice in each epoch."""
    ids = np.array([step % 3, 9 if step % 3 else 8])
    keys = {"step": np.full(2, step), "epoch": np.full(2, step // 3), "sample_id": ids}
    return keys | {"loss": np.full(2, float(step))}


class Job:
    """One process that records and tries again once where it meets an error, as a user would."""

    def __init__(self, folder, disk):
        self.folder, self.disk, self.writer = folder, disk, None
        self.acknowledged = 0  # steps of which every row is durable

    def again(self, action):
        try:
            return action()
        except (OSError, TraceError):
            if self.disk.is_dead:
                raise Dead from None
            return action()

    def create(self):
        with contextlib.suppress(TraceError):  # the first try may have made it, and told an error
            self.again(lambda: create_run(self.folder, {}))
        assert (self.folder / RUN_FILE).exists()

    def record(self, start, end, *, launch):
        self.acknowledged = min(self.acknowledged, start)
        where = {"from_step": start, "from_epoch": start // 3, "launch": launch}
        attempt = self.again(lambda: begin_attempt(self.folder, **where))
        self.writer = TraceWriter(self.folder, attempt=attempt, max_seconds=1e9)
        if start:
            epoch = start // 3
            seen = self.again(
                lambda: open_run(self.folder).samples(columns=[], epochs=[epoch], repeats=True)
            )
            self.writer.seen(epoch, seen["sample_id"].to_numpy())
        for step in range(start, end):
            self.writer.append("samples", rows(step))
            if step == start + 1:
                self.again(self.writer.flush)
                self.acknowledged = step + 1
        if end == STEPS:
            event = {"step": [end], "epoch": [end // 3 - 1], "name": ["epoch_end"]}
            self.writer.append("events", event)
        self.again(self.writer.flush)
        self.acknowledged = end
        with contextlib.suppress(TraceError):  # the end may be missing on record, and nothing else
            self.writer.close()
        if self.disk.is_dead:
            raise Dead

    def script(self):
        self.create()
        self.record(0, 3, launch="first")
        self.record(2, STEPS, launch="second")

    def stop(self):
        if self.writer is not None and self.writer._thread.is_alive():
            self.writer._queue.put(None)
            self.writer._thread.join()


def check(folder, acknowledged):
    table = open_run(folder).samples(repeats=True)
    keys = ["epoch", "sample_id", "occurrence"]
    assert not table.duplicated(keys).any()
    assert not table.duplicated(["step", "sample_id"]).any()
    assert (table["loss"] == table["step"]).all()
    steps = table["step"].value_counts()
    assert all(steps.get(step) == PER_STEP for step in range(acknowledged))
    assert set(steps) <= {PER_STEP}
    return table


MODES = ["error before", "error after", "death before"]


@pytest.mark.crash
@pytest.mark.parametrize("mode", MODES)
def test_whatever_call_fails_no_acknowledged_row_is_lost_or_doubled(fast_path, monkeypatch, mode):
    with monkeypatch.context() as patch:
        disk = FaultyDisk(fast_path, patch)
        disk.fail_at(None, mode)
        Job(fast_path / "dry", disk).script()
        calls = disk.log
    assert len(calls) > 60
    assert {*calls} == {*FaultyDisk.CALLS, "io.open", "write", "flush"}
    for n, name in enumerate(calls):
        if mode == "error after" and name in ("write", "flush", "fsync"):
            continue  # nobody can tell it from an error before
        folder = fast_path / f"run-{n}"
        with monkeypatch.context() as patch:
            disk = FaultyDisk(fast_path, patch)
            disk.fail_at(n, mode)
            job = Job(folder, disk)
            try:
                job.script()
            except Dead:
                pass
            finally:
                job.stop()
        assert disk.log[n] == name
        died = disk.is_dead
        if not died:
            assert job.acknowledged == STEPS
            check_complete(folder)
            continue
        if (folder / RUN_FILE).exists():
            check(folder, job.acknowledged)
        else:
            assert job.acknowledged == 0
        finish(folder, job.acknowledged)


def finish(folder, start):
    """Resume from the last acknowledged step, with a disk that works."""

    class Healthy:
        is_dead = False

    job = Job(folder, Healthy)
    if not (folder / RUN_FILE).exists():
        create_run(folder, {})
    job.record(start, STEPS, launch="last")
    check_complete(folder)
    assert open_run(folder).ended_cleanly
    left = [path for path in folder.rglob(".tmp-*") if path.is_file()]
    assert left == []


def check_complete(folder):
    table = check(folder, STEPS)
    assert len(table) == STEPS * PER_STEP
    assert (table["sample_id"] == 9).sum() == 4
    assert table["occurrence"].tolist() == [0, 0, 0, 0, 0, 1] * 2
    assert open_run(folder).events()["step"].tolist()[-1:] == [STEPS]


def test_the_harness_notices_a_commit_without_a_rename(fast_path, monkeypatch):
    """A writer that writes in place loses rows to a death in the middle: this must be seen."""

    def in_place(folder, name, data):
        with (folder / name).open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            file.write(data[len(data) // 2 :])
            os.fsync(file.fileno())

    monkeypatch.setattr("dynamics.traces.outbox.write_durably", in_place)
    with pytest.raises((TraceError, AssertionError)):
        test_whatever_call_fails_no_acknowledged_row_is_lost_or_doubled(
            fast_path, monkeypatch, "death before"
        )
