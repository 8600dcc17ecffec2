"""The networks of the studies, small enough for two cores."""

from collections.abc import Sequence

from torch import Tensor, nn


def build_mlp(
    n_inputs: int, hidden: Sequence[int], n_classes: int, *, batch_norm: bool = False
) -> nn.Sequential:
    """A multi-layer perceptron with ReLU.

    Args:
        n_inputs: Pixels per image; images are flattened.
        hidden: Width of each hidden layer.
        n_classes: Number of outputs.
        batch_norm: Normalise before each ReLU.

    Returns:
        The network, from images (N, ...) to logits (N, n_classes).
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        norm = [nn.BatchNorm1d(width)] if batch_norm else []
        layers += [nn.Linear(n_inputs, width), *norm, nn.ReLU(inplace=True)]
        n_inputs = width
    return nn.Sequential(*layers, nn.Linear(n_inputs, n_classes))


def build_all_cnn(in_channels: int, n_classes: int, width: int = 16) -> nn.Sequential:
    """A small All-CNN: 3×3 convolutions with batch normalisation, strides in place of pooling.

    Half as deep as the one of Springenberg et al. that Achille et al. train: five convolutions of
    w, w (stride 2), 2w, 2w (stride 2) and 2w channels, a 1×1 convolution to the classes, and a mean
    over places.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        n_classes: Number of outputs.
        width: Channels w of the first convolution.

    Returns:
        The network, from images (N, channels, H, W) to logits (N, n_classes).
    """
    layers: list[nn.Module] = []
    plan = [(width, 1), (width, 2), (2 * width, 1), (2 * width, 2), (2 * width, 1)]
    for channels, stride in plan:
        layers += [
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        in_channels = channels
    layers += [nn.Conv2d(in_channels, n_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


class SmallCNN(nn.Module):
    """Two convolutions with pooling, one hidden layer; no batch normalisation unless asked for.

    Args:
        in_channels: 1 for grey images, 3 for colour.
        image_size: Height and width, divisible by 4.
        n_classes: Number of outputs.
        width: Channels of the first convolution; the second has twice as many.
        dropout: Share of the hidden layer's outputs that is dropped in training.
        batch_norm: Normalise the outputs of both convolutions over the batch.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        n_classes: int,
        width: int = 32,
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            *([nn.BatchNorm2d(width)] if batch_norm else []),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            *([nn.BatchNorm2d(2 * width)] if batch_norm else []),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(2 * width * (image_size // 4) ** 2, 4 * width),
            nn.ReLU(inplace=True),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(4 * width, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, size, size) to logits (N, n_classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits
