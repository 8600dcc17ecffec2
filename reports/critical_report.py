"""The report of a critical-period study: do early deficits harm for good, or is it the rate?"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dynamics.critical_period import (
    CriticalWindow,
    RateVerdict,
    compare_deficits,
    control_accuracy,
    critical_table,
    find_critical_window,
    judge_rate,
    removal_drops,
    sensitivity_table,
    smallest_harmful_end,
)
from dynamics.fisher_phases import tabulate_phases
from dynamics.fisher_sensitivity import FisherMatch, clean_trace, deficit_traces, match_fisher
from dynamics.plasticity import plasticity_curves
from dynamics.traces import Study, TraceError
from reports.critical_panels import (
    deficit_panel,
    deficit_table,
    drop_table,
    fisher_panel,
    phase_table,
    removal_panel,
    sensitivity_panel,
    window_table,
)
from reports.page import Page, Section
from reports.provenance import describe_provenance, describe_rerun

FITTED = 0.99
"""Training accuracy below which a run counts as under-trained."""


@dataclass(frozen=True)
class CriticalEvidence:
    """The tables that the page is laid out from.

    Attributes:
        runs: `critical_table` of the runs that have ended.
        drops: `removal_drops`.
        control: `control_accuracy`.
        deficits: `compare_deficits`.
        sensitivity: `sensitivity_table`.
        rates: By network, `judge_rate` for blur.
        windows: By network and rate, the critical window and the match with the Fisher trace.
        clean: By network and rate, `clean_trace`.
        traces: `deficit_traces`.
        phases: Phases of those traces.
        boundaries: Boundaries of those phases.
    """

    runs: pd.DataFrame
    drops: pd.DataFrame
    control: pd.DataFrame
    deficits: pd.DataFrame
    sensitivity: pd.DataFrame
    rates: dict[str, RateVerdict]
    windows: dict[tuple[str, str], tuple[CriticalWindow, FisherMatch | None]]
    clean: dict[tuple[str, str], pd.DataFrame]
    traces: pd.DataFrame
    phases: pd.DataFrame
    boundaries: pd.DataFrame


def build_critical_report(study: Study) -> Page:
    """Analyse a study and lay out its report.

    Args:
        study: A study named critical-period.

    Returns:
        The page.

    Raises:
        TraceError: If no run with a deficit has ended whose run without one has ended too.
    """
    found = _analyse(study)
    verdict = [_judge_rate(network, rate) for network, rate in found.rates.items()]
    verdict += _judge_ends(found) + _judge_deficits(found.deficits)
    verdict += [_judge_window(*key, found) for key in found.windows]
    verdict += _judge_phases(found.phases)
    return Page(
        title="Do early deficits harm for good?",
        subtitle=f"Study {study.name} · {len(found.runs)} runs · {study.path}",
        verdict=verdict,
        caveats=_caveats(study, found),
        sections=[Section("Further figures", [deficit_panel(found.deficits)])],
        tables=[
            drop_table(found.drops),
            deficit_table(found.deficits),
            window_table(found.sensitivity),
            phase_table(found.phases),
        ],
        provenance=describe_provenance(study.runs[0]) | {"Run": f"first of {len(study.runs)}"},
        key_figures=[
            removal_panel(found.runs, found.drops, found.control),
            sensitivity_panel(found.sensitivity, found.clean),
            fisher_panel(found.traces, found.boundaries),
        ],
        rerun=describe_rerun(study, "", **_options(study)),
    )


def _analyse(study: Study) -> CriticalEvidence:
    table = critical_table(study)
    runs = table[table["ended_cleanly"].astype(bool)]
    if runs["drop"][runs["deficit"] != "none"].isna().all():
        raise TraceError(
            f"No run of {study.path} with a deficit has ended together with the one without it."
        )
    curves = plasticity_curves(study)
    curves = curves[curves["run"].isin(runs["run"])]
    sensitivity = sensitivity_table(runs)
    traces = deficit_traces(curves)
    keys = ["network", "rate", "setting", "until"]
    phases, boundaries = tabulate_phases(traces, keys) if len(traces) else (traces, traces)
    blurred = runs[runs["deficit"].isin(["none", "blur"])]
    rates = {str(n): judge_rate(rows) for n, rows in blurred.groupby("network", sort=False)}
    windows, clean = {}, {}
    for (network, rate), rows in _blur_windows(sensitivity):
        mine = curves[(curves["network"] == network) & (curves["rate"] == rate)]
        clean[network, rate] = clean_trace(mine)
        match = match_fisher(
            rows["onset"].to_numpy(), rows["sensitivity"].to_numpy(), clean[network, rate]
        )
        windows[network, rate] = (find_critical_window(rows), match)
    return CriticalEvidence(
        runs=runs,
        drops=removal_drops(runs),
        control=control_accuracy(runs),
        deficits=compare_deficits(runs),
        sensitivity=sensitivity,
        rates={network: verdict for network, verdict in rates.items() if verdict is not None},
        windows=windows,
        clean=clean,
        traces=traces,
        phases=phases,
        boundaries=boundaries,
    )


def _blur_windows(sensitivity: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    if sensitivity.empty:
        return []
    blur = sensitivity[sensitivity["deficit"] == "blur"]
    return [((str(n), str(r)), rows) for (n, r), rows in blur.groupby(["network", "rate"])]


_EXPLAINED = {
    "rate confound": "a rate confound, not a critical period. The drop is there with a decaying "
    "learning rate and absent without",
    "critical period": "a critical period that the learning rate does not explain",
    "partly the rate": "at least partly the learning rate's doing",
    "no drop": "no drop in any arm, so there is no critical period to explain",
    "not resolved": "not resolved: these runs cannot tell the deficit from the learning rate",
}


def _judge_rate(network: str, verdict: RateVerdict) -> str:
    arms = [
        f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f}, {estimate.n} seeds) "
        f"in the {rate} arm"
        for rate, estimate in verdict.drops.items()
    ]
    gaps = [
        f"{rate} {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
        for rate, gap in verdict.differences.items()
    ]
    return (
        f"{_named(network)}: {_EXPLAINED[verdict.explanation]}. Blur until epoch {verdict.until} "
        f"costs {', '.join(arms)}; the decayed arm loses more by: {', '.join(gaps)} (95 % "
        "intervals, paired by seed)."
    )


def _judge_ends(found: CriticalEvidence) -> list[str]:
    blur = found.drops[found.drops["deficit"] == "blur"]
    sentences = []
    for network, rows in blur.groupby("network", sort=False):
        parts = []
        for rate, arm in rows.groupby("rate", sort=False):
            end = smallest_harmful_end(arm)
            parts.append(f"{rate} arm from t0 = {end} on" if end else f"{rate} arm at none")
        sentences.append(
            f"{_named(str(network))}: of the ends t0 tried, blur costs accuracy in the "
            f"{', the '.join(parts)} (one-sided at 5 %, tested from the largest t0 down)."
        )
    return sentences


def _judge_deficits(table: pd.DataFrame) -> list[str]:
    sentences = []
    for row in table.to_dict("records") if len(table) else []:
        sentences.append(
            f"{_named(row['network'])}, {row['rate']} arm: {row['deficit']} until epoch "
            f"{row['until']} costs {_drop(row)}, {_share(row['verdict'])} of what blur costs "
            f"({row['against_drop']:+.3f})."
        )
    return sentences


def _share(verdict: str) -> str:
    return (
        "which is not resolved to be more or less than half"
        if verdict == "not resolved"
        else (f"which is {verdict}")
    )


def _judge_window(network: str, rate: str, found: CriticalEvidence) -> str:
    window, match = found.windows[network, rate]
    if window.opens is None:
        text = "a window of blur costs accuracy at no onset that was tried"
    else:
        closes = "it still does at the last" if window.closes is None else f"not at {window.closes}"
        text = f"a window of blur costs accuracy from onset {window.opens} on, and {closes}"
    text = f"{_named(network)}, {rate} arm: {text} (Holm over onsets, {window.n} seeds)"
    if match is None:
        return f"{text}. Too few onsets to compare with the Fisher trace."
    r = match.at_onset
    return (
        f"{text}. Rank correlation of sensitivity with tr F at the onset {r.value:+.2f} "
        f"({r.low:+.2f} to {r.high:+.2f}, {match.n} onsets); at best {match.best:+.2f}, "
        f"{match.best_lag} epochs later (permutation p = {match.p_value:.2f}, choice of lag "
        "included)."
    )


def _judge_phases(phases: pd.DataFrame) -> list[str]:
    sentences = []
    for row in phases.to_dict("records") if len(phases) else []:
        if row["setting"] != "no deficit" or row["rate"] == "reset":
            continue
        peak = (
            f"a peak at epoch {row['peak_epoch']:.0f} ({row['peak_epoch_low']:.0f} to "
            f"{row['peak_epoch_high']:.0f}) and falls to {row['fall']:.2g} of it "
            f"({row['fall_low']:.2g} to {row['fall_high']:.2g})"
            if row["has_interior_peak"]
            else "no interior peak that stands out of its error"
        )
        sentences.append(
            f"{_named(row['network'])}, {row['rate']} rate, no deficit: the Fisher trace "
            f"(geometric mean over seeds) has {peak}."
        )
    return sentences


def _caveats(study: Study, found: CriticalEvidence) -> list[str]:
    caveats = []
    seeds = int(found.drops["n"].min())
    if seeds < 3:
        caveats.append(
            f"Only {seeds} seed(s) in some settings: their intervals rest on very little."
        )
    weak = found.runs[found.runs["train_accuracy"] < FITTED]
    if len(weak):
        groups: Any = weak.groupby(["network", "rate"])
        told = ", ".join(f"{len(rows)} of {n}, {rate} rate" for (n, rate), rows in groups)
        caveats.append(
            f"{len(weak)} run(s) ended below {FITTED:.0%} training accuracy ({told}): there a low "
            "test accuracy is that of a network that has not finished, not of one harmed for good."
        )
    unpaired = found.runs[(found.runs["deficit"] != "none") & found.runs["drop"].isna()]
    if len(unpaired):
        caveats.append(f"No run without a deficit to compare with: {', '.join(unpaired['run'])}.")
    caveats += [
        "All drops are against training without a deficit for the clean epochs alone. A run with a "
        "deficit has trained longer in all, which by itself may help it.",
        "A decaying rate confounds windows too: a late one falls on a small rate, so that it can "
        "neither do harm nor be undone.",
        "Fisher traces are measured on clean images throughout, also during a deficit, with labels "
        "drawn from the model. Sensitivity and trace are smooth curves over one axis: their "
        "correlation over a few onsets is weak evidence, whatever its p-value.",
        "With batch normalisation the Fisher trace falls as 1/‖w‖² while weights grow; each run's "
        "own report shows ‖w‖² and the scale-free trace.",
        "Each verdict stands for itself; no correction is made for there being several of them.",
    ]
    return caveats


def _options(study: Study) -> dict[str, Any]:
    """What `describe_rerun` needs beyond data, seeds and folder."""
    table = study.table()
    config = study.runs[0].config
    from_start = table[(table["deficit"] == "blur") & (table["onset"] == 0)]
    later = table[(table["deficit"] == "blur") & (table["onset"] > 0)]
    length = int((later["until"] - later["onset"]).max()) if len(later) else None
    options: dict[str, Any] = {
        "network": sorted(set(table["network"])),
        "rate": sorted(set(table["rate"])),
        "until": ",".join(str(end) for end in sorted(set(from_start["until"]))),
        "deficit": sorted(set(table["deficit"]) - {"none", "blur"}),
        "onsets": ",".join(map(str, [0, *sorted(set(later["onset"]))])) if length else "",
        "window": length,
    }
    names = ("clean_epochs", "n_images", "width", "lr", "lr_decay", "weight_decay", "optimizer")
    return options | {name: config.get(name) for name in names}


def _drop(row: dict[Hashable, Any]) -> str:
    if pd.isna(row["low"]):
        return f"{row['drop']:+.3f} (one seed)"
    return f"{row['drop']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"


def _named(network: str) -> str:
    return network.replace("mlp", "MLP").replace("all-cnn", "All-CNN")
