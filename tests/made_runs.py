"""Runs made by chance, and what must be read from them, worked out row by row.

Samples with ids of any kind are seen over several epochs and ranks, some twice, some values are
missing, and training restarts once from an earlier step, with another number of ranks.
"""

from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from dynamics import open_run
from dynamics.traces import (
    TraceWriter,
    begin_attempt,
    create_run,
    row_groups,
    rows,
    scan,
)
from dynamics.traces.compaction import buckets
from dynamics.traces.compaction.compact import compact

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # fsync costs nothing there
VALUES = ("loss", "margin", "p_true", "el2n", "grad_norm", "correct")
IDS = {
    "dense": np.arange(9),
    "from a million": 10**6 + np.arange(9),
    "sparse": np.array([3, 17, 10**6, 10**9, 10**12, 5, 2, 8, 2**40]),
    "63-bit": np.array([2**62 + 5, 2**63 - 1, 2**61, 0, 1, 2**62, 2**62 + 1, 2**33, 7]),
    "negative": np.array([-5, -1, 0, 4, -(2**62), -(2**63), 2**63 - 1, 3, -2]),
}


@dataclass
class Made:
    """A run, and the rows that count in it: first and later presentations, in order of time."""

    path: Path
    rows: pd.DataFrame

    @property
    def run(self):
        return open_run(self.path)

    @property
    def first(self):
        return self.rows[self.rows["occurrence"] == 0]


def small_reads(per_group=4, per_read=8, in_memory=16):
    """Row groups, reads and epoch ranges so small that a run of a hundred rows has many."""
    return _Patches(
        mock.patch.object(rows, "_ROWS_PER_GROUP", per_group),
        mock.patch.object(row_groups, "ROWS_PER_READ", per_read),
        mock.patch.object(scan, "ROWS_IN_MEMORY", in_memory),
    )


class _Patches:
    def __init__(self, *patches):
        self.patches = patches

    def __enter__(self):
        for patch in self.patches:
            patch.start()

    def __exit__(self, *error):
        for patch in self.patches:
            patch.stop()


def make_run(path, seed, *, ids="dense", world_sizes=(1, 1), max_rows=7, epochs=4):
    """A run of two attempts, the second from somewhere within the first."""
    rng = np.random.default_rng(seed)
    create_run(path, {})
    recorded, start = [], (0, 0)
    for attempt, world_size in enumerate(world_sizes):
        recorded = [row for row in recorded if row["step"] < start[0]]
        recorded += _attempt(path, rng, attempt, world_size, start, IDS[ids], max_rows, epochs)
        steps = sorted({(row["step"], row["epoch"]) for row in recorded})
        start = steps[rng.integers(len(steps))]
    table = pd.DataFrame(recorded)
    table = table.sort_values(["epoch", "sample_id", "step", "rank"], kind="stable")
    table["occurrence"] = table.groupby(["epoch", "sample_id"]).cumcount()
    return Made(path, table.sort_values(["step", "rank"], kind="stable"))


def _attempt(path, rng, attempt, world_size, start, ids, max_rows, epochs):
    first_step, first_epoch = start
    number = begin_attempt(
        path, from_step=first_step, from_epoch=first_epoch, world_size=world_size
    )
    writers = [
        TraceWriter(path, attempt=number, rank=rank, max_rows=max_rows, max_seconds=1e9)
        for rank in range(world_size)
    ]
    if attempt:
        seen = open_run(path).samples(columns=[], epochs=[first_epoch], repeats=True)
        for writer in writers:
            writer.seen(first_epoch, seen["sample_id"].to_numpy())
    step, recorded = first_step, []
    for epoch in range(first_epoch, epochs):
        chosen = rng.permutation(ids)[: rng.integers(1, len(ids) + 1)]
        order = np.concatenate([chosen, rng.choice(chosen, rng.integers(0, 4))])
        batch = 2 * world_size
        for at in range(0, len(order), batch):
            for rank, writer in enumerate(writers):
                mine = order[at : at + batch][rank::world_size]
                values = {name: rng.integers(0, 9, len(mine)) / 4 for name in VALUES}
                values["correct"] = rng.integers(0, 2, len(mine)).astype(float)
                for name, value in values.items():
                    value[rng.random(len(mine)) < (1.0 if name == "el2n" and epoch else 0.3)] = None
                if len(mine):
                    keys = {"step": np.full(len(mine), step), "epoch": np.full(len(mine), epoch)}
                    columns = keys | {"sample_id": mine, **values}
                    writer.append("samples", columns)
                    recorded += pd.DataFrame(columns | {"rank": rank}).to_dict("records")
            step += 1
    for writer in writers:
        writer.close()
    return recorded


def compacted(made):
    """The same run after compaction to buckets of some eight rows, each in every epoch."""
    with mock.patch.object(buckets, "BUCKET_ROWS", 8):
        compact(made.path)
    assert len(made.run.parts("samples")) > 1 or len(made.rows) < 30
    return made


def naive_summary(first):
    """One row per sample of the first presentations, by pandas, sample by sample."""
    records = {}
    for sample, of_sample in first.sort_values("epoch").groupby("sample_id"):
        loss, p_true = of_sample["loss"].dropna(), of_sample["p_true"].dropna()
        right = of_sample.dropna(subset="correct")
        records[sample] = {
            "n_observed": len(of_sample),
            "mean_loss": loss.mean(),
            "var_loss": loss.var(ddof=0),
            "first_loss": loss.iloc[0] if len(loss) else np.nan,
            "last_loss": loss.iloc[-1] if len(loss) else np.nan,
            "first_learned": right.loc[right["correct"] == 1, "epoch"].min(),
            "n_forgotten": int((right["correct"].diff() == -1).sum()),
            "n_correct": int(right["correct"].sum()),
            "aum": of_sample["margin"].mean(),
            "mean_p_true": p_true.mean(),
            "std_p_true": p_true.std(ddof=0),
            "mean_el2n": of_sample["el2n"].mean(),
            "mean_grad_norm": of_sample["grad_norm"].mean(),
        }
    return pd.DataFrame.from_dict(records, orient="index").sort_index()
