"""SIGTERM: what has been recorded becomes durable before the process ends.

Clusters send it before they stop a job. The handler only notes it; at the next step everything is
flushed. The handler that was there before is called at once, as it would have been. Where there was
none, the process still dies by the signal: after the flush at the next step, or, if no step comes
for `GRACE_S`, after a flush of what the writer holds, at most `GRACE_S` later.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

GRACE_S = 5.0
"""How long a process that the signal ends waits for its next step, and then for its last flush."""


class Termination:
    """Watches for SIGTERM, once; a second one does what it would do without this.

    Installed only in the main thread, and only over a handler that can be put back.

    Args:
        save: Makes durable what has been recorded; called by `check`, or in a thread if none comes.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._earlier: Any = None
        self._ours: Any = None
        self._answered = threading.Event()
        self.is_requested = False
        """Whether the signal has come and has not been answered."""

    def install(self) -> None:
        """Put the handler in place, if that is possible here."""
        earlier = signal.getsignal(signal.SIGTERM)
        if earlier is None or threading.current_thread() is not threading.main_thread():
            return
        self._earlier, self._ours = earlier, self._note
        signal.signal(signal.SIGTERM, self._ours)

    def remove(self) -> None:
        """Put the earlier handler back, unless another has been installed since.

        If the signal has come and would have ended the process, it does so now.
        """
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and self._ours is not None and signal.getsignal(signal.SIGTERM) == self._ours:
            signal.signal(signal.SIGTERM, self._earlier)
        self._ours = None
        if self.is_requested:
            self._answer()

    def check(self) -> None:
        """If the signal has come: save, and then die if that is what it would have done."""
        if self.is_requested:
            try:
                self._save()
            finally:
                self._answer()

    def _answer(self) -> None:
        self.is_requested = False
        self._answered.set()
        if self._earlier == signal.SIG_DFL:
            signal.raise_signal(signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True
        signal.signal(signal.SIGTERM, self._earlier)  # from here on as if we had not been there
        self._ours = None
        if self._earlier == signal.SIG_DFL:
            threading.Thread(target=self._die_without_a_step, daemon=True).start()
        elif callable(self._earlier):
            self._earlier(number, frame)

    def _die_without_a_step(self) -> None:
        if self._answered.wait(GRACE_S):
            return
        flush = threading.Thread(target=self._try_to_flush, daemon=True)
        flush.start()
        flush.join(GRACE_S)
        os.kill(os.getpid(), signal.SIGTERM)

    def _try_to_flush(self) -> None:
        with contextlib.suppress(Exception):  # the process is about to end; there is no one to tell
            self._save()
