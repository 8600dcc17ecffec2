"""Which row of a sample counts in an epoch, when several ranks have seen it."""

import random
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics import open_run
from dynamics.traces import Status, TraceWriter, begin_attempt, create_run
from dynamics.traces.occurrence import OccurrenceCounter

ids = st.sampled_from([0, 1, 2, 7, 2**31, 2**62 - 1, 2**62, 2**62 + 1])


@given(st.lists(st.tuples(st.booleans(), st.lists(ids, max_size=6)), max_size=8))
def test_occurrences_are_those_that_a_dict_counts(batches):
    counter, epoch, seen = OccurrenceCounter(), 0, Counter()
    for next_epoch, batch in batches:
        if next_epoch:
            epoch, seen = epoch + 1, Counter()
        expected = []
        for i in batch:
            expected.append(seen[i])
            seen[i] += 1
        assert counter.count(epoch, np.array(batch, dtype=np.int64)).tolist() == expected


def record(folder, attempts, *, max_rows=10):
    """Attempts as (from_step, per rank a list of (step, epoch, ids)); `loss` tells rows apart."""
    create_run(folder, {})
    serial, all_rows = 0, []
    for number, (from_step, ranks) in enumerate(attempts):
        attempt = begin_attempt(
            folder, from_step=from_step, from_epoch=0, world_size=len(ranks), launch=str(number)
        )
        for rank, batches in enumerate(ranks):
            writer = TraceWriter(
                folder, attempt=attempt, rank=rank, max_rows=max_rows, max_seconds=1e9
            )
            for step, epoch, batch in batches:
                n = len(batch)
                keys = {"step": np.full(n, step), "epoch": np.full(n, epoch)}
                loss = np.arange(serial, serial + n, dtype=np.float32)
                writer.append("samples", keys | {"sample_id": np.array(batch), "loss": loss})
                all_rows += [
                    (epoch, i, step, rank, serial + k, attempt) for k, i in enumerate(batch)
                ]
                serial += n
            writer.close()
    fences = [(a, start) for a, (start, _) in enumerate(attempts)]
    return [row for row in all_rows if all(row[2] < start for a, start in fences if a > row[5])]


def expected_occurrences(rows):
    """The oracle: serial number of a row to its occurrence."""
    groups = defaultdict(list)
    for epoch, i, step, rank, serial, _ in rows:
        groups[epoch, i].append((step, rank, serial))
    return {
        serial: k for group in groups.values() for k, (_, _, serial) in enumerate(sorted(group))
    }


def by_serial(table):
    return dict(zip(table["loss"].astype(int), table["occurrence"], strict=True))


# Steps and epochs rise together, epochs of one step each or of three.
batch = st.lists(st.integers(0, 5), min_size=1, max_size=4)
ranks = st.integers(1, 3).flatmap(
    lambda n: st.tuples(*[st.lists(batch, min_size=0, max_size=7)] * n)
)


@settings(max_examples=20)
@given(
    attempts=st.lists(st.tuples(st.integers(0, 6), ranks), min_size=1, max_size=3),
    per_epoch=st.integers(1, 4),
    max_rows=st.integers(3, 20),
    order=st.randoms(use_true_random=False),
)
def test_rows_of_all_ranks_are_numbered_by_step_then_rank(attempts, per_epoch, max_rows, order):
    starts = [0, *sorted(start for start, _ in attempts[1:])]
    plan = [
        (
            start,
            [[(start + k, (start + k) // per_epoch, b) for k, b in enumerate(r)] for r in ranks],
        )
        for start, (_, ranks) in zip(starts, attempts, strict=True)
    ]
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # fsync costs nothing there
    with tempfile.TemporaryDirectory(dir=memory) as name:
        rows = record(Path(name) / "run", plan, max_rows=max_rows)
        run = open_run(Path(name) / "run")
        listed = run.parts("samples")
        run.parts = lambda table: order.sample(listed, len(listed))  # in any order
        table = run.samples(repeats=True)
        first = run.samples(columns=["loss"])
        one = run.samples(sample_id=3, columns=["loss", "occurrence"], repeats=True)
        late = run.samples(epochs=[1], columns=["loss", "occurrence"], repeats=True)
        streamed = [*run.iter_samples(["loss"], repeats=True)]
    expected = expected_occurrences(rows)
    if any(len(ranks) > 1 for _, ranks in plan):
        assert by_serial(table) == expected
    assert sorted(first["loss"]) == sorted(s for s, k in by_serial(table).items() if k == 0)
    flagged = (table["status"] & int(Status.REPEAT)) != 0
    assert (flagged == (table["occurrence"] > 0)).all()
    of_3, of_1 = table[table["sample_id"] == 3], table[table["epoch"] == 1]
    assert by_serial(one) == by_serial(of_3)
    assert by_serial(late) == by_serial(of_1)
    together = pd.concat(streamed) if streamed else table
    assert by_serial(together) == by_serial(table)


def two_ranks(folder):
    """Two epochs, 5 samples: rank 1 sees 0 again as padding, at the step at which rank 0 does."""
    epochs = [
        [[(0, 0, [0, 1]), (1, 0, [2])], [(0, 0, [0, 3]), (1, 0, [4])]],
        [[(2, 1, [2, 1]), (3, 1, [4])], [(2, 1, [3, 4]), (3, 1, [0])]],
    ]
    ranks = [first + second for first, second in zip(*epochs, strict=True)]
    record(folder, [(0, ranks)])
    return open_run(folder)


def test_padding_on_another_rank_is_one_flagged_row(tmp_path):
    run = two_ranks(tmp_path / "run")
    table = run.samples(repeats=True)
    assert len(table) == 12
    assert len(run.samples()) == 10
    again = table[table["occurrence"] > 0]
    assert again[["epoch", "sample_id", "step", "status"]].to_numpy().tolist() == [
        [0, 0, 0, Status.REPEAT],
        [1, 4, 3, Status.REPEAT],
    ]
    assert again["loss"].tolist() == [6, 5]  # rank 1 at the same step; rank 0 at the later one


def test_at_one_step_the_lower_rank_counts_whichever_part_comes_first(tmp_path):
    record(tmp_path / "run", [(0, [[(1, 1, [7])], [(0, 0, [3]), (1, 1, [7])]])])
    table = open_run(tmp_path / "run").samples(sample_id=7, repeats=True)
    assert table[["loss", "occurrence"]].to_numpy().tolist() == [[0, 0], [2, 1]]


def test_the_rule_as_sql_gives_the_same(tmp_path):
    run = two_ranks(tmp_path / "run")
    pattern = str(tmp_path / "run" / "samples" / "*" / "*.parquet")
    found = duckdb.execute(
        "select loss, row_number() over (partition by epoch, sample_id order by step, "
        "regexp_extract(filename, 'rank-(\\d+)', 1)::int, occurrence) - 1 as occurrence "
        "from read_parquet(?, filename=true)",
        [pattern],
    ).df()
    assert by_serial(found) == by_serial(run.samples(repeats=True))


def test_each_sample_is_streamed_in_the_order_of_its_epochs(tmp_path):
    order = random.Random(0)
    epochs = [order.sample(range(8), 8) for _ in range(12)]
    ranks = [
        [(2 * e + s, e, half[4 * r + 2 * s : 4 * r + 2 * s + 2]) for e, half in enumerate(epochs)
         for s in range(2)]
        for r in range(2)
    ]  # fmt: skip
    record(tmp_path / "run", [(0, ranks)], max_rows=15)
    tables = [*open_run(tmp_path / "run").iter_samples(["loss"])]
    rows = pd.concat(tables)
    assert len(rows) == 12 * 8
    assert rows.groupby("sample_id")["epoch"].is_monotonic_increasing.all()
    assert len(tables) > 1  # and not all at once


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_are_told_apart_only_where_there_are_several(tmp_path, world_size):
    """One process numbers its rows itself, also those that came before a resume."""
    folder = tmp_path / "run"
    create_run(folder, {})
    begin_attempt(folder, from_step=0, from_epoch=0, world_size=world_size)
    writer = TraceWriter(folder, attempt=0)
    writer.seen(0, np.array([5]))
    writer.append("samples", {"step": np.array([3]), "epoch": np.array([0]), "sample_id": [5]})
    writer.close()
    (row,) = open_run(folder).samples(repeats=True).to_dict("records")
    assert row["occurrence"] == (1 if world_size == 1 else 0)
