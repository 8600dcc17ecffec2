"""Random runs: several attempts and ranks, fences, repeats, block columns, missing values."""

import numpy as np

from dynamics import open_run
from dynamics.traces import TraceWriter, begin_attempt, create_run

ID_KINDS = {
    "dense": lambda rng, n: np.arange(n),
    "sparse": lambda rng, n: np.sort(rng.choice(10**6, n, replace=False)) - 10**5,
    "hashes": lambda rng, n: rng.integers(0, 2**62, n),
}


def random_run(path, seed, *, ids="dense", n_attempts=3, ranks=(1, 2), n_samples=(1, 40)):
    """A run whose attempts each restart somewhere before the end of the one before."""
    rng = np.random.default_rng(seed)
    sample_ids = np.unique(ID_KINDS[ids](rng, int(rng.integers(*n_samples))))
    create_run(path, {"run_id": f"{seed:032d}", "n_samples": len(sample_ids), "config": {}})
    done = 0
    for attempt in range(int(rng.integers(1, n_attempts + 1))):
        done = continue_run(path, rng, sample_ids, done, first=attempt == 0, ranks=ranks)
    return open_run(path)


def continue_run(path, rng, sample_ids, done, *, first=False, ranks=(1,), steps_per_epoch=4):
    """One more attempt from a random step at or before `done`; returns the step it ends at."""
    start = 0 if first else int(rng.integers(0, done + 1))
    world = int(rng.choice(ranks))
    attempt = begin_attempt(
        path, from_step=start, from_epoch=start // steps_per_epoch, world_size=world
    )
    writers = [TraceWriter(path, attempt=attempt, rank=r, max_seconds=1e9) for r in range(world)]
    seen = open_run(path).samples(columns=[], repeats=True, epochs=[start // steps_per_epoch])
    for writer in writers:
        writer.seen(start // steps_per_epoch, seen["sample_id"].to_numpy())
    if first:
        writers[0].append("roster", {"sample_id": sample_ids, "label": sample_ids % 3})
    end = start + int(rng.integers(1, 13))
    for step in range(start, end):
        epoch, turn = divmod(step, steps_per_epoch)
        order = np.random.default_rng(epoch).permutation(sample_ids)
        batch = order[turn::steps_per_epoch]
        if rng.random() < 0.2:
            batch = np.concatenate([batch, order[:1]])  # seen again within the epoch
        for rank, writer in enumerate(writers):
            ids = batch[rank::world]
            if len(ids):
                writer.append("samples", sample_rows(rng, step, epoch, ids, attempt))
            if rng.random() < 0.3:
                writer.flush()
        if turn == steps_per_epoch - 1:
            row = {"step": [step + 1], "epoch": [epoch], "name": ["epoch_end"]}
            writers[0].append("events", row)
            value = {"name": ["accuracy"], "block": ["test"], "value": [float(rng.random())]}
            writers[0].append("scalars", row | value)
    for writer in writers:
        writer.close()
    return end


def sample_rows(rng, step, epoch, ids, attempt):
    n = len(ids)
    loss = np.where(rng.random(n) < 0.05, np.nan, rng.random(n))
    rows = {"step": np.full(n, step), "epoch": np.full(n, epoch), "sample_id": ids, "loss": loss}
    if attempt != 1:
        rows["predicted"] = rng.integers(0, 5, n)
        rows[f"grad_norm/{attempt}"] = rng.random(n)
    return rows
