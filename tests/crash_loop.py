"""Kills recording processes at random moments, resumes them, and counts what was lost.

As a program: `python tests/crash_loop.py [kills] [seed]` prints one line per run and a total.

A process *acknowledges* step s when a flush has returned after the rows of all steps before s were
appended, by writing s to a pipe; a checkpoint is a file that is written aside and renamed. After
each kill every acknowledged row must be there once; after a resume from the checkpoint, and at the
end, every row of every step.
"""

import gc
import json
import os
import random
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from processes import CONTEXT

from dynamics import open_run
from dynamics.traces import TraceWriter, begin_attempt, create_run

N, SIZE, EPOCHS = 33, 4, 12  # the last batch of an epoch is short
PER_EPOCH = -(-N // SIZE)
STEPS = PER_EPOCH * EPOCHS
STARTED = struct.pack("q", 0)


def batch(step):
    """Epoch and samples of a step; sample 0 is padding at the end of each epoch."""
    epoch, turn = divmod(step, PER_EPOCH)
    order = np.random.default_rng(epoch).permutation(N)
    ids = order[turn * SIZE : (turn + 1) * SIZE]
    return epoch, ids if turn < PER_EPOCH - 1 else np.append(ids, order[0])


def uninterrupted(end=STEPS):
    """How often each (step, epoch, sample) is to be found."""
    found = Counter()
    for step in range(end):
        epoch, ids = batch(step)
        found.update((step, epoch, int(i)) for i in ids)
    return found


def save(path, checkpoint):
    """Write a checkpoint, whole or not at all."""
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(checkpoint), encoding="utf-8")
    aside.replace(path)


def train_writer(folder, checkpoint, pipe, seed):
    """Record with the writer alone; flush and save a checkpoint now and then."""
    rng = random.Random(seed)
    start = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    if not (folder / "run.json").exists():
        create_run(folder, {})
    os.write(pipe.fileno(), STARTED)
    epoch = start // PER_EPOCH
    attempt = begin_attempt(folder, from_step=start, from_epoch=epoch)
    seen = open_run(folder).samples(columns=[], epochs=[epoch], repeats=True)
    writer = TraceWriter(folder, attempt=attempt, max_rows=rng.choice([5, 20, 1000]))
    writer.seen(epoch, seen["sample_id"].to_numpy())
    for step in range(start, STEPS):
        epoch, ids = batch(step)
        keys = {"step": np.full(len(ids), step), "epoch": np.full(len(ids), epoch)}
        writer.append("samples", keys | {"sample_id": ids, "loss": np.full(len(ids), step)})
        if rng.random() < 0.3:
            writer.flush()
            os.write(pipe.fileno(), struct.pack("q", step + 1))
            if rng.random() < 0.5:
                save(checkpoint, {"step": step + 1})
    writer.close()
    os.write(pipe.fileno(), struct.pack("q", STEPS))


def train_recorder(folder, checkpoint, pipe, seed):
    """The same through a recorder, with a model, an optimiser and a checkpoint of both."""
    import torch

    from probes import GradNorm, Recorder, SampleLoss

    rng = random.Random(seed)
    torch.manual_seed(0)
    x, y = torch.randn(N, 5), torch.arange(N) % 3
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    if pipe is not None:
        os.write(pipe.fileno(), STARTED)
    recording = {"resume": (folder / "run.json").exists(), "on_error": "raise"}
    with Recorder(folder, model, [SampleLoss(), GradNorm()], **recording) as recorder:
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            recorder.load_state_dict(state["recorder"])
        first = recorder.step
        for epoch in recorder.epochs(EPOCHS, start=first // PER_EPOCH):
            for step in range(max(first, epoch * PER_EPOCH), (epoch + 1) * PER_EPOCH):
                ids = torch.from_numpy(batch(step)[1])
                losses = torch.nn.functional.cross_entropy(model(x[ids]), y[ids], reduction="none")
                recorder.observe(losses, ids)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                if pipe is not None and rng.random() < 0.3:
                    state = {"recorder": recorder.state_dict()}
                    os.write(pipe.fileno(), struct.pack("q", step + 1))
                    state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save(state, checkpoint.with_suffix(".aside"))
                    checkpoint.with_suffix(".aside").replace(checkpoint)
    if pipe is not None:
        os.write(pipe.fileno(), struct.pack("q", STEPS))


def unhindered(target, *arguments):
    """Keep the server's imports out of the collector: a full pass takes longer than most lives."""
    gc.freeze()
    target(*arguments)


def run_until_killed(target, arguments, seconds):
    """Start a process, and kill it so long after its start unless it ends first.

    Returns what it acknowledged last, and whether it ended.
    """
    reading, writing = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(
        target=unhindered, args=(target, *arguments[:2], writing, arguments[2])
    )
    process.start()
    writing.close()
    reading.poll(60)
    process.join(seconds)
    process.kill()
    process.join()
    acknowledged, data = None, b""
    while chunk := os.read(reading.fileno(), 65536):
        data += chunk
    for (step,) in struct.iter_unpack("q", data[: len(data) // 8 * 8]):
        acknowledged = step
    reading.close()
    return acknowledged, process.exitcode == 0


def check(folder, acknowledged):
    """Raise unless every acknowledged row is there and no row twice."""
    if not (folder / "run.json").exists():
        assert not acknowledged, "acknowledged rows without a run"
        return 0
    rows = open_run(folder).samples(repeats=True, columns=["step", "occurrence", "status"])
    found = Counter(rows[["step", "epoch", "sample_id"]].itertuples(index=False, name=None))
    missing = uninterrupted(acknowledged or 0) - found
    assert not missing, f"lost {sum(missing.values())} acknowledged rows: {[*missing][:3]}"
    surplus = found - uninterrupted()
    assert not surplus, f"{sum(surplus.values())} rows too many: {[*surplus][:3]}"
    assert not rows.duplicated(["epoch", "sample_id", "occurrence"]).any()
    return len(rows)


def crash_run(parent, target, *, seed, kills, seconds):
    """One run: kill it so many times, then let it end; the times that it was really killed."""
    rng = random.Random(seed)
    folder, checkpoint = parent / f"run-{seed}", parent / f"checkpoint-{seed}"
    n_killed, n_temporary = 0, 0
    while n_killed < kills:
        arguments = (folder, checkpoint, rng.randrange(2**32))
        acknowledged, ended = run_until_killed(target, arguments, rng.uniform(*seconds))
        check(folder, acknowledged)
        if ended:
            return n_killed, n_temporary
        n_killed += 1
        n_temporary += len(list(folder.rglob(".tmp-*")))
    arguments = (folder, checkpoint, rng.randrange(2**32))
    acknowledged, ended = run_until_killed(target, arguments, 60)
    assert ended, "the last process should have come to its end"
    n_rows = check(folder, STEPS)
    assert acknowledged == STEPS
    assert n_rows == sum(uninterrupted().values())
    run = open_run(folder)
    assert run.ended_cleanly
    repeats = run.samples(repeats=True)["occurrence"].sum()
    assert repeats == EPOCHS
    return n_killed, n_temporary


def crash_loop(parent, target, *, kills, seed=0, per_run=20, seconds=(0.0, 0.15)):
    """Runs until so many processes have been killed; kills and leftover temporary files seen."""
    total, temporaries, number = 0, 0, seed
    while total < kills:
        wanted = min(per_run, kills - total)
        killed, left = crash_run(parent, target, seed=number, kills=wanted, seconds=seconds)
        total, temporaries, number = total + killed, temporaries + left, number + 1
    return total, number - seed, temporaries


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as name:
        found = crash_loop(Path(name), train_writer, kills=wanted, seed=first)
    sys.stdout.write(
        "{} kills over {} runs, {} temporary files left behind: nothing lost\n".format(*found)
    )
