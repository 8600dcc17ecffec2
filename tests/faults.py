"""Makes the n-th change of the disk fail, or the process die there, for tests of every moment."""

import contextlib
import errno
import io
import os
from unittest import mock

CALLS = ("open", "fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir")


class Killed(BaseException):
    """Stands for SIGKILL: from here on the process does nothing more."""


class Faults:
    """Counts calls; the n-th raises, and every later one too if the process is to be dead."""

    def __init__(self, n, *, dies):
        self.n, self.dies, self.count = n, dies, 0

    @property
    def struck(self):
        return self.count >= self.n

    def strike(self, name):
        self.count += 1
        if self.count == self.n or (self.dies and self.count > self.n):
            raise Killed if self.dies else OSError(errno.EIO, f"{name} fails on purpose")

    def wrap(self, name, call):
        def wrapped(*args, **kwargs):
            if name == "open" and args[1] & os.O_ACCMODE == os.O_RDONLY:
                return call(*args, **kwargs)  # what only reads changes nothing
            self.strike(name)
            return None if name == "fsync" else call(*args, **kwargs)

        return wrapped

    def open(self, file, mode="r", *args, **kwargs):
        if isinstance(file, int) or "r" in mode:
            return _OPEN(file, mode, *args, **kwargs)
        self.strike("open")
        return _Torn(_OPEN(file, mode, *args, **kwargs), self)


_OPEN = io.open


class _Torn:
    """A file whose failing write leaves half of its bytes behind."""

    def __init__(self, file, faults):
        self._file, self._faults = file, faults

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        try:
            self._faults.strike("write")
        except BaseException:
            self._file.write(memoryview(data)[: len(data) // 2])
            raise
        return self._file.write(data)


@contextlib.contextmanager
def fault_at(n, *, dies):
    """Within the context, the n-th open, write, fsync, rename, … raises."""
    faults = Faults(n, dies=dies)
    with contextlib.ExitStack() as stack:
        for name in CALLS:
            wrapped = faults.wrap(name, getattr(os, name))
            stack.enter_context(mock.patch.object(os, name, wrapped))
        stack.enter_context(mock.patch.object(io, "open", faults.open))
        yield faults
