"""The report of a noise-ratio study: what label noise costs, and which law it follows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dynamics.law_comparison import LawComparison, compare_laws
from dynamics.noise_evidence import mixture_rates, prediction_shares, shares_by_ratio
from dynamics.noise_law import NoiseKind, law_accuracy
from dynamics.noise_table import (
    EARLY_STOPPED,
    MEMORISED,
    compare_arms,
    count_classes,
    estimate_ratios,
    memorisation_needed,
    noise_table,
    summarise_noise_table,
)
from dynamics.traces import Study, TraceError
from reports.noise_panels import (
    arm_table,
    estimate_panel,
    estimate_table,
    law_panel,
    law_table,
    left_out_panel,
    memorisation_panel,
    precision_panel,
    run_table,
    shares_panel,
)
from reports.page import Page, Section
from reports.provenance import describe_provenance, describe_rerun

FULLY = 0.998
"""Training accuracy from which a network counts as having memorised."""

TOLERANCE, RATIO_TOLERANCE = 0.06, 0.05
"""Deviations that papers.md counts as reproduction at small scale."""


@dataclass(frozen=True)
class NoiseEvidence:
    """The tables that the page is laid out from.

    Attributes:
        runs: `noise_table` of the runs that have ended.
        summary: `summarise_noise_table` of them.
        comparisons: By kind of noise and width, of the memorised arm; None for too few ratios.
        arms: `compare_arms` of every arm but the memorised one.
        estimates: `estimate_ratios`.
        shares: `prediction_shares`.
        n_classes: Number of classes C.
    """

    runs: pd.DataFrame
    summary: pd.DataFrame
    comparisons: dict[tuple[NoiseKind, int | None], LawComparison | None]
    arms: pd.DataFrame
    estimates: pd.DataFrame
    shares: pd.DataFrame
    n_classes: int


def build_noise_report(study: Study) -> Page:
    """Analyse a study and lay out its report.

    Args:
        study: A study named noise-ratio.

    Returns:
        The page.

    Raises:
        TraceError: If none of its runs has ended.
    """
    found = _analyse(study)
    verdict = []
    for setting, comparison in found.comparisons.items():
        verdict += _judge(found, setting, comparison)
    verdict += [*_judge_arms(found), *_judge_estimates(found)]
    kinds = list(dict.fromkeys(noise for noise, _ in found.comparisons))
    sections = [
        Section(
            "Further figures",
            [
                precision_panel(found.runs, kinds, found.n_classes),
                left_out_panel(found.comparisons),
                shares_panel(shares_by_ratio(found.shares)),
            ],
        )
    ]
    return Page(
        title="What label noise costs",
        subtitle=f"Study {study.name} · {found.runs['run'].nunique()} runs · {study.path}",
        verdict=verdict,
        caveats=_caveats(study, found),
        sections=sections,
        tables=[
            run_table(found.summary),
            law_table(found.comparisons),
            arm_table(found.arms),
            estimate_table(found.estimates),
        ],
        provenance=describe_provenance(study.runs[0]) | {"Run": f"first of {len(study.runs)}"},
        key_figures=[
            law_panel(found.runs, found.comparisons),
            memorisation_panel(found.summary, kinds, TOLERANCE),
            estimate_panel(found.estimates, kinds, RATIO_TOLERANCE),
        ],
        rerun=describe_rerun(study, "", **_options(study)),
    )


def _analyse(study: Study) -> NoiseEvidence:
    runs = noise_table(study)
    if runs.empty:
        raise TraceError(f"No run of {study.path} has recorded anything yet.")
    runs = runs[runs["ended_cleanly"].astype(bool)].dropna(subset=["held_out_noisy"])
    if runs.empty:
        raise TraceError(f"No run of {study.path} has come to its end yet.")
    n_classes = max(count_classes(run) for run in study.runs if len(run.roster()))
    memorised = runs[runs["arm"] == MEMORISED]
    comparisons: dict[tuple[NoiseKind, int | None], LawComparison | None] = {}
    memorised = memorised.sort_values("noise", ascending=False, kind="stable")
    groups: Any = memorised.groupby(["noise", "width"], dropna=False, sort=False)
    for (noise, width), rows in groups:
        ratio, accuracy = rows["ratio"].to_numpy(float), rows["held_out_noisy"].to_numpy(float)
        enough = len(np.unique(ratio)) >= 4
        law: dict[str, Any] = {"kind": noise, "n_classes": n_classes}
        key: tuple[NoiseKind, int | None] = (noise, None if pd.isna(width) else int(width))
        comparisons[key] = compare_laws(ratio, accuracy, **law) if enough else None
    others = [arm for arm in runs["arm"].unique() if arm != MEMORISED]
    arms = [compare_arms(runs, arm=arm, n_classes=n_classes) for arm in others]
    return NoiseEvidence(
        runs=runs,
        summary=summarise_noise_table(runs, n_classes=n_classes),
        comparisons=comparisons,
        arms=pd.concat(arms, ignore_index=True) if arms else pd.DataFrame(),
        estimates=estimate_ratios(runs, mixture_rates(study), n_classes=n_classes),
        shares=prediction_shares(study),
        n_classes=n_classes,
    )


def _judge(
    found: NoiseEvidence, setting: tuple[NoiseKind, int | None], comparison: LawComparison | None
) -> list[str]:
    noise, width = setting
    several = len({w for _, w in found.comparisons}) > 1
    name = f"{noise.capitalize()} noise" + (f", width {width}" if several else "")
    mine = found.summary[found.summary["noise"] == noise]
    if width is not None:
        mine = mine[mine["width"] == width]
    sentences = []
    noisy = mine[(mine["arm"] == MEMORISED) & (mine["ratio"] >= 0.15)]
    if len(noisy):
        sentences.append(f"{name}: {_judge_theory(noisy, mine[mine['ratio'] >= 0.15])}")
    if comparison is None:
        sentences.append(f"{name}: fewer than four ratios, so no curve is compared with a line.")
    else:
        sentences.append(
            f"{name}, is it really a parabola? {_judge_bend(noise, found, comparison)}"
        )
    return sentences


def _judge_theory(noisy: pd.DataFrame, every_arm: pd.DataFrame) -> str:
    worst: Any = noisy.iloc[int(noisy["deviation"].abs().to_numpy().argmax())]
    holds = "holds" if abs(worst["deviation"]) <= TOLERANCE else "does not hold"
    text = (
        f"Chen et al.'s quadratic, which has no free parameter, {holds} within ± {TOLERANCE} at "
        f"ratios from {noisy['ratio'].min():g} to {noisy['ratio'].max():g}; the largest deviation "
        f"of the mean over seeds is {worst['deviation']:+.3f}"
        f"{_interval(worst['deviation_low'], worst['deviation_high'])}, at ratio "
        f"{worst['ratio']:g}"
    )
    failing = every_arm[every_arm["deviation"].abs() > TOLERANCE]
    needed = memorisation_needed(every_arm, tolerance=TOLERANCE)
    if len(failing) and np.isfinite(needed):
        text += (
            f"; of all {len(every_arm)} settings with their arms, every one from a training "
            f"accuracy of {needed:.3f} on is within, and {len(failing)} below it are not (highest "
            f"{failing['train_accuracy'].max():.3f})"
        )
    if (noisy["train_accuracy"] < FULLY).any():
        text += "; but not all of these runs have memorised their labels"
    return f"{text}."


def _judge_bend(noise: NoiseKind, found: NoiseEvidence, comparison: LawComparison) -> str:
    bend = comparison.curvature
    in_theory = float(law_accuracy(1.0, kind=noise, n_classes=found.n_classes)) + 1
    if not np.isfinite(bend.low):
        return f"{comparison.n_runs} runs are too few to tell a curve from a straight line."
    if bend.low > 0:
        answer = "Yes, it bends upwards"
    elif bend.high < 0:
        answer = "No, it bends downwards"
    else:
        answer = "It cannot be told from a straight line"
    by_left_out = comparison.table.sort_values("left_out_error").iloc[0]
    by_aicc = comparison.table.sort_values("aicc").iloc[0]
    return (
        f"{answer}: the second-order coefficient is {bend.value:.2f}"
        f"{_interval(bend.low, bend.high, '.2f')} over {bend.n} runs, where the theory has "
        f"{in_theory:.2f} and a line 0. At ratios left out of the fit the {by_left_out['law']} is "
        f"nearest (root mean square error {by_left_out['left_out_error']:.3f}"
        f"{_interval(by_left_out['left_out_low'], by_left_out['left_out_high'], '.3f')}); by AICc "
        f"the best of five is the {by_aicc['law']}, in {by_aicc['probability_best']:.0%} of "
        "resamples."
    )


def _judge_arms(found: NoiseEvidence) -> list[str]:
    sentences: list[str] = []
    if found.arms.empty:
        return sentences
    for arm, rows in found.arms[found.arms["ratio"] > 0].groupby("arm", sort=False):
        clear = rows[(rows["above_memorised_low"] > 0) & (rows["above_law"] > 0)]
        least, most = rows["above_memorised"].min(), rows["above_memorised"].max()
        sentences.append(
            f"{str(arm).capitalize()} runs lie {least:+.3f} to {most:+.3f} from memorised ones on "
            f"noisy labels; clearly above (paired 95 % interval above 0, and above the law) in "
            f"{len(clear)} of {len(rows)} settings."
        )
    return sentences


def _judge_estimates(found: NoiseEvidence) -> list[str]:
    sentences = []
    for estimator, rows in found.estimates.groupby("estimator", sort=False):
        usable = rows[rows["usable"]]
        if usable.empty:
            sentences.append(f"The {estimator} gives no noise ratio that it would stand by.")
            continue
        off = (usable["estimate"] - usable["ratio"]).abs()
        within = int((off <= RATIO_TOLERANCE).sum())
        worst: Any = usable.iloc[int(off.to_numpy().argmax())]
        sentences.append(
            f"Without a true label, the {estimator} finds the noise ratio within ± "
            f"{RATIO_TOLERANCE} in {within} of {len(usable)} settings where it may be used; "
            f"furthest off is {worst['estimate']:.3f}{_interval(worst['low'], worst['high'])} for "
            f"{worst['ratio']:g} ({worst['noise']})."
        )
    return sentences


def _interval(low: float, high: float, form: str = "+.3f") -> str:
    if not np.isfinite([low, high]).all():
        return " (no interval: one seed)"
    return f" (95 % interval {low:{form}} to {high:{form}})"


def _caveats(study: Study, found: NoiseEvidence) -> list[str]:
    caveats = []
    memorised = found.runs[found.runs["arm"] == MEMORISED]
    cells = found.runs.groupby(["arm", "noise", "ratio"])["seed"].nunique()
    if len(cells) and cells.min() < 3:
        caveats.append(
            f"ONLY {cells.min()} SEED(S) in {int((cells < 3).sum())} of {len(cells)} settings: "
            "intervals over seeds rest on very little. Add seeds."
        )
    weak = memorised[memorised["train_accuracy"] < FULLY]
    if len(weak):
        caveats.append(
            f"{len(weak)} run(s) ended below {FULLY:.1%} training accuracy: "
            f"{', '.join(weak['run'])}. The law is about networks that have memorised."
        )
    table = study.table()
    unfinished = table.loc[~table["ended_cleanly"].astype(bool), "run"].tolist()
    if unfinished:
        caveats.append(f"Left out, because they have not ended: {', '.join(unfinished)}.")
    included = int((found.runs["true_class"] == "included").sum())
    caveats.append(
        "Noise ratio is the share of wrong labels: the true class is excluded"
        + (f", also for the {included} rows whose runs drew from all classes." if included else ".")
    )
    if (found.runs["arm"] == EARLY_STOPPED).any():
        caveats.append(
            "The epoch of the early-stopped arm is chosen on one half of the held-out data, by "
            "accuracy on noisy labels, and measured on the other half, both ways round: it sees no "
            "true label, and no sample both chooses and measures."
        )
    caveats.append(
        "Accuracy here is against the noisy labels of held-out data, as in the paper; against the "
        "true labels it is higher (see the table). The law takes classes to be equally frequent "
        "and predictions to be the true class or where its labels go, nothing else. Each seed "
        "draws its own images, the same ones at every ratio, so errors at different ratios are "
        "not quite independent."
    )
    return caveats


def _options(study: Study) -> dict[str, object]:
    factors = study.factors
    config = study.runs[0].config
    ratios = ",".join(f"{ratio:g}" for ratio in factors.get("ratio", []))
    return {
        "noise": factors.get("noise"),
        "ratios": ratios,
        "arm": factors.get("arm"),
        "width": factors.get("width"),
        "true_class": config.get("true_class"),
        "n_images": config.get("n_images"),
    }
