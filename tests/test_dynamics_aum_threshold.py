"""Threshold samples: how many and disjoint, and where they cut."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.aum_threshold import aum_threshold, choose_threshold_samples, flag_by_threshold


@given(n=st.integers(1, 300), c=st.integers(2, 12), seed=st.integers(0, 99))
def test_sets_are_disjoint_and_as_large_as_a_class(n, c, seed):
    if n // (c + 1) == 0:
        with pytest.raises(ValueError, match=f"but N is {n} and C is {c}"):
            choose_threshold_samples(n, n_classes=c, seed=seed)
        return
    sets = choose_threshold_samples(n, n_classes=c, seed=seed)
    assert sets.shape == (2, n // (c + 1))
    assert len(np.unique(sets)) == sets.size
    assert 0 <= sets.min() <= sets.max() < n


def test_the_threshold_is_a_percentile_with_an_interval():
    aum = np.append(np.arange(101.0), np.nan)
    found = aum_threshold(aum)
    assert found.value == 99
    assert found.n == 101
    assert found.low < 99 <= found.high <= 100
    assert aum_threshold(aum, percentile=50).value == 50
    with pytest.raises(ValueError, match="No threshold sample has an AUM"):
        aum_threshold(np.array([np.nan]))


def test_samples_at_or_below_the_threshold_are_flagged():
    label, aum = [4, 4, 4, 0, 1, 2, 3], [-3, -2, -1, 5, -1, -0.5, -4]
    summary = pd.DataFrame({"label": label, "aum": aum}, index=range(10, 17))
    found = flag_by_threshold(summary, threshold_class=4, percentile=100)
    assert found.index.tolist() == [13, 14, 15, 16]
    assert found["flagged"].tolist() == [False, True, False, True]
    assert (found["threshold"] == -1).all()
