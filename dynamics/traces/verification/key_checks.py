"""Checks of the keys of a run: none twice, and which samples an epoch lacks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dynamics.traces.errors import TraceError
from dynamics.traces.parts import Part
from dynamics.traces.reader import Run
from dynamics.traces.resume import Attempt, sample_fence
from dynamics.traces.verification.completeness import Gap, SeenKeys
from dynamics.traces.verification.findings import Finding, Severity
from dynamics.traces.verification.part_checks import CheckedPart


class KeyCheck:
    """Takes the keys of one part after the other, in the order of `order`, and lets go of them.

    Args:
        run: Folder of the run.
        attempts: Its attempts.
    """

    def __init__(self, run: Path, attempts: list[Attempt]) -> None:
        self._run = run
        self._attempts = attempts
        # Of several ranks, each numbers its own repeats, and readers number them anew.
        self._one_rank = all(attempt.world_size == 1 for attempt in attempts)
        self._roster: list[np.ndarray] = [np.empty(0, np.int64)]
        self._seen: SeenKeys | None = None
        self._rank = ""

    @staticmethod
    def order(item: tuple[str, Part]) -> tuple[bool, str]:
        """Sorts (table, part): the roster first, then rank by rank."""
        table, part = item
        return table != "roster", part.path.parent.name

    def take(self, done: CheckedPart) -> Iterator[Finding]:
        """Take the keys of a part.

        Args:
            done: The part, checked; its keys are emptied.

        Yields:
            A finding for each epoch with a key that came before.
        """
        keys, done.keys = done.keys, {}
        if not keys:
            return
        if done.table == "roster":
            self._roster.append(keys["sample_id"])
            return
        rank = "" if self._one_rank else done.part.path.parent.name
        seen = self._seen = self._seen or SeenKeys(np.concatenate(self._roster))
        if rank != self._rank:
            yield from self._end_rank(seen)
            self._rank = rank
        alive = keys["step"] < sample_fence(done.part.name.attempt, self._attempts)
        columns = [keys[name][alive] for name in ("epoch", "sample_id", "occurrence")]
        for what in seen.add(*columns):
            mend = "Two writers may have been at work, or a restart read its data otherwise."
            yield Finding(Severity.finding, done.part.path, what, mend)

    def end(self) -> Iterator[Finding]:
        """Say what can be said once all parts have been taken.

        Yields:
            Findings about repeats, and about samples that an epoch lacks.
        """
        if self._seen is not None:
            yield from self._end_rank(self._seen)
            yield from _name_gaps(self._run, self._seen)

    def _end_rank(self, seen: SeenKeys) -> Iterator[Finding]:
        for what in seen.end_rank():
            yield Finding(Severity.finding, self._run / "samples", what)


def _name_gaps(run: Path, seen: SeenKeys) -> Iterator[Finding]:
    gaps = list(seen.gaps())
    last, ended = max(seen.epochs, default=0), _ended_cleanly(run)
    sizes = {len(gap.sample_ids) for gap in gaps if gap.epoch != last}
    as_drop_last = len(sizes) == 1 and len(gaps) >= len(seen.epochs) - 1 > 1
    for gap in gaps:
        severity, why = Severity.finding, "Parts may be missing, or a restart skipped data."
        if gap.epoch == last:
            why = "Training ended" if ended else "The run was interrupted, or goes on,"
            severity, why = Severity.note, f"{why} in this epoch."
        elif gap.n_repeats >= len(gap.sample_ids) or as_drop_last:
            severity, why = Severity.note, _why(gap)
        yield Finding(severity, run / "samples", f"{gap}.", why)
    never = seen.never_seen()
    if len(never) and seen.epochs:
        what = f"{len(never):,} samples of the roster have no row in any epoch."
        yield Finding(Severity.note, run / "roster", what)


def _why(gap: Gap) -> str:
    if gap.n_repeats:
        return "As many were seen more than once, as in sampling with replacement."
    return "Every epoch leaves out as many, as a loader with drop_last does."


def _ended_cleanly(run: Path) -> bool:
    try:
        return Run(run).ended_cleanly
    except TraceError:
        return False
