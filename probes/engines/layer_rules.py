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

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY_BUDGET = 64 * 2**20
"""Bytes that per-sample gradients of one layer may take at a time."""

ParameterRule = Callable[[Any, Tensor, Tensor], Tensor]
"""Layer, input and output gradient, each (N, ...), to squared norms of one parameter, (N,)."""

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
    n, t, p = left.shape
    q = right.shape[2]
    if t == 1:
        return (row_norms(left) * row_norms(right)).square_()
    if t * (p + q) < p * q:
        parts = [
            (left[s] @ left[s].transpose(1, 2)).mul_(right[s] @ right[s].transpose(1, 2))
            for s in chunks(n, 2 * t * t * left.element_size())
        ]
    else:
        parts = [left[s].transpose(1, 2) @ right[s] for s in chunks(n, p * q * left.element_size())]
        return torch.cat([row_norms(part).square_() for part in parts])
    return torch.cat([part.sum((1, 2)).clamp_(min=0) for part in parts])


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
    if _gram_pays(layer, source, grad):
        unfolded = unfold(layer, source)
        return outer_norms_sq(grad.flatten(2).transpose(1, 2), unfolded.transpose(1, 2))
    bytes_each = layer.weight.numel() * grad.element_size()
    parts = [
        row_norms(conv_gradients(layer, source[s], grad[s])).square_()
        for s in chunks(len(source), bytes_each)
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


def _gram_pays(layer: nn.Conv2d, source: Tensor, grad: Tensor) -> bool:
    """Whether pairs of positions cost less than the gradient; a factor 2 is for the unfolding."""
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or layer.transposed:
        return False
    positions = grad[0, 0].numel()
    d_out, d_in = layer.weight.shape[0], layer.weight[0].numel()
    return 2 * positions * (d_in + d_out) < d_in * d_out


def unfold(layer: nn.Conv2d, source: Tensor) -> Tensor:
    """Patches that a 2-D convolution sees, shape (n, channels × kernel, positions)."""
    source, padding = pad_source(layer, source)
    return F.unfold(source, layer.kernel_size, layer.dilation, padding, layer.stride)


def channel_bias(layer: nn.Module, source: Tensor, grad: Tensor) -> Tensor:
    """Bias with one entry per channel, the second axis."""
    return row_norms(grad.flatten(2).sum(2) if grad.dim() > 2 else grad).square_()


def feature_bias(layer: nn.Module, source: Tensor, grad: Tensor) -> Tensor:
    """Bias with one entry per feature, the last axis."""
    return row_norms(grad.flatten(1, -2).sum(1) if grad.dim() > 2 else grad).square_()


def channel_scale(layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    """Scale with one entry per channel: group and instance normalisation."""
    return channel_bias(layer, source, grad * _normalised(layer, source))


def batch_norm_scale(layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    """Scale of batch normalisation in eval mode: (Σ g·x − μ Σ g)/σ, without forming x̂."""
    left, right = grad.reshape(*grad.shape[:2], -1), source.reshape(*source.shape[:2], -1)
    products = torch.einsum("ncl,ncl->nc", left, right)
    centred = products - layer.running_mean * left.sum(2)
    return row_norms(centred * torch.rsqrt(layer.running_var + layer.eps)).square_()


def shape_bias(layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    """Bias with the shape of the last axes: layer normalisation."""
    n, inner = len(grad), layer.weight.dim()
    return row_norms(grad.reshape(n, -1, *grad.shape[grad.dim() - inner :]).sum(1)).square_()


def shape_scale(layer: Any, source: Tensor, grad: Tensor) -> Tensor:
    """Scale with the shape of the last axes: layer and root-mean-square normalisation."""
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
    """Slope of a PReLU: one for all, or one per channel."""
    slope = grad * source.clamp(max=0)
    if layer.num_parameters == 1:
        return slope.flatten(1).sum(1).square()
    return channel_bias(layer, source, slope)


RULES: dict[type[nn.Module], dict[str, ParameterRule]] = {
    nn.Linear: {"weight": linear_weight, "bias": feature_bias},
    nn.Embedding: {"weight": embedding_weight},
    **{
        kind: {"weight": conv_weight, "bias": channel_bias} for kind in (*CONVOLUTIONS, *TRANSPOSED)
    },
    **{
        kind: {"weight": channel_scale, "bias": channel_bias}
        for kind in (*INSTANCE_NORMS, nn.GroupNorm)
    },
    **{kind: {"weight": batch_norm_scale, "bias": channel_bias} for kind in BATCH_NORMS},
    nn.LayerNorm: {"weight": shape_scale, "bias": shape_bias},
    nn.RMSNorm: {"weight": shape_scale},
    nn.PReLU: {"weight": prelu_weight},
}
"""Rule for each parameter of each kind of layer."""
