"""The five networks of the gradient-norm benchmark, with inputs and labels; two more for GPUs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Problem = tuple[nn.Module, Tensor, Tensor]


def mlp() -> Problem:
    """MLP 784-512-512-10, batch 256."""
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return model, torch.randn(256, 784), torch.randint(0, 10, (256,))


def cnn() -> Problem:
    """CNN 1→32→64, 128, 10 on 28×28, batch 128."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    return model, torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))


def all_cnn(width: int = 48, batch: int = 64) -> Problem:
    """All-CNN of a width on 32×32 (Springenberg et al.)."""

    def conv(i: int, o: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(i, o, kernel, stride, padding=kernel // 2), nn.ReLU()]

    w, v = width, 2 * width
    model = nn.Sequential(
        *conv(3, w), *conv(w, w), *conv(w, w, stride=2),
        *conv(w, v), *conv(v, v), *conv(v, v, stride=2),
        *conv(v, v), *conv(v, v, 1), nn.Conv2d(v, 10, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return model, torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm and a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(o)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(o)
        self.relu2 = nn.ReLU()
        plain = stride == 1 and i == o
        projection = [nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)]
        self.shortcut = nn.Sequential(*([] if plain else projection))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(inner + self.shortcut(x))


def resnet18(width: int = 32, batch: int = 32) -> Problem:
    """ResNet-18 for 32×32, BatchNorm in eval mode."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
    layers.append(nn.ReLU())
    channels = width
    for stage in range(4):
        for block in range(2):
            out = width * 2**stage
            layers.append(ResidualBlock(channels, out, 2 if stage and not block else 1))
            channels = out
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return model.eval(), torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))


class Attention(nn.Module):
    """Causal self-attention from linear layers."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (p.view(n, t, self.heads, -1).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(n, t, d))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d)
        self.attention = Attention(d, heads)
        self.norm2 = nn.LayerNorm(d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder-only transformer."""

    def __init__(self, vocabulary: int, d: int, layers: int, length: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d)
        self.positions = nn.Embedding(length, d)
        self.blocks = nn.Sequential(*(TransformerBlock(d, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        x = self.tokens(tokens) + self.positions(positions)
        return self.head(self.norm(self.blocks(x)))


def gpt(d: int = 256, layers: int = 4, length: int = 128, batch: int = 16) -> Problem:
    """GPT, d 256, 4 layers, T 128, batch 16; vocabulary of 512."""
    tokens = torch.randint(0, 512, (batch, length + 1))
    return GPT(512, d, layers, length, 4), tokens[:, :-1].clone(), tokens[:, 1:].clone()


def gpt124m() -> Problem:
    """GPT-2 small's shape, 124 M parameters, batch 8 × 512 tokens."""
    tokens = torch.randint(0, 50257, (8, 513))
    return GPT(50257, 768, 12, 512, 12), tokens[:, :-1].clone(), tokens[:, 1:].clone()


def sample_losses(output: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample; per sequence, the mean over its tokens."""
    if output.dim() == 3:
        return F.cross_entropy(output.transpose(1, 2), labels, reduction="none").mean(1)
    return F.cross_entropy(output, labels, reduction="none")


NETWORKS: dict[str, Callable[[], Problem]] = {
    "MLP 784-512-512-10, batch 256": mlp,
    "CNN 1→32→64, 128, 10, batch 128": cnn,
    "All-CNN width 48, batch 64": all_cnn,
    "ResNet-18 width 32, BatchNorm eval, batch 32": resnet18,
    "GPT d 256, 4 layers, T 128, batch 16": gpt,
}
GPU_NETWORKS: dict[str, Callable[[], Problem]] = {
    "ResNet-18 width 64, BatchNorm eval, batch 512": lambda: resnet18(64, 512),
    "GPT 124 M parameters, batch 8 × 512": gpt124m,
}
