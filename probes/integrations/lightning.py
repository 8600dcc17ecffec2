"""Lightning: a callback that records, and the one line for `training_step`.

    recorder = Recorder("runs/a", model, [SampleLoss(), GradNorm()])
    trainer = Trainer(max_epochs=90, callbacks=[RecorderCallback(recorder)])

    def training_step(self, batch, batch_idx):                  # in the LightningModule
        x, y, sample_id = batch
        logits = self.net(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        observe(self, losses, sample_id, logits=logits, labels=y)
        return losses.mean()

Epochs, steps, checkpoints and errors are Lightning's: the callback follows them.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from probes.recorder import Recorder


class RecorderCallback(Callback):
    """Opens a recorder for `Trainer.fit`, counts its epochs, and keeps its state in checkpoints.

    To go on from a checkpoint, give `Recorder(..., resume=True)` and call
    `trainer.fit(model, ckpt_path=...)`: rows past the checkpoint are left out from then on.

    Args:
        recorder: A recorder that nobody has entered, of the LightningModule or of a network in it
            that `training_step` calls.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._is_open = False
        self._restored: Mapping[str, Any] | None = None
        self._last: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """Names this recorder's state among those of a checkpoint."""
        return f"{type(self).__qualname__}[{self.recorder.path.name}]"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the recorder, before the first forward pass, as `torch.compile` needs it."""
        self.recorder.__enter__()
        self._is_open = True
        self._restore()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the epoch that Lightning begins."""
        self.recorder.begin_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End it, and measure what is due."""
        self.recorder.end_epoch()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run."""
        self._close(None)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Make durable what has been recorded, and mark the run as interrupted."""
        self._close(exception)

    def state_dict(self) -> dict[str, Any]:
        """The recorder's state for a checkpoint; everything recorded before is durable."""
        if self._is_open:
            self._last = dict(self.recorder.state_dict())
        return self._last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; Lightning calls this before training."""
        self._restored = state_dict
        if self._is_open:
            self._restore()

    def _restore(self) -> None:
        restored, self._restored = self._restored, None
        if restored:
            self.recorder.load_state_dict(restored)

    def _close(self, error: BaseException | None) -> None:
        if self._is_open:
            self._is_open = False
            self.recorder.__exit__(None if error is None else type(error), error, None)


def observe(
    module: LightningModule, losses: Tensor, sample_id: Tensor, **batch: Tensor | None
) -> None:
    """Record a batch; the one line to add to `training_step`.

    Does nothing where the module's trainer has no `RecorderCallback`, and none outside of training,
    so the line can stay, also in a step shared with validation.

    Args:
        module: The LightningModule: `self`.
        losses: Unreduced loss of each sample, shape (N,); return a total built from it.
        sample_id: Index of each sample in the full training set, shape (N,).
        batch: `logits`, `labels` and `weights`, as for `Recorder.observe`.
    """
    trainer = module.trainer
    if not trainer.training:
        return
    for callback in trainer.callbacks:
        if isinstance(callback, RecorderCallback):
            callback.recorder.observe(losses, sample_id, **batch)
