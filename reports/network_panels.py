"""Panels of the run report on the network as a whole: accuracy, Fisher trace, what it predicts."""

from collections.abc import Callable
from functools import partial

import pandas as pd

from reports.network_figures import (
    plot_accuracy,
    plot_fisher_share,
    plot_fisher_trace,
    plot_predicted_frac,
    plot_weighted_gradient_share,
)
from reports.page import Panel

ACCURACY = (
    "Shares predicted right, bands ±1.96 standard errors. What the test curve loses after its best "
    "epoch is what memorising costs."
)
FISHER_TRACE = (
    "Labels drawn from the model, network in eval mode, bands ±1.96 standard errors. It rises "
    "while the network is plastic; a layer that takes over late is where fitting goes on."
)
WEIGHTED_GRADIENT_SHARE = (
    "What each class gets of Σ wᵢ‖∇ℓᵢ‖ (solid) beside its share of the weight (dashed). Where they "
    "part, the weight no longer decides."
)
WHERE_RECORDED: list[tuple[str, str, Callable[..., object], str]] = [
    (
        "fisher_share",
        "Share of the Fisher trace by depth",
        plot_fisher_share,
        "First layers at the bottom. Where the mass sits is where the data still change the "
        "network; it moves to the last layers when the first have settled, or cannot.",
    ),
    (
        "scale_free_fisher_trace",
        "Scale-free Fisher trace over epochs",
        plot_fisher_trace,
        "Σ w² F: what relative changes of the weights do to the outputs. Unlike the trace it does "
        "not fall merely because weights before a normalisation grow.",
    ),
    (
        "empirical_fisher_trace",
        "Empirical Fisher trace over epochs",
        plot_fisher_trace,
        "The same sum at the data's labels. Not an estimate of the Fisher trace: it falls to zero "
        "as the labels are fitted, whatever the curvature.",
    ),
]
"""Name, title, plot and caption of what has a panel only where it was recorded."""


def network_panels(scalars: pd.DataFrame) -> list[Panel]:
    """The panels of what a run recorded of its network.

    Args:
        scalars: `run.scalars()`.

    Returns:
        The panels; accuracy, Fisher trace and weighted gradient say what to add where missing.
    """
    recorded = set(scalars["name"])
    return [
        _panel(
            scalars,
            ["accuracy"],
            "Accuracy over epochs",
            plot_accuracy,
            ACCURACY,
            "recorder.record('accuracy', value, block='test', n=n) after each epoch",
        ),
        _panel(
            scalars,
            ["fisher_trace"],
            "Fisher trace over epochs",
            plot_fisher_trace,
            FISHER_TRACE,
            "FisherTrace(data=probe_set) to the recorder's probes",
        ),
        *(
            _panel(scalars, [name], title, plot, caption, "")
            for name, title, plot, caption in WHERE_RECORDED
            if name in recorded
        ),
        _panel(
            scalars,
            ["weighted_gradient_share", "weight_share"],
            "Share of the weighted gradient over epochs",
            plot_weighted_gradient_share,
            WEIGHTED_GRADIENT_SHARE,
            "WeightEffect() and GradNorm() to the recorder's probes",
        ),
        *_fraction_panels(scalars[scalars["name"] == "predicted_frac"]),
    ]


def _panel(
    scalars: pd.DataFrame,
    names: list[str],
    title: str,
    plot: Callable[..., object],
    caption: str,
    probe: str,
) -> Panel:
    table = scalars[scalars["name"].isin(names)]
    if table.loc[table["name"] == names[0], "value"].isna().all():
        return Panel(names[0], title, "", missing=f"Add {probe}.")
    return Panel(names[0], title, caption, lambda ax: plot(table, ax=ax), {names[0]: table})


def _fraction_panels(fractions: pd.DataFrame) -> list[Panel]:
    panels: list[Panel] = []
    sets = pd.Series([str(b).rpartition(": ")[0] for b in fractions["block"]], fractions.index)
    taken: set[str] = set()
    for name in dict.fromkeys(sets.tolist()):
        table = fractions[sets == name]
        key = "predicted_frac_" + "".join(c if c.isalnum() else "_" for c in name)
        key += f"_{len(taken)}" if key in taken else ""  # sets may differ in punctuation only
        taken.add(key)
        caption = (
            f"Classes that the network assigns to the set “{name}” of {int(table['n'].iloc[0]):,} "
            "inputs. Drift after the accuracies have settled is change that no label asked for."
        )
        draw = partial(_draw_fractions, table)
        panels.append(Panel(key, f"Predicted classes: {name}", caption, draw, {key: table}))
    return panels


def _draw_fractions(table: pd.DataFrame, ax: object) -> object:
    return plot_predicted_frac(table, ax=ax)  # type: ignore[arg-type]  # Panel.draw passes Axes
