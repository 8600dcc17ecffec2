"""The demo: digits with 30 % symmetric label noise, recorded by every probe until memorised."""

from pathlib import Path

import torch

from dynamics.datasets import open_dataset
from probes import FisherTrace, GradNorm, Recorder, SampleLoss, WeightEffect
from studies.lab.corruption import corrupt_labels
from studies.lab.data import to_tensors
from studies.lab.models import build_mlp
from studies.lab.train import Recipe, predict, record_accuracy, train

NOISE_RATIO = 0.3
RECIPE = Recipe(epochs=60, lr=0.05, batch_size=64)


def run_demo(out: Path, *, seed: int = 0) -> None:
    """Train an MLP on digits, 30 % of whose labels are wrong, and record it.

    Args:
        out: Folder of the run.
        seed: Seed of the noise, the initialisation and the order of the samples.
    """
    dataset = open_dataset("digits")
    train_set, test_set = to_tensors(dataset)
    noisy = corrupt_labels(
        dataset.y_train, NOISE_RATIO, kind="symmetric", n_classes=dataset.n_classes, seed=seed
    )
    noisy_set = train_set.relabelled(noisy)
    torch.manual_seed(seed)
    model = build_mlp(64, [512, 512], dataset.n_classes)
    noise_images = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    probes = [
        SampleLoss(),
        GradNorm(),
        FisherTrace(data=(noisy_set.images[:500], noisy_set.labels[:500])),
        FisherTrace(data=(noisy_set.images[:500], noisy_set.labels[:500]), kind="empirical"),
        WeightEffect({"test": test_set.images, "random noise": noise_images}),
    ]
    recorder = Recorder(
        out,
        model,
        probes,
        roster={"label": noisy, "true_label": dataset.y_train},
        data={"source": "digits", "sha256": dataset.fingerprint(), "peak": dataset.peak},
        config={"study": "demo", "noise": "symmetric", "ratio": NOISE_RATIO, "seed": seed},
    )

    def evaluate(epoch: int) -> bool:
        on_train, on_test = predict(model, noisy_set), predict(model, test_set)
        record_accuracy(recorder, "train, noisy labels", on_train, noisy_set.labels)
        record_accuracy(recorder, "test, true labels", on_test, test_set.labels)
        return False

    with recorder:
        train(model, noisy_set, RECIPE, recorder, after_epoch=evaluate, title="demo")
