"""Training that is killed and goes on: `resume_after_kill.py OUT`.

A child process trains and checkpoints after each epoch; in the third it is killed with SIGKILL, the
second child takes the run up again. In the end each (epoch, sample) is there once.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from dynamics import open_run
from probes import Recorder, SampleLoss

EPOCHS, SIZE = 4, 64


def train(out: Path, killed_in_epoch: int | None) -> None:
    """Train; from the checkpoint, if there is one."""
    images, y = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16).float(), torch.tensor(y).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint = out.with_suffix(".pt")
    state = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    with Recorder(out, model, [SampleLoss()], resume=state is not None) as recorder:
        start = 0
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            recorder.load_state_dict(state["recorder"])
            start = state["recorder"]["epoch"] + 1
        for epoch in recorder.epochs(EPOCHS, start=start):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
            for i, rows in enumerate(order.split(SIZE)):
                losses = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
                recorder.observe(losses, rows)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                if epoch == killed_in_epoch and i == 10:
                    recorder.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            parts["recorder"] = recorder.state_dict()
            torch.save(parts, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)


def main(out: Path) -> Path:
    """Train in a child that is killed, then in one that goes on."""
    for killed_in_epoch in ("2", ""):
        command = [sys.executable, __file__, str(out), "--train", killed_in_epoch]
        code = subprocess.run(command, check=False).returncode  # noqa: S603 (this very file)
        print("The child was killed." if code == -signal.SIGKILL else f"It ended with {code}.")
    rows = open_run(out).samples()
    counts = rows.groupby("epoch")["sample_id"].agg(["size", "nunique"])
    print(counts.to_string())
    return out


if __name__ == "__main__":
    if "--train" in sys.argv:
        train(Path(sys.argv[1]), int(sys.argv[3]) if sys.argv[3] else None)
    else:
        main(Path(sys.argv[1]))
