"""Figures draw their table and nothing else: lines, bands, bars and dots are the numbers given."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.scale import LogScale

import reports
from dynamics.plasticity import curves_over_seeds
from reports.style import BLUE, VERMILION

TESTS = Path(__file__).parent


def quantile_table():
    """Two groups, three epochs."""
    rows = []
    for epoch in range(3):
        for group, middle in (("clean", 1.0 + epoch), ("wrong label", 5.0 - epoch)):
            quantiles = {"q05": middle / 4, "q25": middle / 2, "median": middle}
            quantiles |= {"q75": 2 * middle, "q95": 3 * middle}
            rows.append({"epoch": epoch, "group": group, "n": 7, "mean": 0.0} | quantiles)
    return pd.DataFrame(rows)


def scalar_table(name, values):
    """`values`: block to its value at epochs −1, 0, 1, …; standard error .1 · (epoch + 2)."""
    rows = [
        {"epoch": i - 1, "name": name, "block": b, "value": v, "stderr": 0.1 * (i + 1), "n": 9}
        for b, column in values.items()
        for i, v in enumerate(column)
    ]
    return pd.DataFrame(rows)


def mixture_table():
    table = pd.DataFrame({"left": [0.0, 0.5], "right": [0.5, 1.0]})
    table[["component_0", "component_1"]] = [[1.5, 0.1], [0.2, 0.9]]
    table[["clean", "wrong label"]] = [[1.25, 0.25], [0.125, 0.5]]
    return table


def auc_table():
    rows = [(e, s, a + e / 10, 0.02) for e in (0, 1) for s, a in (("loss", 0.6), ("aum", 0.8))]
    return pd.DataFrame(rows, columns=["epoch", "score", "auc", "stderr"])


def map_table():
    table = pd.DataFrame({"std_p_true": [0.1, 0.2, 0.3], "mean_p_true": [0.9, 0.5, 0.2]})
    return table.assign(group=["clean", "wrong label", "clean"])


def share_table():
    shares = scalar_table("weighted_gradient_share", {"class 0": [0.7, 0.6], "class 1": [0.3, 0.4]})
    weights = scalar_table("weight_share", {"class 0": [0.5, 0.5], "class 1": [0.5, 0.5]})
    return pd.concat([shares, weights])


def noise_runs():
    ratio = [0.0, 0.2, 0.4]
    columns = {
        "noise": "symmetric",
        "arm": "memorised",
        "ratio": ratio,
        "held_out_noisy": [0.9, 0.6, 0.4],
    }
    columns |= {"held_out_noisy_stderr": [0.01, 0.02, 0.03]}
    columns |= {"label_precision": [1.0, 0.9, 0.8], "label_recall": [0.9, 0.8, 0.6]}
    return pd.DataFrame(columns)


def law_curves():
    laws = ["theory", "theory × clean accuracy", "free quadratic", "straight line"]
    laws += ["monotone spline"]
    curves = {law: [1.0 - i / 10, 0.5 - i / 10] for i, law in enumerate(laws)}
    return pd.DataFrame({"ratio": [0.0, 0.5], **curves})


def theory_table():
    columns = {"ratio": [0.0, 0.5], "label_precision": [1.0, 0.9], "label_recall": [1.0, 0.5]}
    return pd.DataFrame(columns)


def settings_table():
    columns = {"noise": "symmetric", "arm": ["memorised", "early-stopped"], "ratio": [0.2, 0.4]}
    columns |= {"train_accuracy": [1.0, 0.7], "deviation": [0.01, 0.1]}
    return pd.DataFrame(columns | {"deviation_low": [0.0, 0.05], "deviation_high": [0.02, 0.2]})


def ratio_table():
    columns = {"noise": "symmetric", "estimator": ["inverted law", "loss mixture"], "ratio": 0.4}
    columns |= {"estimate": [0.38, 0.3], "low": [0.37, 0.2], "high": [0.4, 0.4]}
    return pd.DataFrame(columns | {"usable": [True, False]})


def left_out_table():
    laws = law_curves().columns[1:]
    columns = {"law": laws, "left_out_error": 0.03, "left_out_low": 0.01, "left_out_high": 0.05}
    return pd.DataFrame(columns)


def shares_table():
    columns = {"noise": "asymmetric", "ratio": [0.0, 0.4], "kept": [0.9, 0.5]}
    return pd.DataFrame(columns | {"flipped": [0.0, 0.4], "neither": [0.1, 0.1]})


def fisher_curves():
    """Two seeds, two curves, epochs −1 to 2; the second seed has twice the values."""
    rows = []
    for curve, values in (
        ("fisher_trace", [1.0, 8.0, 4.0, 2.0]),
        ("empirical_fisher_trace", [1.0, 4.0, 0.5, 0.0]),
    ):
        for seed in (0, 1):
            for i, value in enumerate(values):
                row = {"run": f"reference-{seed}", "setting": "reference", "seed": seed}
                row |= {"curve": curve, "epoch": i - 1, "value": value * (1 + seed), "stderr": 0.1}
                rows.append(row)
    return pd.DataFrame(rows)


def fall_table():
    columns = {"setting": ["reference", "reference", "wide"], "seed": [0, 1, 0]}
    columns |= {"last_over_peak": [0.25, 0.4, 1.0], "last_over_peak_stderr": [0.01, 0.02, 0.1]}
    return pd.DataFrame(columns | {"has_interior_peak": [True, True, False]})


def gain_table():
    """Two scores of three, two epochs."""
    columns = {"epoch": [0, 0, 1, 1], "score": ["loss", "bound"] * 2, "tau": [1.5, 1.2, 3.0, 2.5]}
    table = pd.DataFrame(columns)
    return table.assign(low=table["tau"] - 0.25, high=table["tau"] + 0.5, threshold=2.0)


def agreement_table():
    rows = [("aum", "el2n", 0.75, 0.5, 1.0), ("aum", "grand", -0.25, -0.5, 0.0)]
    rows += [("el2n", "grand", 0.5, np.nan, np.nan)]
    return pd.DataFrame(rows, columns=["a", "b", "correlation", "low", "high"])


def reliability_table():
    columns = {"posterior": [0.0625, 0.875], "share": [0.125, 0.5], "n": [1234, 7]}
    return pd.DataFrame(columns | {"low": [0.0, 0.25], "high": [0.25, 0.75]})


def weighting_rows():
    columns = {"epoch": [0, 1, 2], "gradient_share": [0.75, 0.5, 0.5], "weight_share": 0.875}
    return pd.DataFrame(columns | {"gradient_stderr": 0.125, "in_reach": [1.0, 0.5, 0.0]})


FISHER_SHARE = scalar_table(
    "fisher_share", {"first": [0.2, 0.5], "second": [0.79, 0.48], "third": [0.01, 0.02]}
)
FISHER = scalar_table("fisher_trace", {"2": [0.5, 2.0, 1.0], "total": [1.0, 4.0, 2.0]})
FRACTIONS = scalar_table("predicted_frac", {"test: class 0": [0.7, 0.2], "test: class 1": [0.3, 0]})
TABLES = {
    "plot_accuracy": (scalar_table("accuracy", {"train": [0.5, 1.0], "test": [0.4, 0.8]}),),
    "plot_data_map": (map_table(),),
    "plot_detection_auc": (auc_table(),),
    "plot_fall": (fall_table(),),
    "plot_fisher_runs": (fisher_curves(), curves_over_seeds(fisher_curves())),
    "plot_fisher_share": (FISHER_SHARE,),
    "plot_fisher_trace": (FISHER,),
    "plot_grad_norm": (quantile_table(),),
    "plot_importance_gain": (gain_table(),),
    "plot_label_precision": (noise_runs(), theory_table()),
    "plot_left_out_error": (left_out_table(),),
    "plot_loss": (quantile_table(),),
    "plot_loss_mixture": (mixture_table(),),
    "plot_memorisation": (settings_table(),),
    "plot_noise_law": (noise_runs(), law_curves()),
    "plot_posterior_calibration": (reliability_table(),),
    "plot_predicted_frac": (FRACTIONS,),
    "plot_score_agreement": (agreement_table(),),
    "plot_prediction_shares": (shares_table(),),
    "plot_ratio_estimates": (ratio_table(),),
    "plot_weighted_gradient_share": (share_table(),),
    "plot_weighting": (weighting_rows(),),
}


def draw(name, *tables):
    return getattr(reports, name)(*(tables or TABLES[name]))


def title_of(ax):
    return ax.get_title() or ax.get_title(loc="left")


def data_lines(ax):
    """The lines that a table's column was drawn as, in order."""
    return [line for line in ax.lines if len(line.get_xdata()) and line.get_linestyle() != "None"]


def band_of(ax, i):
    """Lower and upper end of the i-th band, at each x in order."""
    vertices = ax.collections[i].get_paths()[0].vertices
    xs = np.unique(vertices[:, 0])
    at = [vertices[vertices[:, 0] == x, 1] for x in xs]
    return [y.min() for y in at], [y.max() for y in at]


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("name", TABLES)
def test_axes_given_are_used_named_and_returned_and_the_table_is_left_alone(name):
    before = [table.copy() for table in TABLES[name]]
    ax = Figure().add_subplot()
    assert getattr(reports, name)(*TABLES[name], ax=ax) is ax
    assert title_of(ax)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ax.lines or ax.collections
    for table, copy in zip(TABLES[name], before, strict=True):
        pd.testing.assert_frame_equal(table, copy)


@pytest.mark.parametrize("name", TABLES)
def test_without_axes_a_new_figure_is_made_that_can_be_saved(name):
    first, second = draw(name), draw(name)
    assert first.figure is not second.figure
    buffer = io.BytesIO()
    first.figure.savefig(buffer, format="svg")
    assert len(buffer.getvalue()) > 5_000


@pytest.mark.parametrize("name", ["plot_loss", "plot_grad_norm"])
def test_distributions_are_median_and_middle_half(name):
    table, ax = quantile_table(), draw(name)
    for i, (group, rows) in enumerate(table.groupby("group")):
        line = data_lines(ax)[i]
        assert list(line.get_xdata()) == [0, 1, 2]
        assert list(line.get_ydata()) == list(rows["median"])
        assert to_hex(line.get_color()).upper() == {"clean": BLUE, "wrong label": VERMILION}[group]
        low, high = band_of(ax, i)
        assert low == list(rows["q25"])
        assert high == list(rows["q75"])
        assert f"{group}\n(n = 7)" in texts(ax)


def test_gradient_norms_are_logarithmic_with_the_95th_percentile_dotted():
    ax = draw("plot_grad_norm")
    assert isinstance(ax.yaxis._scale, LogScale)
    dotted = [list(line.get_ydata()) for line in ax.lines if line.get_linestyle() == ":"]
    assert dotted == [list(r["q95"]) for _, r in quantile_table().groupby("group")]


def test_mixture_bars_are_stacked_and_components_are_at_the_centres():
    table, ax = mixture_table(), draw("plot_loss_mixture")
    assert [bar.get_height() for bar in ax.patches] == [1.25, 0.125, 0.25, 0.5]
    assert [bar.get_x() for bar in ax.patches] == [0.0, 0.5, 0.0, 0.5]
    assert [bar.get_y() for bar in ax.patches] == [0, 0, 1.25, 0.125]
    assert {bar.get_width() for bar in ax.patches} == {0.5}
    for line, column in zip(ax.lines, ("component_0", "component_1"), strict=True):
        assert list(line.get_xdata()) == [0.25, 0.75]
        assert list(line.get_ydata()) == list(table[column])


def test_mixture_without_truth_has_one_kind_of_bar():
    table = mixture_table().drop(columns=["clean", "wrong label"]).assign(all=[1.4, 0.6])
    ax = draw("plot_loss_mixture", table)
    assert [bar.get_height() for bar in ax.patches] == [1.4, 0.6]


def test_detection_curves_with_bands_and_no_curve_for_a_score_not_recorded():
    ax = draw("plot_detection_auc")
    loss, aum, chance = ax.lines
    assert list(loss.get_ydata()) == [0.6, 0.7]
    assert list(aum.get_ydata()) == [0.8, 0.9]
    assert list(chance.get_ydata()) == [0.5, 0.5]
    low, high = band_of(ax, 0)
    np.testing.assert_allclose(low, [0.6 - 0.0392, 0.7 - 0.0392])
    np.testing.assert_allclose(high, [0.6 + 0.0392, 0.7 + 0.0392])
    assert sorted(texts(ax)) == ["AUM", "loss"]


def test_importance_gain_has_a_band_for_each_score_and_the_threshold():
    ax = draw("plot_importance_gain")
    loss, bound, threshold = ax.lines
    assert list(loss.get_ydata()) == [1.5, 3.0]
    assert list(bound.get_ydata()) == [1.2, 2.5]
    assert list(threshold.get_ydata()) == [2, 2]
    assert band_of(ax, 0) == ([1.25, 2.75], [2.0, 3.5])
    assert texts(ax) == ["pays above", "bound Ĝ", "loss"]


def test_agreement_is_below_the_diagonal_with_half_widths():
    ax = draw("plot_score_agreement")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["AUM", "EL2N"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["EL2N", "GraNd"]
    drawn = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(2, 2)
    np.testing.assert_array_equal(drawn, [[0.75, np.nan], [-0.25, 0.5]])
    where = {text.get_text(): text.get_position() for text in ax.texts}
    assert where == {"0.75\n±0.25": (0, 1), "−0.25\n±0.25": (0, 2), "0.50": (1, 2)}


def test_calibration_has_a_dot_with_its_interval_and_number_for_each_bin():
    ax = draw("plot_posterior_calibration")
    diagonal, dots = ax.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert dots.get_xydata().tolist() == [[0.0625, 0.125], [0.875, 0.5]]
    bars = [path.vertices[:, 1].tolist() for path in ax.collections[0].get_paths()]
    assert bars == [[0, 0.25], [0.25, 0.75]]
    assert texts(ax) == ["1,234", "7", "calibrated"]


def test_weighting_has_the_reach_beside_both_shares_and_the_gradients_band():
    ax = draw("plot_weighting")
    gradient, weight, reach = ax.lines
    assert list(gradient.get_ydata()) == [0.75, 0.5, 0.5]
    assert list(weight.get_ydata()) == [0.875] * 3
    assert list(reach.get_ydata()) == [1, 0.5, 0]
    low, high = band_of(ax, 0)
    np.testing.assert_allclose(low, gradient.get_ydata() - 1.96 * 0.125)
    np.testing.assert_allclose(high, gradient.get_ydata() + 1.96 * 0.125)


def test_data_map_has_a_dot_for_each_sample_in_its_group():
    ax = draw("plot_data_map")
    clean, wrong = ax.collections
    assert clean.get_offsets().tolist() == [[0.1, 0.9], [0.3, 0.2]]
    assert wrong.get_offsets().tolist() == [[0.2, 0.5]]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["clean (2)", "wrong label (1)"]


def test_labels_of_lines_that_end_together_do_not_overlap():
    values = {name: [0.1 * i, 0.5 + i / 1000] for i, name in enumerate("abcdef")}
    ax = draw("plot_accuracy", scalar_table("accuracy", values))
    heights = sorted(text.get_position()[1] for text in ax.texts)
    assert min(np.diff(heights)) >= 0.07
    assert heights[-1] <= 1


def test_a_figure_drawn_alone_survives_names_that_look_like_mathematics():
    name = r"$\frac{ b$"
    layer = draw("plot_fisher_trace", FISHER.replace("2", name))
    layer.figure.savefig(io.BytesIO())
    assert f"layer {name}" in texts(layer)
    blocks = {f"{name}: class {c}": [0.5, 0.5] for c in range(2)}
    predicted = draw("plot_predicted_frac", scalar_table("predicted_frac", blocks))
    predicted.figure.savefig(io.BytesIO())
    assert title_of(predicted) == f"Predicted classes: {name}"


def test_reports_are_drawn_without_pyplot_and_without_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from recorded import full_run\n"
        "from reports import plot_loss, write_report\n"
        "from dynamics.summary import summarise_epochs\n"
        "run = full_run(Path(sys.argv[1]) / 'run')\n"
        "plot_loss(summarise_epochs(run, 'loss'))\n"
        "write_report(run, Path(sys.argv[1]) / 'report.html')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"import sys; sys.path.insert(0, '.')\n{code}",
            tmp_path,
        ],
        cwd=TESTS,
        env={"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "matplotlib.backends.backend_svg" in loaded
    assert not {"matplotlib.pyplot", "torch", "probes", "studies"} & loaded
