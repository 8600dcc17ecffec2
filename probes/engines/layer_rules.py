"""Squared per-sample gradient norms of single layers, each by the cheaper exact route.

A layer's gradient for sample i is made of the layer's input a and the gradient g at its output. For
a linear map over T positions it is Σ_t g_t a_tᵀ, and its squared norm can be had in two ways: form
the gradient (T·d_in·d_out products), or compare all pairs of positions, Σ_{t,s} ⟨a_t, a_s⟩⟨g_t,
g_s⟩ (T²·(d_in + d_out) products, the Gram route). Shapes decide. Gradients are formed for a few
samples at a time, so that they never take more than `MEMORY_BUDGET`.

BackPACK 1.7.1 has rules for some of these layers. Ours replace them, because its rule for grouped
convolutions treats them as ungrouped (5 % off in our test, without a warning), the ones for
transposed convolutions and other padding modes fail or ignore them, the one for embeddings refuses
a padding index, and none of them chooses a route.
"""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY_BUDGET = 64 * 2**20
"""Bytes that per-sample gradients of one layer may take at a time."""

ParameterRule = Callable[[Any, Tensor, Tensor], Tensor]
"""Layer, input and output gradient, each (N, ...), to something of one parameter per sample."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def chunks(n: int, bytes_each: int) -> Iterator[slice]:
    """Slices of n samples whose gradients fit into the memory budget together.

    Args:
        n: Number of samples.
        bytes_each: Size of one sample's gradient.

    Yields:
        The slices, in order.
    """
    size = max(1, MEMORY_BUDGET // max(bytes_each, 1))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def cached_chunks(like: Tensor, bytes_each: int) -> Iterator[slice]:
    """Slices as of `chunks`, smaller on a CPU, where the next step then finds them in its cache.

    Args:
        like: A tensor with the samples on its first axis.
        bytes_each: Size of one sample's gradient.

    Returns:
        The slices, in order.
    """
    return chunks(len(like), bytes_each if like.is_cuda else 8 * bytes_each)


def row_norms(tensor: Tensor) -> Tensor:
    """Norm of each sample's entries, shape (N,)."""
    return torch.linalg.vector_norm(tensor.flatten(1), dim=1)


def outer_norms_sq(left: Tensor, right: Tensor) -> Tensor:
    """‖Σ_t left_t right_tᵀ‖² for each sample.

    Args:
        left: Shape (N, T, p).
        right: Shape (N, T, q).

    Returns:
        Shape (N,).
    """
    _, t, p = left.shape
    q = right.shape[2]
    if t == 1:
        return (row_norms(left) * row_norms(right)).square_()
    if t * (p + q) < p * q:
        parts = [
            (left[s] @ left[s].transpose(1, 2))
            .mul_(right[s] @ right[s].transpose(1, 2))
            .sum((1, 2))
            .clamp_(min=0)  # where positions cancel, rounding may leave a square just below 0
            for s in cached_chunks(left, 2 * t * t * left.element_size())
        ]
    else:
        parts = [
            row_norms(left[s].transpose(1, 2) @ right[s]).square_()
            for s in cached_chunks(left, p * q * left.element_size())
        ]
    return torch.cat(parts)


def linear_weight(layer: nn.Linear, source: Tensor, grad: Tensor) -> Tensor:
    """Weight of a linear layer with any number of axes between sample and features."""
    n = len(source)
    return outer_norms_sq(
        grad.reshape(n, -1, grad.shape[-1]), source.reshape(n, -1, source.shape[-1])
    )


def embedding_weight(layer: nn.Embedding, source: Tensor, grad: Tensor) -> Tensor:
    """Weight of an embedding: positions with the same index add before squaring.

    Σ_{t,s} [i_t = i_s] ⟨g_t, g_s⟩ without the padding index; nothing of the vocabulary's size is
    made.
    """
    indices = source.flatten(1) if source.dim() > 1 else source.unsqueeze(1)
    grad = grad.reshape(*indices.shape, -1)
    if layer.padding_idx is not None:
        grad = grad * (indices != layer.padding_idx).unsqueeze(-1)
    t = indices.shape[1]
    parts = []
    for s in chunks(len(indices), 2 * t * t * grad.element_size()):
        same = indices[s].unsqueeze(1) == indices[s].unsqueeze(2)
        # Where positions cancel, rounding may leave a square just below 0.
        parts.append(((grad[s] @ grad[s].transpose(1, 2)) * same).sum((1, 2)).clamp_(min=0))
    return torch.cat(parts)


def conv_weight(layer: nn.Conv2d, source: Tensor, grad: Tensor) -> Tensor:
    """Weight of a convolution, transposed or not, with any groups, stride, dilation and padding."""
    if gram_pays(layer, grad):
        return conv_gram(layer, source, grad)
    bytes_each = layer.weight.numel() * grad.element_size()
    parts = [
        row_norms(conv_gradients(layer, source[s], grad[s])).square_()
        for s in cached_chunks(source, bytes_each)
    ]
    return torch.cat(parts)


def conv_gradients(
    layer: nn.Conv2d, source: Tensor, grad: Tensor, *, n_out: int | None = None
) -> Tensor:
    """Gradient of each sample with respect to a convolution's weight.

    One grouped convolution whose groups are the samples: the library's own kernel for the weight
    gradient, which then adds nothing over the batch.

    Args:
        layer: The convolution, transposed or not.
        source: Its input, shape (n, channels, ...).
        grad: Gradient at its output, shape (n, channels, ...).
        n_out: Number of output channels, if the gradient has been projected to fewer.

    Returns:
        Shape (n, *weight.shape), with `n_out` rows if given.
    """
    source, padding = pad_source(layer, source)
    n, shape = len(source), (n_out or layer.weight.shape[0], *layer.weight.shape[1:])
    if _is_pointwise(layer) and not any(padding):
        steps: list[Any] = [slice(None, None, step) for step in layer.stride]
        strided = source[(..., *steps)]
        return (grad.flatten(2) @ strided.flatten(2).transpose(1, 2)).reshape(n, *shape)
    if _has_few_positions(layer, grad):  # there that kernel is slow on CPUs
        patches = F.unfold(source, layer.kernel_size, layer.dilation, padding, layer.stride)
        return (grad.flatten(2) @ patches.transpose(1, 2)).reshape(n, *shape)
    repeated = source.new_empty(n * shape[0], *shape[1:])  # only its shape is read
    gradient = torch.ops.aten.convolution_backward(
        grad.reshape(1, -1, *grad.shape[2:]),
        source.reshape(1, -1, *source.shape[2:]),
        repeated,
        None,
        layer.stride,
        padding,
        layer.dilation,
        layer.transposed,
        layer.output_padding,
        n * layer.groups,
        (False, True, False),
    )[1]
    return cast("Tensor", gradient).reshape(n, *shape)


def _has_few_positions(layer: nn.Conv2d, grad: Tensor) -> bool:
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        return False
    d_out, d_in = layer.weight.shape[0], layer.weight[0].numel()
    return 2 * grad[0, 0].numel() * (d_in + d_out) < d_in * d_out


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return not layer.transposed and layer.groups == 1 and set(layer.kernel_size) == {1}


def pad_source(layer: nn.Conv2d, source: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Input and numeric zero padding that give the same convolution."""
    zeros = (0,) * (source.dim() - 2)
    if layer.transposed or (layer.padding_mode == "zeros" and layer.padding != "same"):
        padding = zeros if layer.padding == "valid" else cast("tuple[int, ...]", layer.padding)
        return source, padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(source, layer._reversed_padding_repeated_twice, mode=mode), zeros


def has_gram(layer: nn.Conv2d) -> bool:
    """Whether `conv_gram` takes the layer: a 2-D convolution, of one group and no dilation."""
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and set(layer.dilation) == {1}


def gram_pays(layer: nn.Conv2d, grad: Tensor) -> bool:
    """Whether pairs of positions cost less than the gradient.

    A sum over one tap of the kernel costs some 15 products: it is bound by memory. Kernels for the
    gradient of one sample take about twice the time per product.
    """
    if not has_gram(layer):
        return False
    rows, columns, pixels = _grid(layer, grad)
    positions, (d_out, channels), taps = rows * columns, layer.weight.shape[:2], layer.weight[0, 0]
    phases = min(taps.numel(), math.prod(layer.stride))
    pairs = phases * pixels**2 * channels + positions**2 * (d_out + 15 * taps.numel())
    return pairs < 2 * positions * layer.weight.numel()


def _grid(layer: nn.Conv2d, grad: Tensor) -> tuple[int, int, int]:
    rows, columns = (
        size + (kernel - 1) // step
        for size, kernel, step in zip(grad.shape[2:], layer.kernel_size, layer.stride, strict=True)
    )
    return rows, columns, rows * columns


def conv_gram(layer: nn.Conv2d, source: Tensor, grad: Tensor) -> Tensor:
    """Weight of a 2-D convolution from pairs of positions, without unfolding its input.

    Pairs of patches are sums of pairs of pixels, one for each tap of the kernel: ⟨a_t, a_s⟩ =
    Σ_δ ⟨x_{t+δ}, x_{s+δ}⟩. So the pixels' Gram matrix is taken once, and shifted along its diagonal
    for each tap. With a stride, taps fall into phases, each with its own grid of pixels.

    Args:
        layer: The convolution; `has_gram` holds for it.
        source: Its input, shape (N, channels, height, width).
        grad: Gradient at its output.

    Returns:
        Squared norms, shape (N,).
    """
    source, padding = pad_source(layer, source)
    *_, pixels = _grid(layer, grad)
    parts = chunks(len(grad), 3 * pixels**2 * grad.element_size())
    return torch.cat([_gram_part(layer, source[s], padding, grad[s]) for s in parts])


def _gram_part(layer: Any, source: Tensor, padding: tuple[int, ...], grad: Tensor) -> Tensor:
    (step_y, step_x), (taps_y, taps_x) = layer.stride, layer.kernel_size
    rows, columns, _ = _grid(layer, grad)
    height, width = source.shape[2:]
    (top, left), right = padding, columns * step_x - width - padding[1]
    source = F.pad(source, (left, right, top, rows * step_y - height - top))
    # Outputs lie on the same grid as pixels. Between its rows they are 0, and so are their pairs.
    n_positions = (grad.shape[2] - 1) * columns + grad.shape[3]
    outputs = F.pad(grad, (0, columns - grad.shape[3])).flatten(2)[..., :n_positions]
    output_pairs = outputs.transpose(1, 2) @ outputs
    norms_sq = grad.new_zeros(len(grad))
    for y, x in itertools.product(range(min(step_y, taps_y)), range(min(step_x, taps_x))):
        pixels = source[..., y::step_y, x::step_x].flatten(2)
        n_rows, n_columns = len(range(y, taps_y, step_y)), len(range(x, taps_x, step_x))
        pairs = pixels.transpose(1, 2) @ pixels
        pairs = _shifted_sum(pairs, n_columns, 1, n_positions + (n_rows - 1) * columns)
        pairs = _shifted_sum(pairs, n_rows, columns, n_positions)
        norms_sq += (pairs * output_pairs).sum((1, 2))
    return norms_sq


def _shifted_sum(pairs: Tensor, n: int, shift: int, size: int) -> Tensor:
    total = pairs[:, :size, :size]
    for at in range(shift, n * shift, shift):
        shifted = pairs[:, at : at + size, at : at + size]
        total = total + shifted if at == shift else total.add_(shifted)
    return total


def channel_bias(layer: nn.Module, source: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a bias with one entry per channel, the second axis."""
    return grad.flatten(2).sum(2) if grad.dim() > 2 else grad


def feature_bias(layer: nn.Module, source: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a bias with one entry per feature, the last axis."""
    return grad.flatten(1, -2).sum(1) if grad.dim() > 2 else grad


def channel_scale(layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a scale with one entry per channel: group and instance normalisation."""
    return channel_bias(layer, source, grad * _normalised(layer, source))


def batch_norm_scale(layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    """Gradient of BatchNorm's scale in eval mode: (Σ g·x − μ Σ g)/σ, without forming x̂."""
    rstd = torch.rsqrt(layer.running_var + layer.eps)
    return batch_norm_sums(source, grad, layer.running_mean, rstd)[0]


def batch_norm_sums(
    source: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Per-sample gradients of BatchNorm's scale and bias in eval mode, each (N, channels)."""
    left, right = grad.reshape(*grad.shape[:2], -1), source.reshape(*source.shape[:2], -1)
    offsets, products = left.sum(2), (left * right).sum(2)  # einsum is 5 times slower
    return (products - mean * offsets) * rstd, offsets


def layer_norms_sq(
    layer: Any, names: Collection[str], source: Tensor, grad: Tensor
) -> Tensor | None:
    """Squared norms over weight and bias of a layer together, where that saves work.

    Args:
        layer: The layer.
        names: Its trainable parameters.
        source: Its input.
        grad: Gradient at its output.

    Returns:
        Shape (N,), or None where each parameter's rule may as well be used.
    """
    if len(names) < 2:
        return None
    if type(layer) in BATCH_NORMS:
        rstd = torch.rsqrt(layer.running_var + layer.eps)
        sums = batch_norm_sums(source, grad, layer.running_mean, rstd)
        return row_norms(torch.cat(sums, 1)).square_()
    return None


def shape_bias(layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a bias with the shape of the last axes: layer normalisation."""
    n, inner = len(grad), layer.weight.dim()
    return grad.reshape(n, -1, *grad.shape[grad.dim() - inner :]).sum(1)


def shape_scale(layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a scale with the shape of the last axes: layer and RMS normalisation."""
    return shape_bias(layer, source, grad * _normalised(layer, source))


def _normalised(layer: Any, source: Tensor) -> Tensor:
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(source, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.RMSNorm):
        return F.rms_norm(source, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(source, layer.num_groups, eps=layer.eps)
    own = layer.training or layer.running_mean is None  # statistics of each sample, not stored ones
    mean, var = (None, None) if own else (layer.running_mean, layer.running_var)
    return F.instance_norm(source, mean, var, use_input_stats=own, eps=layer.eps)


def prelu_weight(layer: nn.PReLU, source: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the slope of a PReLU: one for all, or one per channel."""
    slope = grad * source.clamp(max=0)
    if layer.num_parameters == 1:
        return slope.flatten(1).sum(1, keepdim=True)
    return channel_bias(layer, source, slope)


GRADIENTS: dict[type[nn.Module], dict[str, ParameterRule]] = {
    nn.Linear: {"bias": feature_bias},
    **{kind: {"bias": channel_bias} for kind in (*CONVOLUTIONS, *TRANSPOSED)},
    **{
        kind: {"weight": channel_scale, "bias": channel_bias}
        for kind in (*INSTANCE_NORMS, nn.GroupNorm)
    },
    **{kind: {"weight": batch_norm_scale, "bias": channel_bias} for kind in BATCH_NORMS},
    nn.LayerNorm: {"weight": shape_scale, "bias": shape_bias},
    nn.RMSNorm: {"weight": shape_scale},
    nn.PReLU: {"weight": prelu_weight},
}
"""Rule for the per-sample gradient itself, (N, *shape), of each parameter that is a vector."""


def _squared(gradient: ParameterRule, layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    return row_norms(gradient(layer, source, grad)).square_()


RULES: dict[type[nn.Module], dict[str, ParameterRule]] = {
    kind: {name: functools.partial(_squared, rule) for name, rule in gradients.items()}
    for kind, gradients in GRADIENTS.items()
}
"""Rule for the squared norm, (N,), of each parameter of each kind of layer."""
for kind in (*CONVOLUTIONS, *TRANSPOSED):
    RULES[kind]["weight"] = conv_weight
RULES[nn.Linear]["weight"] = linear_weight
RULES[nn.Embedding] = {"weight": embedding_weight}
