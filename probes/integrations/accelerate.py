"""Accelerate: a recorder that goes with what `Accelerator.prepare` has made of the loop.

model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
with prepare_recorder(accelerator, "runs/a", model, [SampleLoss(), GradNorm()]) as recorder:
    for epoch in recorder.epochs(90):
        for x, y, sample_id in loader:
            losses = F.cross_entropy(model(x), y, reduction="none")
            recorder.observe(losses, sample_id)
            accelerator.backward(losses.mean())
            optimizer.step(); optimizer.zero_grad()
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from probes.probe import Probe
from probes.recorder import Recorder


def prepare_recorder(
    accelerator: Accelerator,
    out: str | Path,
    model: nn.Module,
    probes: Sequence[Probe],
    **options: Any,
) -> Recorder:
    """A recorder of a prepared model, whose state goes into `accelerator.save_state`.

    With `even_batches`, Accelerate's default, several processes get equally many batches by
    repeating samples from the beginning of the set. Each presentation is recorded, and readers
    count a sample once an epoch: its repeats have `occurrence` above 0 and the status bit REPEAT.
    A set smaller than one round of batches is repeated within a batch too, which is allowed here.

    To go on, give `resume=True`, enter the recorder, and call `accelerator.load_state` before the
    first batch.

    Args:
        accelerator: The accelerator that has prepared the model.
        out: Folder of the run.
        model: The model as `prepare` returned it.
        probes: What to record.
        options: Options of `Recorder`.

    Returns:
        The recorder, not entered yet.
    """
    pads = accelerator.even_batches and accelerator.num_processes > 1
    options.setdefault("repeats", pads)
    recorder = Recorder(out, accelerator.unwrap_model(model), probes, **options)
    accelerator.register_for_checkpointing(recorder)
    return recorder
