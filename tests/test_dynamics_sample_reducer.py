"""The two engines that summarise a run, each against the other and against pandas."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import IDS, IN_MEMORY, compacted, make_run, naive_summary, small_reads

from dynamics.sample_reducer import BYTES_PER_SAMPLE, SampleIndex, SampleReducer
from dynamics.summary import summarise_epochs, summarise_samples

ENGINES = ("numpy", "duckdb")
ALL = ("loss", "margin", "p_true", "el2n", "grad_norm", "correct")


def assert_same(found, expected):
    assert found.index.tolist() == expected.index.tolist()
    for column in expected:
        np.testing.assert_allclose(found[column], expected[column], atol=1e-12, err_msg=column)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    ids=st.sampled_from(list(IDS)),
    world_sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    max_rows=st.integers(1, 30),
    buckets=st.booleans(),
)
def test_both_engines_agree_with_pandas_on_any_run(seed, ids, world_sizes, max_rows, buckets):
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder, small_reads():
        made = make_run(
            Path(folder) / "a", seed, ids=ids, world_sizes=world_sizes, max_rows=max_rows
        )
        if buckets:
            made = compacted(made)
        until = seed % 5 - 1
        known = made.first[made.first["epoch"] <= until]
        for engine in ENGINES:
            assert_same(summarise_samples(made.run, engine=engine), naive_summary(made.first))
            if len(known):
                part = summarise_samples(made.run, until_epoch=until, engine=engine)
                assert_same(part, naive_summary(known))


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    world_sizes=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    buckets=st.booleans(),
    is_grouped=st.booleans(),
)
def test_both_engines_give_the_same_distribution_of_each_epoch(
    seed, world_sizes, buckets, is_grouped
):
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder, small_reads():
        made = make_run(Path(folder) / "a", seed, world_sizes=world_sizes)
        if buckets:
            made = compacted(made)
        groups = pd.Series({i: "ab"[i % 2] for i in range(7)}) if is_grouped else None
        by_numpy, by_sql = (
            summarise_epochs(made.run, "loss", groups=groups, engine=engine) for engine in ENGINES
        )
        pd.testing.assert_frame_equal(by_numpy, by_sql, rtol=1e-12)
        known = made.first.dropna(subset="loss")
        if is_grouped:
            known = known[known["sample_id"] < 7]
        names = "all" if groups is None else known["sample_id"].map(groups)
        expected = known.assign(group=names).groupby(["epoch", "group"])["loss"]
        assert by_numpy["n"].tolist() == expected.count().tolist()
        np.testing.assert_allclose(by_numpy["q25"], expected.quantile(0.25))
        np.testing.assert_allclose(by_numpy["stderr"], expected.sem())


def rows_of(ids, epochs, **columns):
    keys = {"sample_id": np.array(ids), "epoch": np.array(epochs, dtype=np.int32)}
    return keys | {name: np.array(values, dtype=np.float32) for name, values in columns.items()}


def test_rows_in_any_order_within_a_read_are_brought_into_the_order_of_epochs():
    """Sample 7 is right, wrong, right, wrong; sample 3 wrong, right. Read in two parts."""
    reducer = SampleReducer(["loss", "correct"], memory_limit=10**6)
    reducer.add(rows_of([7, 3, 7], [1, 0, 0], loss=[2, 5, 1], correct=[0, 0, 1]))
    reducer.add(rows_of([7, 7, 3], [3, 2, 4], loss=[4, 3, 7], correct=[0, 1, 1]))
    summary = reducer.result()
    assert summary.index.tolist() == [3, 7]
    assert summary["first_loss"].tolist() == [5, 1]
    assert summary["last_loss"].tolist() == [7, 4]
    assert summary["n_forgotten"].tolist() == [0, 2]
    assert summary["first_learned"].tolist() == [4, 0]
    assert summary["mean_loss"].tolist() == [6, 2.5]
    assert summary["var_loss"].tolist() == [1, 1.25]


def test_a_small_variance_about_a_large_mean_keeps_its_digits():
    """Sums of squares about zero would lose all of them: 1e4² / 1e-3² is past double's digits."""
    reducer = SampleReducer(["loss"], memory_limit=10**6)
    x = (10**4 + np.array([0, 1, 2, 3]) / 512).astype(np.float32)
    for epoch, value in enumerate(x):
        reducer.add(rows_of([0], [epoch], loss=[value]))
    assert reducer.result()["var_loss"][0] == pytest.approx(x.astype(float).var(), rel=1e-9)


def test_a_column_left_out_of_a_read_is_missing_there():
    reducer = SampleReducer(["loss", "margin"], memory_limit=10**6)
    reducer.add(rows_of([0, 1], [0, 0], loss=[1, 2]))
    reducer.add(rows_of([0, 1], [1, 1], margin=[4, np.nan]))
    summary = reducer.result()
    assert summary["n_observed"].tolist() == [2, 2]
    assert summary["mean_loss"].tolist() == [1, 2]
    np.testing.assert_array_equal(summary["aum"], [4, np.nan])


def test_more_samples_than_memory_allows_are_left_to_duckdb(tmp_path):
    made = make_run(tmp_path / "run", 0)
    little = 2 * BYTES_PER_SAMPLE
    with pytest.raises(MemoryError, match="memory_limit is 640"):
        summarise_samples(made.run, engine="numpy", memory_limit=little)
    with pytest.raises(MemoryError, match="limit of 640 bytes"):  # it was asked, in vain
        summarise_samples(made.run, memory_limit=little)


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), max_size=6))
def test_slots_are_those_of_a_dict(batches):
    index, known = SampleIndex(), {}
    for batch in batches:
        ids = np.unique(np.array(batch, dtype=np.int64))
        expected = [known.setdefault(i, len(known)) for i in ids.tolist()]
        assert index.find(ids).tolist() == expected
    slots, ids = index.ordered()
    assert dict(zip(ids.tolist(), slots.tolist(), strict=True)) == known
    assert ids.tolist() == sorted(known)


@given(st.lists(st.lists(st.integers(-20, 20), max_size=20), max_size=6))
def test_slots_of_ids_that_lie_close_together_are_those_of_a_dict(batches):
    test_slots_are_those_of_a_dict.hypothesis.inner_test(batches)
