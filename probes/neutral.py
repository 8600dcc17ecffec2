"""Lets a probe run the model without leaving a trace in it, or in the training's randomness."""

import contextlib
import random
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from probes.compiled import uncompiled


@contextlib.contextmanager
def preserved_randomness(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """Restore the random states of torch, NumPy and Python afterwards.

    Args:
        devices: CUDA devices whose generators are restored beside the CPU's.

    Yields:
        Nothing.
    """
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 (the global state is what must be restored)
    try:
        with torch.random.fork_rng([device.index or 0 for device in devices]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


@contextlib.contextmanager
def neutral(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode for a pass, and restore everything that the pass may touch.

    Restored, also after an error: each module's train/eval flag, all buffers, and the random states
    of torch (CPU and the model's CUDA devices), NumPy and Python. Autocast and inference mode are
    off inside, and a compiled model runs as it was written, so that nothing is compiled again.
    `.grad` is not touched as long as the pass uses `torch.autograd.grad`.

    Args:
        model: The network.

    Yields:
        Nothing.
    """
    flags = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    device_type = "cuda" if devices else "cpu"
    try:
        with (
            preserved_randomness(devices),
            torch.autocast(device_type, enabled=False),
            torch.inference_mode(False),
            uncompiled(),
        ):
            model.eval()
            yield
    finally:
        for module, training in flags.items():
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers.items():
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
