"""Tables of a report that name samples: the most suspect ones, or the hardest."""

import pandas as pd

from dynamics.datasets import Dataset
from reports.page import Cell, PageTable, picture

N_SUSPECTS = 24

_COLUMNS = {
    "key": ("key", "{}"),
    "label": ("label", "{:.0f}"),
    "predicted": ("predicted", "{:.0f}"),
    "posterior": ("P(wrong)", "{:.3f}"),
    "aum": ("AUM", "{:.2f}"),
    "mean_loss": ("mean loss", "{:.2f}"),
    "mean_p_true": ("mean p(label)", "{:.3f}"),
    "n_correct": ("times right", "{:.0f}"),
    "n_forgotten": ("forgotten", "{:.0f}"),
    "true_label": ("true label", "{:.0f}"),
}
_SUSPECT = [name for name in _COLUMNS if name != "n_correct"]
_HARDEST = [name for name in _COLUMNS if name not in ("predicted", "posterior")]
_RANKED_BY = {
    "aum": "AUM, the mean margin, from the lowest",
    "confidence": "the mean probability of their label, from the lowest",
    "forgetting": "how often they were forgotten, samples never learned first",
}


def suspect_table(suspects: pd.DataFrame, epoch: int, dataset: Dataset | None) -> PageTable:
    """The samples whose labels are most likely wrong.

    Args:
        suspects: What `rank_suspects` returned.
        epoch: The epoch up to which they were ranked.
        dataset: The training images, for pictures; ids alone without it.

    Returns:
        The table.
    """
    note = (
        "Ranked by the mixture's probability that the label is wrong, then by AUM, up to epoch "
        f"{epoch}. “predicted” is the network's class in that epoch."
    )
    return _table("The most suspect samples", note, suspects, _SUSPECT, dataset)


def hardest_table(summary: pd.DataFrame, hardest: pd.Series, dataset: Dataset | None) -> PageTable:
    """The samples that were hardest to learn, where there are no losses to suspect any by.

    Args:
        summary: What `summarise_samples` returned.
        hardest: What `rank_hardest` returned.
        dataset: The training images, for pictures; ids alone without it.

    Returns:
        The table.
    """
    note = f"Ranked by {_RANKED_BY[str(hardest.name)]}, over the whole run."
    return _table("The hardest samples", note, summary.loc[hardest.index], _HARDEST, dataset)


def _table(
    title: str, note: str, samples: pd.DataFrame, names: list[str], dataset: Dataset | None
) -> PageTable:
    shown = [name for name in names if name in samples and samples[name].notna().any()]
    rows = []
    for sample_id, row in samples.head(N_SUSPECTS).iterrows():
        cells = [Cell(str(sample_id))]
        if dataset is not None:
            image = dataset.x_train[int(str(sample_id))]
            cells.append(Cell(f"sample {sample_id}", picture(image, dataset.peak)))
        for name in shown:
            cells.append(Cell(_COLUMNS[name][1].format(row[name]) if pd.notna(row[name]) else "–"))
        rows.append(cells)
    if dataset is None:
        note += " For pictures, name the data set: dynamics report RUN --data PATH."
    header = ["sample id", *(["picture"] if dataset is not None else [])]
    return PageTable(title, note, header + [_COLUMNS[name][0] for name in shown], rows)
