"""The summary of a trace by ranges of samples, so that several workers can share the work.

All rows of a sample are in one range, so each range is summarised by itself and the tables are laid
under one another. A worker reads only the row groups that may hold its range: of a compacted run
one bucket, of any other a stretch of every epoch.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dynamics.executors import Spread
from dynamics.sample_reducer import reduce_rows
from dynamics.traces import Run
from dynamics.traces.parts import Part
from dynamics.traces.row_groups import Footer, Selection

ROWS_PER_RANGE = 16 << 20
PARTS_PER_CALL = 4
_IDS = np.iinfo(np.int64)


@dataclass(frozen=True, slots=True)
class SampleRange:
    """Samples from `first` to `last`, both included, and the parts that may hold them."""

    first: int
    last: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What the ranges have in common."""

    run: Run
    until_epoch: int | None
    memory_limit: int


def summarise_ranges(
    run: Run,
    spread: Spread,
    workers: int,
    *,
    until_epoch: int | None,
    memory_limit: int,
) -> pd.DataFrame:
    """As `summarise_samples`, spread over workers, without the columns of the roster.

    Args:
        run: The run. Every worker must be able to read it where it is.
        spread: What `open_executor` gives.
        workers: How many there are.
        until_epoch: Last epoch to look at.
        memory_limit: Bytes for the arrays of one worker.

    Returns:
        The summary, index `sample_id`.
    """
    question = Question(run, until_epoch, memory_limit)
    parts = run.parts("samples")
    if all(part.sample_range for part in parts):
        ranges = buckets_as_ranges(parts)
    else:
        calls = [parts[i : i + PARTS_PER_CALL] for i in range(0, len(parts), PARTS_PER_CALL)]
        footers = [f for found in spread(prove_parts, run, calls) for f in found]
        run.adopt(footers)
        n_rows = sum(int(footer.n_rows.sum()) for footer in footers)
        ranges = cut_ranges(footers, max(workers, -(-n_rows // ROWS_PER_RANGE)))
    tables = [*spread(summarise_range, question, ranges)]
    return pd.concat(tables) if tables else reduce_rows([], [], memory_limit=memory_limit)


def buckets_as_ranges(parts: Sequence[Part]) -> list[SampleRange]:
    """Each bucket of a compacted run as a range, in the order of the samples."""
    return [SampleRange(*part.sample_range, (part,)) for part in parts if part.sample_range]


def cut_ranges(footers: Sequence[Footer], n: int) -> list[SampleRange]:
    """Ranges of about as many rows each, cut where row groups begin.

    Args:
        footers: Footers of the parts.
        n: Ranges wanted; there are fewer where row groups begin at fewer samples.

    Returns:
        The ranges, which together hold every possible sample.
    """
    if not footers:
        return []
    lows = np.concatenate([footer.sample_ids[:, 0] for footer in footers])
    order = np.argsort(lows)
    n_rows = np.concatenate([footer.n_rows for footer in footers])[order]
    before = np.cumsum(n_rows) - n_rows
    at = np.searchsorted(before, n_rows.sum() * np.arange(1, n) // n)
    cuts = np.unique(lows[order][at[at < len(order)]])
    edges = [int(_IDS.min), *cuts[cuts > lows.min()].tolist(), int(_IDS.max) + 1]
    ranges = []
    for first, end in itertools.pairwise(edges):
        wanted = Selection(sample_range=(first, end - 1))
        parts = tuple(footer.part for footer in footers if wanted.may_hold(footer).any())
        ranges.append(SampleRange(first, end - 1, parts))
    return ranges


def prove_parts(run: Run, parts: Sequence[Part]) -> list[Footer]:
    """What a worker does first: hash parts, and read their footers."""
    return run.footers_of(parts, threads=1)


def summarise_range(question: Question, samples: SampleRange) -> pd.DataFrame:
    """What a worker does then: summarise the samples of one range."""
    run = question.run
    return reduce_rows(
        run.footers_of(samples.parts, threads=1),
        run.attempts,
        until_epoch=question.until_epoch,
        sample_range=(samples.first, samples.last),
        memory_limit=question.memory_limit,
        threads=1,
    )
