"""A Lightning module on scikit-learn's digits: `lightning_module.py OUT`."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss, with_sample_ids
from probes.integrations.lightning import RecorderCallback, observe


class Classifier(pl.LightningModule):
    """A multilayer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, whose samples are recorded."""
        x, y, sample_id = batch
        logits = self.net(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        observe(self, losses, sample_id, logits=logits, labels=y)
        return losses.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(out: Path, epochs: int = 3) -> Path:
    """Train and record."""
    pl.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    train_set = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels).long())
    loader = DataLoader(with_sample_ids(train_set), batch_size=128, shuffle=True)
    module = Classifier()
    recorder = Recorder(out, module.net, [SampleLoss(), GradNorm()], roster={"label": labels})
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RecorderCallback(recorder)],
    )
    trainer.fit(module, loader)
    rows = open_run(out).samples()
    print(rows.groupby("epoch")[["loss", "grad_norm"]].median().round(3))
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]))
