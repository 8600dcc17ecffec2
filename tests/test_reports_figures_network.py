"""Figures of the network and of the noise law: every line is a column of the table."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from test_reports_figures import (
    FISHER,
    band_of,
    draw,
    fisher_curves,
    law_curves,
    scalar_table,
    texts,
    title_of,
)


def test_fisher_trace_is_drawn_in_total_and_by_layer_with_its_error():
    ax = draw("plot_fisher_trace")
    total, layer = ax.lines
    assert list(total.get_xdata()) == [-1, 0, 1]
    assert list(total.get_ydata()) == [1.0, 4.0, 2.0]
    assert list(layer.get_ydata()) == [0.5, 2.0, 1.0]
    assert total.get_linewidth() > layer.get_linewidth()
    low, high = band_of(ax, 0)
    error = 1.96 * np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(low, total.get_ydata() - error)
    np.testing.assert_allclose(high, total.get_ydata() + error)
    assert sorted(texts(ax)) == ["layer 2", "total"]
    assert title_of(ax) == "Fisher trace (model labels)"


def test_the_empirical_fisher_is_never_drawn_under_the_fishers_name():
    ax = draw("plot_fisher_trace", FISHER.assign(name="empirical_fisher_trace"))
    assert title_of(ax) == "Empirical Fisher trace (data labels)"


def test_the_two_fisher_traces_are_not_drawn_into_one_curve():
    both = pd.concat([FISHER, FISHER.assign(name="empirical_fisher_trace", value=9.0)])
    try:
        ax = draw("plot_fisher_trace", both)
    except ValueError:
        return
    drawn = [y for line in ax.lines for y in line.get_ydata()]
    assert title_of(ax) != "Fisher trace (model labels)" or 9.0 not in drawn


def test_the_scale_free_trace_is_titled_as_such():
    ax = draw("plot_fisher_trace", FISHER.assign(name="scale_free_fisher_trace"))
    assert title_of(ax) == "Scale-free Fisher trace (model labels)"
    assert ax.get_ylabel() == "Σ w² F (nats²)"


def test_shares_are_stacked_in_the_blocks_order_and_large_ones_named():
    ax = draw("plot_fisher_share")
    tops = [band_of(ax, i)[1] for i in range(3)]
    np.testing.assert_allclose(tops, [[0.2, 0.5], [0.99, 0.98], [1.0, 1.0]])
    assert sorted(texts(ax)) == ["layer first", "layer second"]


def test_fisher_runs_are_one_line_a_seed_with_their_peak_and_the_median():
    curves = fisher_curves()
    ax = draw("plot_fisher_runs")
    thin = [line for line in ax.lines if line.get_linewidth() < 1 and line.get_marker() == "None"]
    expected = [
        rows[rows["value"] > 0]["value"].tolist()
        for _, rows in curves.groupby(["curve", "run"], sort=False)
    ]
    assert [list(line.get_ydata()) for line in thin] == expected
    dots = [(*line.get_xdata(), *line.get_ydata()) for line in ax.lines if line.get_marker() == "o"]
    assert dots == [(0, 8.0), (0, 16.0)]
    bold = [list(line.get_ydata()) for line in ax.lines if line.get_linewidth() == 2]
    assert bold == [[1.5, 12.0, 6.0, 3.0], [1.5, 6.0, 0.75]]


def test_the_fall_has_a_point_a_run_and_grey_ones_without_a_peak():
    ax = draw("plot_fall")
    dots = [c for c in ax.collections if isinstance(c, PathCollection)]
    points = np.concatenate([c.get_offsets() for c in dots])
    np.testing.assert_allclose(points[:, 0], [0.25, 0.4, 1.0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["reference", "wide"]
    colours = [c.get_facecolor()[0].tolist() for c in dots]
    assert colours[0] != colours[1]


def test_accuracy_has_a_line_and_a_band_for_each_set():
    ax = draw("plot_accuracy")
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.5, 1.0], [0.4, 0.8]]
    np.testing.assert_allclose(band_of(ax, 1)[1], [0.4 + 0.196, 0.8 + 0.392])
    assert sorted(texts(ax)) == ["test", "train"]


def test_shares_are_solid_and_their_weights_dashed_in_one_colour():
    ax = draw("plot_weighted_gradient_share")
    solid = [line for line in ax.lines if line.get_linestyle() == "-"]
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in solid] == [[0.7, 0.6], [0.3, 0.4]]
    assert [list(line.get_ydata()) for line in dashed] == [[0.5, 0.5], [0.5, 0.5]]
    assert [line.get_color() for line in solid] == [line.get_color() for line in dashed]


def test_fractions_name_the_set_in_the_title_and_the_classes_at_the_lines():
    ax = draw("plot_predicted_frac")
    assert title_of(ax) == "Predicted classes: test"
    assert sorted(texts(ax)) == ["class 0", "class 1"]
    assert sorted(list(line.get_ydata()) for line in ax.lines) == [[0.3, 0.0], [0.7, 0.2]]


@pytest.mark.parametrize("n_classes", [3, 4, 5, 10, 100])
def test_of_many_classes_at_most_four_are_coloured_and_all_are_drawn(n_classes):
    values = {f"test: class {c}": [1 / n_classes, c / n_classes] for c in range(n_classes)}
    ax = draw("plot_predicted_frac", scalar_table("predicted_frac", values))
    assert len(ax.lines) == n_classes
    assert len(ax.collections) == min(n_classes, 4)  # bands
    colours = [line.get_color() for line in ax.lines]
    if n_classes > 4:
        grey = max(colours, key=colours.count) if n_classes > 5 else colours[0]
        assert colours.count(grey) == n_classes - 4
        assert f"{n_classes - 4} others" in texts(ax)
    named = {text for text in texts(ax) if text.startswith("class")}
    assert {"class 0", f"class {n_classes - 1}"} <= named  # lowest and highest at the end


def test_noise_law_has_a_curve_for_each_law_and_a_point_for_each_run():
    ax = draw("plot_noise_law")
    *laws, points = ax.lines
    assert [list(line.get_ydata()) for line in laws] == [
        list(law_curves()[law]) for law in law_curves().columns[1:]
    ]
    assert list(points.get_xdata()) == [0.0, 0.2, 0.4]
    assert list(points.get_ydata()) == [0.9, 0.6, 0.4]
    ends = [segment[:, 1] for segment in ax.collections[0].get_segments()]
    expected = [[y - 1.96 * e, y + 1.96 * e] for y, e in ((0.9, 0.01), (0.6, 0.02), (0.4, 0.03))]
    np.testing.assert_allclose(ends, expected)
    assert "symmetric" in title_of(ax)
    assert sorted(t.replace("\n", " ") for t in texts(ax)) == sorted(law_curves().columns[1:])


def test_label_precision_and_recall_are_lines_for_the_law_and_points_for_the_runs():
    ax = draw("plot_label_precision")
    drawn = [list(line.get_ydata()) for line in ax.lines]
    assert drawn == [[1.0, 0.9], [1.0, 0.9, 0.8], [1.0, 0.5], [0.9, 0.8, 0.6]]
