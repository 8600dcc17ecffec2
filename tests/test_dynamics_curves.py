"""Begin, peak and end of a curve, and whether its peak is more than noise."""

import numpy as np
import pandas as pd
import pytest

from dynamics.curves import describe_curve


def curve(values, stderr=0.1, epochs=None):
    epochs = range(len(values)) if epochs is None else epochs
    return pd.DataFrame({"epoch": epochs, "value": values, "stderr": stderr})


def test_a_peak_in_the_middle_is_found_with_its_errors():
    shape = describe_curve(curve([1.0, 5.0, 3.0, 2.0], stderr=[0.1, 0.2, 0.3, 0.4]))
    assert (shape.first, shape.peak, shape.last) == (1, 5, 2)
    assert (shape.peak_epoch, shape.peak_stderr, shape.last_stderr) == (1, 0.2, 0.4)
    assert shape.has_interior_peak


@pytest.mark.parametrize("values", [[3, 2, 1], [1, 2, 3], [2, 2, 2], [3, 1, 3], [1], [1, 2]])
def test_a_curve_that_is_highest_at_an_end_has_no_interior_peak(values):
    assert not describe_curve(curve(values, stderr=0.0)).has_interior_peak


@pytest.mark.parametrize(
    ("stderr", "found"),
    [
        ([0.75, 0.75, 0.75], False),
        ([0.7, 0.7, 0.7], True),
        ([0, 1.1, 0], False),
        ([0, 0.9, 0], True),
    ],
)
def test_a_peak_counts_from_1_96_errors_of_the_difference_on(stderr, found):
    assert describe_curve(curve([0.0, 2.0, 0.0], stderr=stderr)).has_interior_peak == found


@pytest.mark.parametrize(
    ("first", "last", "found"), [(0, 4.9, False), (4.9, 0, False), (0, 0, True)]
)
def test_a_peak_must_stand_out_from_both_ends(first, last, found):
    assert describe_curve(curve([first, 5, last])).has_interior_peak == found


def test_of_equal_peaks_the_first_counts_and_epochs_may_come_in_any_order():
    shape = describe_curve(curve([4.0, 1.0, 4.0, 2.0], epochs=[5, -1, 3, 7]))
    assert (shape.first, shape.peak_epoch, shape.last) == (1, 3, 2)


def test_missing_values_are_left_out_and_missing_errors_count_as_none():
    shape = describe_curve(curve([np.nan, 1.0, 2.0, 1.0, np.nan], stderr=np.nan))
    assert (shape.first, shape.peak_epoch, shape.last) == (1, 2, 1)
    assert np.isnan(shape.peak_stderr)
    assert shape.has_interior_peak


def test_a_curve_without_a_value_is_refused():
    with pytest.raises(ValueError, match="at least one finite value"):
        describe_curve(curve([np.nan, np.nan]))


def test_the_table_given_is_not_changed():
    table = curve([2.0, np.nan, 1.0], epochs=[2, 1, 0])
    before = table.copy()
    describe_curve(table)
    pd.testing.assert_frame_equal(table, before)
