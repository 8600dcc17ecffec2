"""The training loop of example weighting: plain SGD, with a scheme and a recorder in it."""

from collections.abc import Callable
from time import thread_time

import torch
from torch import Tensor, nn
from tqdm import tqdm

from probes import Recorder
from studies.weighting.scheme import Scheme, Setup, StepView, shuffled


def train_weighted(
    model: nn.Module,
    setup: Setup,
    scheme: Scheme,
    recorder: Recorder,
    *,
    sample_ids: Tensor,
    after_epoch: Callable[[int], None],
    title: str,
) -> None:
    """Train under a scheme, recording every batch.

    The loss of a batch of n samples is Σ w_i ℓ_i / n. Given to the recorder are the scheme's own
    losses and weights, and the labels as given: `p_true` and `el2n` are about the given label
    whatever the scheme trains for, and weight · output_grad_norm is how hard it pulls at a sample.
    `step_seconds` is the processor time of a step, without the recorder's.

    Args:
        model: Network from images to logits; changed in place.
        setup: What is trained on and how.
        scheme: How samples are weighted.
        recorder: An entered recorder.
        sample_ids: Id of each training sample, shape (N,).
        after_epoch: Called with each epoch's index when it is over.
        title: Text of the progress bar, which shows on a terminal only.
    """
    recipe, data = setup.recipe, setup.data
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    batches_of = scheme.batches or shuffled(setup)
    epochs = recorder.epochs(recipe.epochs)
    for epoch in tqdm(epochs, title, total=recipe.epochs, disable=None, leave=False, unit="epoch"):
        model.train()
        seconds, n_steps = -thread_time(), 0
        scheme.before_epoch(epoch, model)
        for rows in batches_of(model):
            images, labels = scheme.images(data.images[rows]), data.labels[rows]
            logits = model(images)
            view = StepView(epoch, rows, images, labels, logits, model)
            losses = scheme.losses(view)
            weights = scheme.weights(view)
            seconds += thread_time()
            recorder.observe(
                losses, sample_ids[rows], logits=logits, labels=labels, weights=weights
            )
            seconds -= thread_time()
            (weights * losses).mean().backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
            optimizer.zero_grad()
            n_steps += 1
        seconds += thread_time()
        recorder.record("step_seconds", seconds / n_steps, n=n_steps)
        after_epoch(epoch)
