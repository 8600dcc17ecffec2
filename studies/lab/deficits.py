"""Deficits: what a network sees in place of the data for a while; functions of (data, seed).

Blur and noise change what images look like up close; a vertical flip and a permutation of the
classes leave the low-level statistics of images as they are (Achille et al., ICLR 2019, Sec. 2).
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from studies.lab.data import TensorData

DeficitKind = Literal["none", "blur", "flip", "permutation", "random classes", "noise"]
"""`permutation` renames the classes; `random classes` draws a class for each image by itself."""

BLUR_FACTOR = 4


def apply_deficit(
    data: TensorData, kind: DeficitKind, *, n_classes: int, seed: int = 0
) -> TensorData:
    """The data as seen through a deficit; the samples stay in their rows.

    Args:
        data: Images and labels; not modified.
        kind: `blur`, `flip`, `permutation`, `random classes`, `noise`, or `none`.
        n_classes: Number of classes.
        seed: Seed of permutation, random classes and noise.

    Returns:
        The data to train on during the deficit.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind == "none":
        return data
    if kind == "blur":
        return TensorData(blur(data.images), data.labels)
    if kind == "flip":
        return TensorData(data.images.flip(-2), data.labels)
    generator = torch.Generator().manual_seed(seed)
    if kind == "permutation":
        return TensorData(data.images, rename_classes(n_classes, generator)[data.labels])
    if kind == "random classes":
        drawn = torch.randint(n_classes, data.labels.shape, generator=generator)
        return TensorData(data.images, drawn)
    if kind == "noise":
        return TensorData(torch.randn(data.images.shape, generator=generator), data.labels)
    raise ValueError(f"A deficit is one of {', '.join(get_args(DeficitKind))}, but is {kind!r}.")


def blur(images: Tensor, factor: int = BLUR_FACTOR) -> Tensor:
    """Sample images down and up again, both bilinear, as in the paper: 32 → 8 → 32.

    Args:
        images: Shape (N, channels, H, W), with H and W at least `factor`.
        factor: How many times fewer pixels along a side survive.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: If the images are smaller than the factor.
    """
    height, width = images.shape[-2:]
    if min(height, width) < factor:
        raise ValueError(f"Blur by {factor} needs images at least that wide, got {height}×{width}.")
    small = F.interpolate(images, size=(height // factor, width // factor), mode="bilinear")
    return F.interpolate(small, size=(height, width), mode="bilinear")


def rename_classes(n_classes: int, generator: torch.Generator) -> Tensor:
    """A random permutation of the classes that leaves none in its place.

    Args:
        n_classes: Number of classes, at least 2.
        generator: Source of the permutation.

    Returns:
        The new name of each class, shape (n_classes,).
    """
    order = torch.randperm(n_classes, generator=generator)
    renamed = torch.empty_like(order)
    renamed[order] = order.roll(-1)  # one cycle through all classes
    return renamed
