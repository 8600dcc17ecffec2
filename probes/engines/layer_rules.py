"""Our own rules for the layers where BackPACK has none, or none that is exact.

BackPACK 1.7.1 has no rule for normalisation layers other than BatchNorm and none for PReLU; its
rule for grouped convolutions treats them as ungrouped (5 % off in our test, without a warning), and
the ones for transposed convolutions and padding modes other than zeros fail or ignore them. All of
these act on each sample alone, so `torch.func` can differentiate the layer sample by sample. Its
rule for embeddings refuses a padding index and forms a gradient the size of the vocabulary for each
sample; ours does neither.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

_BY_DIFFERENTIATION = {
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.PReLU,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
}

NormRule = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Layer, its input and its output's gradient, each (N, ...), to squared norms of shape (N,)."""


def own_rule(layer: nn.Module) -> NormRule | None:
    """Our rule for a layer, or None where BackPACK's is exact, or nothing is known."""
    if type(layer) is nn.Embedding:
        return embedding_norms_sq
    if type(layer) in _BY_DIFFERENTIATION:
        return differentiated_norms_sq
    if type(layer) in {nn.Conv1d, nn.Conv2d, nn.Conv3d}:
        conv = cast("nn.Conv2d", layer)
        plain = conv.groups == 1 and conv.padding_mode == "zeros" and conv.padding != "same"
        return None if plain else differentiated_norms_sq
    return None


def embedding_norms_sq(layer: nn.Module, source: Tensor, grad: Tensor) -> Tensor:
    """Squared norm of each sample's gradient with respect to an embedding's weight.

    Positions with the same index add before squaring: Σ_{t,s} [i_t = i_s] ⟨g_t, g_s⟩, without the
    padding index, so nothing of the size of the vocabulary is formed.

    Args:
        layer: An `nn.Embedding`.
        source: Indices, shape (N, ...).
        grad: Gradient of the total loss at the output, shape (N, ..., D).

    Returns:
        Shape (N,).
    """
    indices = source.flatten(1) if source.dim() > 1 else source.unsqueeze(1)
    grad = grad.reshape(*indices.shape, -1)
    padding = cast("nn.Embedding", layer).padding_idx
    if padding is not None:
        grad = grad * (indices != padding).unsqueeze(-1)
    same = indices.unsqueeze(1) == indices.unsqueeze(2)
    return ((grad @ grad.transpose(1, 2)) * same).sum((1, 2))


def differentiated_norms_sq(layer: nn.Module, source: Tensor, grad: Tensor) -> Tensor:
    """Squared norm of each sample's gradient, by differentiating the layer sample by sample.

    Args:
        layer: A layer that treats each sample by itself.
        source: The layer's input, shape (N, ...).
        grad: Gradient of the total loss at the layer's output, shape (N, ...).

    Returns:
        ‖∂L/∂w‖² over the layer's own trainable parameters for each sample, shape (N,).

    Cost: one more forward and backward of the layer, and N copies of its parameters' gradient.
    """
    parameters = {name: p.detach() for name, p in layer.named_parameters() if p.requires_grad}
    parameters = {name: p.to(grad.dtype) for name, p in parameters.items()}
    frozen = {name: p.detach() for name, p in layer.named_parameters() if not p.requires_grad}
    rest = {**frozen, **dict(layer.named_buffers())}
    bare = _without_hooks(layer)

    def norm_sq(sample: Tensor, sample_grad: Tensor) -> Tensor:
        def output(trainable: dict[str, Tensor]) -> Tensor:
            result: Tensor = functional_call(bare, {**rest, **trainable}, sample.unsqueeze(0))
            return result

        pull_back = vjp(output, parameters)[1]
        (gradients,) = pull_back(sample_grad.unsqueeze(0))
        return torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()

    result: Tensor = vmap(norm_sq)(source, grad)
    return result


def _without_hooks(layer: nn.Module) -> nn.Module:
    """The same layer, sharing its parameters, but calling it triggers nobody's hooks."""
    bare = copy.copy(layer)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(bare, hooks, OrderedDict())
    return bare
