"""Phases of a Fisher trace: by hand, and on simulated traces whose phases are known."""

import numpy as np
import pandas as pd
import pytest
from recorded import scalar

from dynamics.fisher_phases import (
    describe_phases,
    find_boundaries,
    plasticity_over_epochs,
    tabulate_phases,
    trace_depth,
)

EPOCH = np.arange(40) - 1.0
NOISE = 0.05


def rise_and_fall(peak_epoch=10, up=0.3, down=0.08):
    """Log of a trace that rises on a line to its peak and falls on another."""
    return np.where(peak_epoch >= EPOCH, up * (EPOCH - peak_epoch), -down * (EPOCH - peak_epoch))


def measured(level, rng, noise=NOISE):
    value = np.exp(level + noise * rng.standard_normal(len(level)))
    return pd.DataFrame({"epoch": EPOCH, "value": value, "stderr": noise * value})


def test_a_noiseless_trace_by_hand():
    table = measured(rise_and_fall(), np.random.default_rng(0), noise=1e-9)
    found = describe_phases(table)
    assert found.has_interior_peak
    assert found.n_points == 40
    assert found.peak_epoch.value == pytest.approx(10, abs=1)
    assert found.rise.value == pytest.approx(np.exp(0.3 * 11), rel=0.25)  # smoothing rounds a tip
    assert found.fall.value == pytest.approx(np.exp(-0.08 * 28), rel=0.25)
    assert found.boundaries[0].value == pytest.approx(10, abs=1)


def test_a_rising_trace_has_no_interior_peak():
    table = measured(0.1 * EPOCH, np.random.default_rng(0))
    found = describe_phases(table)
    assert not found.has_interior_peak
    assert found.fall.value == pytest.approx(1, abs=0.05)
    assert found.boundaries == ()


def test_too_few_points_are_refused_and_few_are_not_smoothed():
    table = pd.DataFrame({"epoch": [0, 1], "value": [1.0, 2.0], "stderr": [0.1, 0.1]})
    with pytest.raises(ValueError, match="three values above 0 or more, but there are 2"):
        describe_phases(table)
    table = pd.DataFrame({"epoch": range(5), "value": [1.0, 9, 4, 2, 1], "stderr": [0.01] * 5})
    found = describe_phases(table)
    assert (found.peak_epoch.value, found.peak.value) == (1, pytest.approx(9))
    assert found.rise.low < 9 < found.rise.high


def test_no_noise_at_all_tells_no_boundary():
    level = 0.1 * EPOCH
    assert find_boundaries(EPOCH, level, np.zeros(len(level))) == ()


def test_depth_is_the_centre_of_mass_of_the_shares():
    rows = [
        scalar(0, "fisher_share", share, block, stderr=0.1)
        for block, share in (("a", 0.5), ("b", 0.25), ("c", 0.25))
    ]
    rows += [scalar(1, "fisher_share", 1.0, "c", stderr=0.0)]
    scalars = pd.concat([pd.DataFrame(row) for row in rows])
    depth = trace_depth(scalars).set_index("epoch")
    assert depth.loc[0, "depth"] == pytest.approx(0.375)
    distances = np.array([0, 0.5, 1]) - 0.375
    assert depth.loc[0, "stderr"] == pytest.approx(0.1 * np.sqrt((distances**2).sum()))
    assert depth.loc[1, "depth"] == 1
    assert trace_depth(scalars[scalars["block"] == "a"]).empty


def test_plasticity_stands_beside_norm_and_scale_free_trace():
    rows = [scalar(e, "fisher_trace", v, stderr=0.1) for e, v in ((-1, 2.0), (0, 8.0), (1, 4.0))]
    rows += [scalar(e, "weight_norm_sq", 10.0 * (e + 2)) for e in (-1, 0, 1)]
    table = plasticity_over_epochs(pd.concat([pd.DataFrame(row) for row in rows]))
    assert table["information_plasticity"].tolist() == [0.25, 1, 0.5]
    assert table["weight_norm_sq"].tolist() == [10, 20, 30]
    assert table["scale_free"].isna().all()
    assert table["depth"].isna().all()


def test_phases_are_tabulated_by_setting_and_short_traces_left_out():
    rng = np.random.default_rng(0)
    traces = pd.concat(
        [
            measured(rise_and_fall(), rng).assign(setting="falls"),
            measured(0.1 * EPOCH, rng).assign(setting="rises"),
            measured(0.1 * EPOCH, rng)[:2].assign(setting="short"),
        ]
    )
    phases, boundaries = tabulate_phases(traces, ["setting"])
    assert phases["setting"].tolist() == ["falls", "rises"]
    assert phases["has_interior_peak"].tolist() == [True, False]
    assert set(boundaries["setting"]) == {"falls"}


def recovered(n):
    """Share of traces whose peak boundary is found within an epoch and a half."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(n):
        level = np.log(measured(rise_and_fall(), rng)["value"].to_numpy())
        boundaries = find_boundaries(EPOCH, level, np.full(len(level), NOISE), draws=2)
        found.append(any(abs(b.value - 10) <= 1.5 for b in boundaries))
    return np.mean(found)


def false_boundaries(n):
    """Share of straight traces in which a boundary is seen."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(n):
        level = (i % 3 - 1) * 0.05 * EPOCH + NOISE * rng.standard_normal(len(EPOCH))
        found.append(bool(find_boundaries(EPOCH, level, np.full(len(level), NOISE), draws=2)))
    return np.mean(found)


def coverage(n):
    """Share of intervals that hold the truth: boundary at the peak, and the fall from it."""
    rng = np.random.default_rng(4)
    level = rise_and_fall()
    smooth = describe_phases(measured(level, rng, noise=1e-9), draws=2)
    held = []
    for _ in range(n):
        found = describe_phases(measured(level, rng), draws=200)
        near = min(found.boundaries, key=lambda b: abs(b.value - 10), default=None)
        at_peak = near is not None and near.low - 0.5 <= 10 <= near.high + 0.5
        falls = found.fall.low <= smooth.fall.value <= found.fall.high
        rises = found.rise.low <= smooth.rise.value <= found.rise.high
        held.append([at_peak, falls, rises])
    return np.mean(held, axis=0)


def test_a_few_simulated_traces_are_read_right():
    assert recovered(20) >= 0.9
    assert false_boundaries(30) <= 0.17
    assert (coverage(15) >= 0.8).all()


@pytest.mark.slow
def test_boundaries_are_recovered_intervals_cover_and_straight_lines_raise_few_alarms():
    assert recovered(500) >= 0.95
    assert false_boundaries(500) <= 0.07
    boundary, fall, rise = coverage(500)
    assert boundary >= 0.92
    assert 0.92 <= fall <= 0.98
    assert 0.92 <= rise <= 0.98
