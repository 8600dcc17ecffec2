"""transformers: a `Trainer` that records each sequence's loss.

    recorder = Recorder("runs/a", model, [SampleLoss(), GradNorm()])
    trainer = RecordingTrainer(model=model, args=args, train_dataset=with_sample_ids(train_set),
                               recorder=recorder)
    trainer.train()

`RecordingMixin` goes in front of a Trainer of one's own:
`class MyTrainer(RecordingMixin, Seq2SeqTrainer)`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import get_last_checkpoint

from probes.recorder import Recorder
from probes.sequence_losses import sequence_losses

IGNORED = -100
"""The label that marks what does not count, as everywhere in transformers."""

STATE_FILE = "recorder.json"
"""The recorder's state in a checkpoint's folder."""

RECIPE = (
    "Override RecordingTrainer.losses_of(outputs, labels) to return the unreduced losses, shape "
    "(N,), whose sum over the number of items is the loss that the model is trained on."
)


class RecordingMixin:
    """Records the batches that a Trainer trains on; put it in front of the Trainer's class.

    The Trainer computes its loss as ever. From the same outputs and labels comes one loss ℓ_i per
    sequence, the sum over its labels other than −100 (over the next tokens for causal models),
    or the loss of the one label of a sequence. What is trained on is Σ ℓ_i divided as the Trainer
    divides it: by `num_items_in_batch` where the model takes that, else by the batch's own labels.
    The first batch shows whether that is the loss that the Trainer computed.

    The column `sample_id` is kept whatever `remove_unused_columns` says, and taken out of the
    inputs before the model sees them. Each checkpoint holds the recorder's state as
    `recorder.json`; to go on, give `Recorder(..., resume=True)` and call
    `train(resume_from_checkpoint=...)`.

    Gradient norms need a sample in each row of every layer's input. Where a model looks positions
    up once for the whole batch (GPT-2, BERT), `GradNorm` refuses its position embedding by name;
    give the model `position_ids`, a row for each sequence, as a column of the training set.

    Args:
        recorder: A recorder of the model that nobody has entered.
        arguments: Those of the Trainer.
    """

    def __init__(self, *arguments: Any, recorder: Recorder, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.recorder = recorder
        self._is_checked = False
        self.add_callback(_Follow(recorder))  # type: ignore[attr-defined]  # the Trainer's

    def train(self, resume_from_checkpoint: Any = None, **options: Any) -> Any:
        """Train and record.

        Args:
            resume_from_checkpoint: As for the Trainer.
            options: As for the Trainer.

        Returns:
            What the Trainer returns.

        Raises:
            ValueError: If the training set has columns and `sample_id` is none of them.
        """
        columns = getattr(self.train_dataset, "column_names", None)  # type: ignore[attr-defined]
        if columns is not None and "sample_id" not in columns:
            raise ValueError(
                f"The training set has no column sample_id among {', '.join(columns)}. Give "
                "train_dataset=with_sample_ids(train_set), or keep that column where you map, "
                "select or group: map(..., remove_columns=[...]) drops it if it is named."
            )
        with self.recorder:
            if resume_from_checkpoint:
                self.recorder.load_state_dict(self._read_state(resume_from_checkpoint))
            return super().train(  # type: ignore[misc]  # the Trainer's
                resume_from_checkpoint=resume_from_checkpoint, **options
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> Any:
        """The Trainer's loss, built from the losses of single sequences, which are recorded.

        Args:
            model: The model.
            inputs: The batch, with `sample_id` and `labels`.
            return_outputs: Whether to return the outputs too.
            num_items_in_batch: What the Trainer divides a sum of losses by, if it does.
            options: As for the Trainer.

        Returns:
            As the Trainer's `compute_loss`.
        """
        inputs = dict(inputs)
        sample_id = inputs.pop("sample_id", None)
        labels = inputs.get("labels")
        loss, outputs = super().compute_loss(  # type: ignore[misc]  # the Trainer's
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch, **options
        )
        if model.training:
            loss = self._record(loss, outputs, labels, sample_id, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **o: Any
    ) -> Any:
        """Evaluation, which is not recorded, without the ids.

        Args:
            model: The model.
            inputs: The batch.
            rest: As for the Trainer.
            o: As for the Trainer.

        Returns:
            As the Trainer's `prediction_step`.
        """
        inputs = {name: value for name, value in inputs.items() if name != "sample_id"}
        return super().prediction_step(model, inputs, *rest, **o)  # type: ignore[misc]

    def losses_of(self, outputs: Any, labels: Tensor | None) -> Tensor:
        """One loss per sequence, unreduced; override it for a loss of your own.

        Args:
            outputs: The model's outputs, with `logits` of shape (N, C) or (N, T, C).
            labels: Shape (N,) or (N, T); −100 does not count.

        Returns:
            Shape (N,), with the graph of the outputs.

        Raises:
            ValueError: If there are no labels, or they are not classes.
        """
        if labels is None or labels.is_floating_point():
            kind = "no labels" if labels is None else f"labels of type {labels.dtype}"
            raise ValueError(f"The batch has {kind}, but labels of classes are needed. {RECIPE}")
        logits = outputs["logits"].float()
        if labels.dim() > 1 and self._predicts_next():
            labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        labels = labels.to(logits.device)
        each = F.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(labels.shape)
        return each if each.dim() == 1 else sequence_losses(each, labels != IGNORED)

    def _record(
        self,
        loss: Tensor,
        outputs: Any,
        labels: Tensor | None,
        sample_id: Tensor | None,
        n_items: Tensor | int | None,
    ) -> Tensor:
        if sample_id is None:
            raise ValueError(
                "The batch has no sample_id. Give train_dataset=with_sample_ids(train_set); if you "
                "have a data_collator of your own, let it keep that entry: "
                "batch['sample_id'] = torch.tensor([item['sample_id'] for item in items])."
            )
        losses = self.losses_of(outputs, labels)
        divisor = self._divisor(losses, labels, n_items)
        total = losses.sum() / divisor * self._scale(n_items)
        if not self._is_checked:
            self._is_checked = True
            if not torch.isclose(total, loss.to(total.dtype), rtol=1e-3, atol=1e-6):
                raise ValueError(
                    f"The losses of single sequences add up to {total.item():.6g}, but the Trainer "
                    f"trains on {loss.item():.6g}: the model's loss is not the cross-entropy of "
                    f"its logits, or has another term. {RECIPE}"
                )
        if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
            known = {"logits": outputs["logits"], "labels": labels}
        else:
            known = {}
        self.recorder.observe(losses, sample_id, **known)
        return total

    def _divisor(
        self, losses: Tensor, labels: Tensor | None, n_items: Tensor | int | None
    ) -> Tensor | int:
        if n_items is not None and self.model_accepts_loss_kwargs:  # type: ignore[attr-defined]
            return n_items.to(losses.device) if isinstance(n_items, Tensor) else n_items
        if labels is None:
            return len(losses)
        counted = labels[..., 1:] if labels.dim() > 1 and self._predicts_next() else labels
        return (counted != IGNORED).sum()

    def _scale(self, n_items: Tensor | int | None) -> int:
        """What the Trainer multiplies a loss by that was divided by the items of all processes."""
        trainer: Any = self
        spreads = trainer.args.average_tokens_across_devices and trainer.model_accepts_loss_kwargs
        return int(trainer.accelerator.num_processes) if spreads and n_items is not None else 1

    def _predicts_next(self) -> bool:
        return type(self.recorder.model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]  # the Trainer's
        trainer: Any = self
        if "sample_id" not in trainer._signature_columns:
            trainer._signature_columns.append("sample_id")

    def _read_state(self, checkpoint: Any) -> dict[str, Any]:
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)  # type: ignore[attr-defined]
        path = Path(checkpoint) / STATE_FILE
        if not path.exists():
            raise ValueError(
                f"{path} is missing, so this checkpoint is not one of a recorded training, or "
                "writing it was interrupted. Go on from an earlier one."
            )
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return state


class RecordingTrainer(RecordingMixin, Trainer):
    """A Trainer that records each sequence's loss: see `RecordingMixin`."""


class _Follow(TrainerCallback):
    """Follows the Trainer's epochs and checkpoints."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._recorder.begin_epoch(int(round(state.epoch or 0, 6)))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._recorder.end_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """With the epoch's checkpoint, the Trainer saves before it ends the epoch or after it."""
        content = json.dumps(self._recorder.state_dict())
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / STATE_FILE).write_text(content, encoding="utf-8")
