"""The report of a regularisation-timing study: does it matter when one regularises?"""

from typing import Any

import numpy as np
import pandas as pd

from dynamics.regularisation_timing import (
    INTEREST,
    POWER,
    fisher_against_accuracy,
    timing_effects,
    timing_table,
    within_seeds,
)
from dynamics.traces import Study, TraceError
from reports.page import Cell, Page, PageTable, Panel
from reports.provenance import describe_provenance, describe_rerun
from reports.timing_figures import plot_peak_fisher, plot_switch

LITERATURE = {
    "peak": "Golatkar et al. report + .92 over weight decay and scale, Jastrzębski et al. a "
    "negative sign for the early peak over learning rates",
    "final": "Golatkar et al. report + .29, not significant",
}


def build_timing_report(study: Study) -> Page:
    """Analyse a study and lay out its report.

    Args:
        study: A study named regularisation-timing.

    Returns:
        The page.

    Raises:
        TraceError: If no run with a regulariser has ended, or none without one.
    """
    table = timing_table(study)
    runs = table[table["ended_cleanly"].astype(bool)] if len(table) else table
    if (
        runs.empty
        or len({"never"} | set(runs["schedule"])) < 2
        or "never" not in set(runs["schedule"])
    ):
        raise TraceError(f"{study.path} needs ended runs with and without a regulariser.")
    effects = timing_effects(runs)
    signs = fisher_against_accuracy(runs)
    regularisers = list(dict.fromkeys(effects["regulariser"]))
    verdict = [_judge(name, effects[effects["regulariser"] == name]) for name in regularisers]
    verdict += [_judge_sign(row) for row in signs.to_dict("records") if row["runs"] == "all"]
    return Page(
        title="Does it matter when one regularises?",
        subtitle=f"Study {study.name} · {len(runs)} runs · {study.path}",
        verdict=verdict,
        caveats=_caveats(runs, effects),
        sections=[],
        tables=[_effect_table(effects), _sign_table(signs)],
        provenance=describe_provenance(study.runs[0]) | {"Run": f"first of {len(study.runs)}"},
        key_figures=[
            _switch_panel(effects, regularisers, ["until", "from"]),
            _switch_panel(effects, regularisers, ["window"]),
            _fisher_panel(runs),
        ],
        rerun=describe_rerun(study, "", **_options(study, table, regularisers)),
    )


def _judge(regulariser: str, rows: pd.DataFrame) -> str:
    text = f"{regulariser.capitalize()}: "
    always = rows[rows["schedule"] == "always"]
    for row in always.to_dict("records"):
        text += f"always on it changes final accuracy by {_interval(row)}, {row['n']} seeds"
        if row["verdict"] == "not resolved":
            text += f", not resolvable at this scale ({_power(row['seeds_needed'])})"
        text += ". "
    for schedule, words in (("until", "on until"), ("from", "on only from"), ("window", "window")):
        parts = [
            f"{words} {row['t0']}: {_interval(row)}, {row['verdict']}"
            for row in rows[rows["schedule"] == schedule].to_dict("records")
        ]
        if parts:
            text += "; ".join(parts).capitalize() + ". "
    lost = rows[(rows["schedule"] == "until") & (rows["loss_low"] > 0)]
    kept = rows[(rows["schedule"] == "until") & (rows["loss_low"] <= 0)]
    if len(always) and len(kept):
        text += (
            f"Switched off at {_epochs(kept)} it loses nothing that is resolved against always on"
            + (f", at {_epochs(lost)} it does" if len(lost) else "")
            + "."
        )
    return text.strip()


def _judge_sign(row: dict[Any, Any]) -> str:
    found = f"{row['correlation']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
    return (
        f"Rank correlation over all {row['n']} runs, within seeds, of the {row['which']} of tr F "
        f"with final accuracy: {found}, {row['sign']}. {LITERATURE[row['which']]}."
    )


def _caveats(runs: pd.DataFrame, effects: pd.DataFrame) -> list[str]:
    caveats = []
    if effects["n"].min() < 5:
        caveats.append(f"Only {effects['n'].min()} seeds in some settings.")
    weak = runs[runs["train_accuracy"] < 0.99]
    if len(weak):
        named = weak.groupby("regulariser").size()
        told = ", ".join(f"{n} with {name}" for name, n in named.items())
        caveats.append(f"{len(weak)} runs ended below 99 % training accuracy: {told}.")
    return [
        *caveats,
        "The interval of a correlation takes runs as independent; those of one schedule share what "
        "the schedule does. Correlations within a regulariser (table) can have another sign than "
        "over all runs: the sign depends on what is varied, and is no law.",
        "One learning-rate schedule, one strength of each regulariser: a strength that suits the "
        "beginning need not suit the end.",
        "Every schedule is tested against never by itself; no correction is made for their number.",
    ]


def _switch_panel(effects: pd.DataFrame, regularisers: list[str], schedules: list[str]) -> Panel:
    is_window = schedules == ["window"]
    name = "window_effect" if is_window else "switch"
    title = "Effect of a window" if is_window else "Effect of switching off, and on, at t0"
    shown = effects[effects["schedule"].isin([*schedules, "always"])]
    if not effects["schedule"].isin(schedules).any():
        return Panel(name, title, "", missing="Run the study with --onsets or --switches.")

    def draw(axes: Any) -> None:
        for ax, regulariser in zip(np.ravel(np.atleast_1d(axes)), regularisers, strict=False):
            plot_switch(shown[shown["regulariser"] == regulariser], ax=ax)
            ax.set_title(regulariser.capitalize())

    caption = (
        "Mean over seeds of the final accuracy less that of the same seed without the regulariser, "
        "with 95 % bands. "
        + (
            "A window that helps only early is a critical period for regularisation."
            if is_window
            else "Blue: on until t0. Red: on from t0 to the end."
        )
    )
    columns = min(2, len(regularisers))
    shape = (-(-len(regularisers) // columns), columns)
    return Panel(name, title, caption, draw, {name: shown}, shape=shape)


def _fisher_panel(runs: pd.DataFrame) -> Panel:
    name, title = "peak_fisher", "Peak and final Fisher trace against final accuracy"
    centred = within_seeds(runs)
    if centred.empty:
        return Panel(name, title, "", missing="Add FisherTrace(data=probe_set).")

    def draw(axes: Any) -> None:
        for ax, which in zip(np.ravel(axes), ("peak", "final"), strict=True):
            plot_peak_fisher(centred, which=which, ax=ax)
            ax.set_title(f"{which.capitalize()} of the trace")

    caption = "Each point is a run, less the mean of its seed's runs."
    return Panel(name, title, caption, draw, {name: centred}, shape=(1, 2))


def _effect_table(effects: pd.DataFrame) -> PageTable:
    header = ["regulariser", "schedule", "t0", "seeds", "accuracy", "effect", "lost against always"]
    rows = [
        [
            *(str(row[key]) for key in ("regulariser", "schedule", "t0", "n")),
            f"{row['accuracy']:.3f}",
            _interval(row),
            f"{row['loss']:+.3f} ({row['loss_low']:+.3f} to {row['loss_high']:+.3f})",
            row["verdict"],
            f"{row['seeds_needed']:.0f}",
        ]
        for row in effects.to_dict("records")
    ]
    note = (
        f"Effect against never, paired by seed, 95 % intervals. The last column: seeds at which an "
        f"effect of {INTEREST} would be resolved in {POWER:.0%} of studies, given this spread."
    )
    return _page_table("Effects", note, [*header, "verdict", "seeds needed"], rows)


def _sign_table(signs: pd.DataFrame) -> PageTable:
    rows = [
        [
            *(str(row[key]) for key in ("runs", "which", "n")),
            f"{row['correlation']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})",
            row["sign"],
        ]
        for row in signs.to_dict("records")
    ]
    note = "Rank correlation of tr F with final accuracy within seeds. " + "; ".join(
        f"{which}: {text}" for which, text in LITERATURE.items()
    )
    header = ["runs", "tr F", "n", "rank correlation", "sign"]
    return _page_table("Fisher trace against accuracy", f"{note}.", header, rows)


def _options(study: Study, table: pd.DataFrame, regularisers: list[str]) -> dict[str, Any]:
    config = study.runs[0].config
    switches = table.loc[table["schedule"].isin(["until", "from"])]
    windows = table[table["schedule"] == "window"]
    length = int((windows["on_until"] - windows["on_from"]).max()) if len(windows) else None
    inside = switches.loc[switches["schedule"] == "from", "t0"]
    onsets = [0, *sorted(set(windows["t0"]))] if length else []
    return {
        "regulariser": regularisers,
        "switches": ",".join(str(t0) for t0 in sorted(set(inside))),
        "onsets": ",".join(str(onset) for onset in onsets),
        "window": length,
        "epochs": config.get("epochs"),
        "n_images": config.get("n_images"),
    }


def _power(seeds: float) -> str:
    if not np.isfinite(seeds):
        return "too few seeds to say how many it needs"
    return f"an effect of {INTEREST} would need {seeds:.0f} seeds at {POWER:.0%} power"


def _epochs(rows: pd.DataFrame) -> str:
    return ", ".join(str(t0) for t0 in sorted(rows["t0"]))


def _interval(row: dict[Any, Any]) -> str:
    return f"{row['effect']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _page_table(title: str, note: str, header: list[str], rows: list[list[str]]) -> PageTable:
    return PageTable(title, note, header, [[Cell(text) for text in row] for row in rows])
