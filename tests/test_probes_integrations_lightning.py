"""Lightning's loop: the same trace as the plain loop, the same training, checkpoints and errors."""

import numpy as np
import pytest
import torch
from loops import EPOCHS, N, make_loader, make_network, make_optimizer, make_recorder, train_plainly
from torch.nn import functional as F

from dynamics import open_run

pytestmark = [
    # What Lightning advises of a loader without workers and of short epochs is beside the point.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]
pl = pytest.importorskip("lightning.pytorch")
from probes.integrations.lightning import RecorderCallback, observe  # noqa: E402 (after the skip)


class Net(pl.LightningModule):
    def __init__(self, fail_at=None):
        super().__init__()
        self.net = make_network()
        self.fail_at = fail_at

    def training_step(self, batch, batch_idx):
        x, y, sample_id = batch
        logits = self.net(x)
        losses = F.cross_entropy(logits, y, reduction="none")
        observe(self, losses, sample_id, logits=logits, labels=y)
        if self.global_step == self.fail_at:
            raise RuntimeError("the loop broke")
        return losses.mean()

    def configure_optimizers(self):
        return make_optimizer(self)


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)


def fit(folder, module, callbacks=(), loader=None, validate=False, ckpt_path=None, **options):
    settings = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(**settings | options, callbacks=list(callbacks))
    torch.manual_seed(5)
    trainer.fit(
        module,
        loader or make_loader(),
        val_dataloaders=make_loader() if validate else None,
        ckpt_path=ckpt_path,
    )
    return module


def rows_of(folder):
    return open_run(folder).samples()


def same_rows(found, expected):
    assert found[["step", "epoch", "sample_id"]].equals(expected[["step", "epoch", "sample_id"]])
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(found["margin"], expected["margin"], rtol=1e-5, atol=1e-6)
    assert (found["status"] == expected["status"]).all()


def test_the_trace_is_that_of_the_plain_loop_and_training_is_bit_identical(tmp_path):
    module = Net()
    recorder = make_recorder(tmp_path / "lightning", module.net)
    fit(tmp_path, module, [RecorderCallback(recorder)])
    plain = train_plainly(tmp_path / "plain")
    same_rows(rows_of(tmp_path / "lightning"), rows_of(tmp_path / "plain"))
    run = open_run(tmp_path / "lightning")
    assert run.ended_cleanly
    assert run.events()["name"].tolist() == ["epoch_end"] * EPOCHS
    unrecorded = fit(tmp_path, Net())
    pairs = zip(module.net.parameters(), unrecorded.net.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(module.net.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_recorder_of_the_whole_module_and_validation_in_between(tmp_path):
    module = Validated()
    callback = RecorderCallback(make_recorder(tmp_path / "run", module))
    fit(tmp_path, module, [callback], validate=True, num_sanity_val_steps=1)
    rows = rows_of(tmp_path / "run")
    assert len(rows) == N * EPOCHS  # none of the validation
    assert rows["grad_norm"].notna().all()


def test_accumulation(tmp_path):
    module = Net()
    callback = RecorderCallback(make_recorder(tmp_path / "run", module))
    fit(tmp_path, module, [callback], accumulate_grad_batches=2, gradient_clip_val=0.01)
    rows = rows_of(tmp_path / "run")
    assert rows["step"].max() == 3 * EPOCHS - 1  # 6 batches an epoch, 2 for each update
    assert (rows["weight"] == 1).all()


def test_an_exception_leaves_everything_durable_and_the_run_marked(tmp_path):
    module = Net(fail_at=8)
    callback = RecorderCallback(make_recorder(tmp_path / "run", module))
    with pytest.raises(RuntimeError, match="the loop broke"):
        fit(tmp_path, module, [callback])
    run = open_run(tmp_path / "run")
    assert not run.ended_cleanly
    assert "interrupted" in run.events()["name"].tolist()
    assert run.samples(repeats=True)["step"].max() == 8
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_resumed_from_a_checkpoint(tmp_path):
    first = Net(fail_at=8)  # in the second epoch, past the checkpoint after the first
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="first", save_on_train_epoch_end=True)
    callback = RecorderCallback(make_recorder(tmp_path / "run", first))
    with pytest.raises(RuntimeError):
        fit(tmp_path, first, [callback, saver], enable_checkpointing=True)
    second = Net()
    callback = RecorderCallback(make_recorder(tmp_path / "run", second, resume=True))
    loader = make_loader()
    next(iter(loader))  # the first epoch's order is behind
    checkpoint = tmp_path / "first.ckpt"
    fit(
        tmp_path, second, [callback, saver], loader, ckpt_path=checkpoint, enable_checkpointing=True
    )
    run = open_run(tmp_path / "run")
    assert [attempt.from_step for attempt in run.attempts] == [0, 6]
    rows = run.samples()
    keys = list(zip(rows["epoch"], rows["sample_id"], strict=True))
    assert keys == [(e, i) for e in range(EPOCHS) for i in range(N)]
    assert run.ended_cleanly


def test_each_recorder_has_a_state_key_of_its_own(tmp_path):
    keys = {RecorderCallback(make_recorder(tmp_path / n, Net())).state_key for n in ("a", "b")}
    assert len(keys) == 2


def test_without_the_callback_the_line_does_nothing(tmp_path):
    fit(tmp_path, Net())
    assert list(tmp_path.iterdir()) == []
