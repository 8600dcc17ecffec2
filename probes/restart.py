"""Where a resumed training goes on: what only the caller can say, and what must fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def ask_for_start(epoch: int, step: int, n: int) -> str:
    """What to answer a loop that goes on from a checkpoint and does not say with which epoch.

    Args:
        epoch: Epoch of the checkpoint.
        step: Its step.
        n: Epochs in all.

    Returns:
        The two possible calls.
    """
    return (
        f"The checkpoint is of epoch {epoch}, step {step}. Say where training goes on: "
        f"epochs({n}, start={epoch + 1}) if epoch {epoch} was finished when it was saved, "
        f"start={epoch} if not."
    )


def check_state(state: Mapping[str, Any], run_id: str, path: Path) -> None:
    """Refuse the state of another run.

    Args:
        state: What `Recorder.state_dict` returned.
        run_id: Identity of the run in the folder.
        path: The folder.

    Raises:
        ValueError: If the state is of another run.
    """
    if state.get("run_id") != run_id:
        raise ValueError(
            f"The checkpoint is of run {state.get('run_id')}, but {path} holds run {run_id}. "
            "Resume in the folder that the checkpoint was saved from."
        )
