"""The report of a weight-ratio study: do importance weights still matter at the end of training?"""

import pandas as pd

from dynamics.dissipation import (
    EARLY,
    LATE,
    LIMIT,
    PATIENCE,
    Dissipation,
    effect_sizes,
    first_equivalent,
    mean_curves,
    measure_dissipation,
    stop_early,
)
from dynamics.traces import Study, TraceError
from dynamics.weight_ratio import (
    held_out_losses,
    plane_angles,
    predicted_fractions,
    weighting_by_run,
)
from reports.page import Page, Section
from reports.provenance import describe_provenance, describe_rerun
from reports.weight_figures import name_ratio
from reports.weight_panels import (
    IN_CLASS,
    WeightEvidence,
    angle_table,
    arm_table,
    effect_panel,
    equivalence_table,
    fraction_panel,
    gradient_panel,
    plane_panel,
    reach_panel,
    show,
)

WORN_OFF, STAYS = 0.25, 0.5
"""Spread over ratios at the end, over the early one, up to and from which papers.md counts each."""
FITTED = 0.998
"""Training accuracy from which a network counts as having fitted its training data."""

_ORDER = ["none", "dropout", "batch norm", "L2 0.001", "L2 0.01", "subsampling"]


def build_weight_report(study: Study) -> Page:
    """Analyse a study and lay out its report.

    Args:
        study: A study named weight-ratio.

    Returns:
        The page.

    Raises:
        TraceError: If no run on images has ended.
    """
    found = _analyse(study)
    run = next(run for run in study.runs if run.config.get("problem") == "images")
    pair = ",".join(map(str, run.config["pair"]))
    sections = [Section("Whom the weights still reach", [reach_panel(found)])]
    tables = [arm_table(found), equivalence_table(found)]
    if not found.angles.empty:
        sections.append(Section("Where the limit is known", [plane_panel(found)]))
        tables.append(angle_table(found))
    options = {name: run.config[name] for name in ("n_images", "epochs", "width")}
    ratios = ",".join(name_ratio(r) for r in sorted(found.fractions["log2_ratio"].unique()))
    return Page(
        title="Do importance weights still matter?",
        subtitle=f"Study {study.name} · {found.fractions['run'].nunique()} runs on classes {pair} "
        f"of {run.config['data']} · {study.path}",
        verdict=_judge(found),
        caveats=_caveats(study, found),
        key_figures=[effect_panel(found), fraction_panel(found), gradient_panel(found)],
        sections=sections,
        tables=tables,
        rerun=describe_rerun(study, pair=pair, arm=found.arms, ratios=ratios, **options),
        provenance=describe_provenance(run) | {"Run": f"{run.name}, of {len(study.runs)}"},
    )


def _analyse(study: Study) -> WeightEvidence:
    fractions = predicted_fractions(study)
    if fractions.empty:
        raise TraceError(f"No run on images of {study.path} has come to its end yet.")
    fractions = _in_order(fractions)
    effects = effect_sizes(fractions)
    losses = held_out_losses(study)
    weighting = weighting_by_run(study)
    return WeightEvidence(
        fractions=fractions,
        effects=effects,
        courses=_courses(effects),
        stops=stop_early(fractions, losses),
        equivalent=first_equivalent(fractions),
        losses=losses,
        weighting=weighting if weighting.empty else _in_order(weighting),
        angles=plane_angles(study),
    )


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The arms in the order of the page."""
    place = table["arm"].map(lambda arm: _ORDER.index(arm) if arm in _ORDER else len(_ORDER))
    return table.loc[place.sort_values(kind="stable").index]


def _courses(effects: pd.DataFrame) -> dict[tuple[str, str], Dissipation]:
    """By arm and set, of the seeds that have been run at all of the arm's ratios."""
    courses = {}
    for (arm, name), rows in effects.groupby(["arm", "set"], sort=False):
        whole = rows[rows["n_ratios"] == rows["n_ratios"].max()]
        if whole["epoch"].nunique() > EARLY + LATE:
            courses[str(arm), str(name)] = measure_dissipation(whole)
    return courses


def _judge(found: WeightEvidence) -> list[str]:
    sentences = []
    for arm in found.arms:
        course = found.courses.get((arm, IN_CLASS))
        if course is not None:
            sentences.append(_judge_arm(arm, course, found))
    if not sentences:
        return ["No arm has two weight ratios yet, over enough epochs to tell an effect's course."]
    stopped = mean_curves(effect_sizes(found.stops), ["arm", "set", "epoch"], "slope")
    stopped = stopped[stopped["set"] == IN_CLASS]
    if len(stopped):
        within = found.stops["log2_ratio"].abs() <= LIMIT
        row, stops = stopped.iloc[0], found.stops.loc[within, "stopped_at"] + 1
        sentences.append(
            f"Early stopping keeps an effect of {row['value']:.2f} ({row['low']:.2f} to "
            f"{row['high']:.2f}) per doubling: the runs without regularisation would have stopped "
            f"at their lowest weighted held-out loss, after {stops.min()} to {stops.max()} epochs."
        )
    return sentences


def _judge_arm(arm: str, course: Dissipation, found: WeightEvidence) -> str:
    left = course.spread_left
    what = {
        "none": "Without regularisation the effect",
        "subsampling": "With subsampling in the place of weights the effect",
    }.get(arm, f"With {arm} the effect")
    if left.n < 2:
        verb = "was measured with one seed only, which settles nothing"
    elif left.high <= WORN_OFF:
        verb = "wears off"
    elif left.low >= STAYS:
        verb = "stays"
    elif course.late.low > 0:
        verb = "shrinks, and is still there at the end"
    else:
        verb = "cannot be told from none at the end, nor told to have worn off"
    text = (
        f"{what} {verb}: over ratios 1:16 to 16:1 the spread of predictions on in-class test "
        f"images ends at {show(left)} of its early size (seeds: {left.n}; 95 % intervals), the "
        f"effect at {show(course.late)} log-odds per doubling after {show(course.early)} early on"
    )
    if left.high <= WORN_OFF:
        text += f", with a half-life of {show(course.half_life, '.1f')} epochs"
    rows = found.equivalent
    if not rows.empty:
        rows = rows[(rows["arm"] == arm) & (rows["set"] == IN_CLASS)]
        known = rows.dropna(subset=["first_epoch"])
        for ratio, first in zip(known["log2_ratio"], known["first_epoch"], strict=True):
            text += f"; {name_ratio(ratio)} predicts like 1:1 from epoch {first + 1:.0f} on"
    return text + "."


def _caveats(study: Study, found: WeightEvidence) -> list[str]:
    caveats = []
    seeds = found.fractions.groupby(["arm", "log2_ratio"], sort=False)["seed"].nunique()
    few = seeds[seeds < 3].reset_index()
    if len(few):
        caveats.append(
            "Fewer than 3 seeds, so that intervals mean little: "
            + ", ".join(
                f"{arm} at {name_ratio(ratio)} ({n})"
                for arm, ratio, n in few.itertuples(index=False)
            )
            + ". Add seeds."
        )
    ends = found.losses.sort_values("epoch").groupby(["arm", "run"])["train_accuracy"].last()
    weak = (ends < FITTED).groupby("arm", sort=False).agg(["sum", "size"])
    weak = weak[weak["sum"] > 0]
    if len(weak):
        caveats.append(
            f"Runs that have not fitted their training data (training accuracy below {FITTED:.1%}) "
            "are outside of the theory: "
            + ", ".join(f"{n} of {total} with {arm}" for arm, n, total in weak.itertuples())
            + "."
        )
    unfinished = study.table()
    unfinished = unfinished[~unfinished["ended_cleanly"].astype(bool)]
    if len(unfinished):
        caveats.append(f"Left out, because they have not ended: {', '.join(unfinished['run'])}.")
    return [*caveats, *_STANDING]


_STANDING = [
    "The rate is fixed throughout. A rate that decays would freeze an early effect, and it would "
    "look as if the weights lasted.",
    "Weights are scaled to 1 on average over equal classes, so that the size of a step does not "
    "grow with the ratio; the lighter class learns more slowly the more extreme it is.",
    "A subsampled run has fewer images, so fewer steps an epoch, and has seen less of one class: "
    "its lasting effect is of the data that are missing as well as of the ratio.",
    "Fractions of 0 and 1 have no logit; half an input is added to each side, which caps the early "
    "effect and so understates how far it falls.",
    f"Early stopping looks at the weighted loss on held-out images, with a patience of {PATIENCE} "
    "epochs; a rule on unweighted accuracy would stop later.",
]
