"""What `run.json` says about the network, the probes and the versions that recorded a run."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pandas as pd
from torch import nn

from dynamics.traces.resume import describe_versions
from probes.probe import Probe

_PACKAGES = ("training-dynamics", "torch", "backpack-for-pytorch", "numpy", "pyarrow")


def describe_run(
    model: nn.Module, probes: Sequence[Probe], roster: pd.DataFrame | None
) -> dict[str, Any]:
    """Describe what is about to be recorded.

    Args:
        model: The network.
        probes: The probes, attached to it.
        roster: The training samples, if known.

    Returns:
        JSON-able values by name. `labels_sha256` is the hash of the labels as trained, as int64.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    labels = None if roster is None else roster["label"].to_numpy().astype("int64").tobytes()
    return {
        "model": {
            "class": type(model).__name__,
            "n_parameters": sum(p.numel() for p in model.parameters()),
            "n_trainable": sum(p.numel() for p in trainable),
            "device": str(trainable[0].device) if trainable else "cpu",
        },
        "n_samples": None if roster is None else len(roster),
        "labels_sha256": None if labels is None else hashlib.sha256(labels).hexdigest(),
        "probes": [probe.describe() for probe in probes],
        "versions": describe_versions(_PACKAGES),
    }
