"""Makes the golden runs of a schema version: `python tests/data/make_golden.py FOLDER`.

They are made once, when a schema version is new, and are then in the repository for ever: readers
of every later version must find in them what `tests/test_dynamics_traces_golden.py` says.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

from dynamics.traces import TraceWriter, begin_attempt, create_run
from dynamics.traces.compaction.compact import compact

N, WORLD = 5, 2


def make(folder):
    """Two ranks train epochs 0 and 1 and part of 2; one rank goes on from step 4, epoch 2."""
    run = folder / "recorded"
    create_run(run, {"run_id": "golden", "n_samples": N, "config": {"lr": 0.5}, "probes": []})
    first = begin_attempt(run, from_step=0, from_epoch=0, world_size=WORLD)
    for rank in range(WORLD):
        record(run, first, rank, range(3), first=rank == 0)
    second = begin_attempt(run, from_step=4, from_epoch=2, world_size=1)
    record(run, second, 0, range(2, 4))
    shutil.copytree(run, folder / "compacted")
    compact(folder / "compacted")


def record(run, attempt, rank, epochs, *, first=False):
    writer = TraceWriter(run, attempt=attempt, rank=rank, max_seconds=1e9)
    if first:
        labels = {
            "sample_id": np.arange(N),
            "label": [0, 1, 2, 0, 1],
            "true_label": [0, 1, 2, 0, 2],
        }
        writer.append("roster", labels | {"group": [0, 0, 0, 1, 1]})
    for epoch in epochs:
        for turn in range(2):
            step = 2 * epoch + turn
            ids = np.array([[0, 1], [3, 4]][turn] if rank == 0 else [[2], [0]][turn])
            if attempt == 1 and turn == 0:
                ids = np.array([0, 1, 2])
            writer.append("samples", samples(step, epoch, ids, attempt))
        if rank == 0:
            end = {"step": [2 * epoch + 2], "epoch": [epoch]}
            writer.append("events", end | {"name": ["epoch_end"], "detail": [f"attempt {attempt}"]})
            value = {"name": ["fisher_trace"], "block": ["total"], "value": [1.5 + epoch]}
            about = {"stderr": [0.25], "n": [100], "estimator": ["mc"], "mode": ["eval"]}
            writer.append("scalars", end | value | about | {"label_source": ["model"]})
            diagonal = {"0.weight": np.full((2, 2), 1.0 + epoch), "0.bias": np.array([0.5, np.nan])}
            if epoch == 2:
                at = {"step": 2 * epoch + 2, "epoch": epoch}
                writer.append_vector("fisher_diagonal", diagonal, **at)
    writer.close()


def samples(step, epoch, ids, attempt):
    """Loss 10 · epoch + id + attempt / 4, not finite at (1, 3); a block only in attempt 1."""
    loss = 10.0 * epoch + ids + attempt / 4
    rows = {"step": np.full(len(ids), step), "epoch": np.full(len(ids), epoch), "sample_id": ids}
    rows |= {"loss": np.where((epoch == 1) & (ids == 3), np.inf, loss), "weight": np.ones(len(ids))}
    rows |= {"margin": ids - 2.0, "p_true": ids / 8, "el2n": 1 - ids / 8, "predicted": ids % 3}
    rows |= {"correct": np.int8(ids != 4), "grad_norm": ids / 2, "output_grad_norm": 1 - ids / 8}
    return rows | ({"grad_norm/0": ids / 4} if attempt == 1 else {})


if __name__ == "__main__":
    make(Path(sys.argv[1]))
