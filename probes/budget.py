"""The recorder's own share of the time, and the probes' schedules stretched to keep to a limit.

What is timed is what the recorder does when the loop calls it: `observe`, and the passes that
probes take of their own. The extra work of a norm within training's backward pass is the backward
pass's time here; benchmarks/grad_norm.py measures it.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from probes.probe import Event, Finding, Probe, Scalar

OBSERVE = "observe"
"""Block of the time spent in `observe`, passes of probes apart."""


class Budget:
    """Times the recorder, and leaves out due measurements so that their share stays small.

    A probe with passes of its own is measured at its first two due occasions, which shows what a
    pass costs (c) and how much training lies between two occasions (T). From then on only every
    s-th occasion is taken, with the smallest power of two s for which c / (sT + c) is at most the
    limit divided by the number of such probes; s grows with the cost, and never falls.

    Args:
        limit: Largest share of the wall time, above 0 and at most 1; None to time and leave out
            nothing.
        clock: Seconds; only differences count.

    Raises:
        ValueError: If the limit is not such a share.
    """

    def __init__(
        self, limit: float | None, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if limit is not None and not 0 < limit <= 1:
            raise ValueError(
                f"budget is the largest share of the time that recording may take, above 0 and at "
                f"most 1, but is {limit!r}; for example budget=0.05."
            )
        self.limit = limit
        self._clock = clock
        self._start = clock()
        self._spent: dict[str, float] = {OBSERVE: 0.0}
        self._last: dict[Probe, float] = {}
        self._occasions: Counter[Probe] = Counter()
        self._since: dict[Probe, float] = {}
        self._stretch: dict[Probe, int] = {}

    @contextlib.contextmanager
    def timed(self, block: str = OBSERVE) -> Iterator[None]:
        """Add what happens inside to a block's time; time of other blocks within it is theirs."""
        if self.limit is None:
            yield
            return
        start, inner = self._clock(), self._total()
        try:
            yield
        finally:
            own = self._clock() - start - (self._total() - inner)
            self._spent[block] = self._spent.get(block, 0.0) + own

    def choose(self, due: Sequence[Probe]) -> list[Probe]:
        """Those of the probes that are due which are measured this time."""
        if self.limit is None:
            return list(due)
        chosen = [p for p in due if self._occasions[p] % self._stretch.get(p, 1) == 0]
        for probe in due:
            self._since.setdefault(probe, self._training_time())
            self._occasions[probe] += 1
        return chosen

    @contextlib.contextmanager
    def measuring(self, probe: Probe) -> Iterator[None]:
        """Time a pass that a probe takes of its own."""
        if self.limit is None:
            yield
            return
        name = type(probe).__name__
        before = self._spent.get(name, 0.0)
        with self.timed(name):
            yield
        self._last[probe] = self._spent[name] - before

    def findings(self) -> list[Finding]:
        """Schedules that must be stretched from now on, as events."""
        if self.limit is None:
            return []
        share = self.limit / max(len(self._last), 1)
        events: list[Finding] = []
        for probe, cost in self._last.items():
            stretch, n = self._stretch.get(probe, 1), self._occasions[probe]
            between = (self._training_time() - self._since[probe]) / max(n - 1, 1)
            wanted = stretch
            while n > 1 and cost * (1 - share) > share * wanted * between and wanted < 2**20:
                wanted *= 2
            if wanted > stretch:
                self._stretch[probe] = wanted
                events.append(self._stretched(probe, wanted, cost, between))
        return events

    def costs(self) -> list[Finding]:
        """Seconds spent so far, by block, and all seconds since the start, as scalars."""
        if self.limit is None:
            return []
        spent: list[Finding] = [
            Scalar("recorder_time_s", seconds, block=block)
            for block, seconds in self._spent.items()
        ]
        return [*spent, Scalar("wall_time_s", self._clock() - self._start)]

    def _total(self) -> float:
        return sum(self._spent.values())

    def _training_time(self) -> float:
        return self._clock() - self._start - self._total()

    def _stretched(self, probe: Probe, stretch: int, cost: float, between: float) -> Event:
        share = cost / (cost + between) if cost + between > 0 else 1.0
        text = (
            f"{probe.when}: every {stretch}. of these occasions from now on. A pass takes "
            f"{cost:.3g} s, training between two occasions {between:.3g} s: {share:.0%} of the "
            f"time, where the budget for all passes is {self.limit:.0%}."
        )
        return Event("schedule_stretched", type(probe).__name__, text)
