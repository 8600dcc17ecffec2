"""A transformers classifier that tells which module a documentation string is from.

No download: a small BERT with random weights, over the bytes of the standard library's texts.
`sequence_classifier.py OUT`
"""

import sys
from pathlib import Path

from datasets import Dataset
from texts import documentation
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
    set_seed,
)

from dynamics import open_run
from probes import GradNorm, Recorder, SampleLoss, with_sample_ids
from probes.integrations.transformers import RecordingTrainer

LENGTH, PAD = 48, 0


def load(n: int) -> tuple[Dataset, list[str]]:
    """Columns as BERT takes them, and the modules' names."""
    texts = documentation(("argparse", "logging", "pathlib", "statistics"))
    pairs = [(text, label) for label, found in enumerate(texts.values()) for text in found]
    pairs = pairs[:: max(1, len(pairs) // n)][:n]
    codes = [list(text.encode()[:LENGTH]) for text, _ in pairs]
    columns = {
        "input_ids": [c + [PAD] * (LENGTH - len(c)) for c in codes],
        "attention_mask": [[1] * len(c) + [0] * (LENGTH - len(c)) for c in codes],
        "position_ids": [list(range(LENGTH))] * len(codes),  # gradient norms need them by sequence
        "labels": [label for _, label in pairs],
    }
    return Dataset.from_dict(columns), list(texts)


def main(out: Path, epochs: int = 3, n: int = 128) -> Path:
    """Train, record, and show the most doubtful text of each module."""
    set_seed(0)
    train_set, names = load(n)
    config = BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        num_labels=len(names),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForSequenceClassification(config)
    recorder = Recorder(out, model, [SampleLoss(), GradNorm()])
    arguments = TrainingArguments(
        output_dir=str(out.parent / "checkpoints"),
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = RecordingTrainer(
        model=model, args=arguments, train_dataset=with_sample_ids(train_set), recorder=recorder
    )
    trainer.train()
    rows = open_run(out).samples()
    last = rows[rows["epoch"] == epochs - 1].set_index("sample_id")
    print(f"{last['correct'].mean():.0%} right, median norm {last['grad_norm'].median():.2f}")
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]))
