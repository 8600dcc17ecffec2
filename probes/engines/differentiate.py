"""Per-sample gradients of any module that treats each sample by itself.

Through `torch.func`, all samples at once; where that does not know an operation, one by one.
"""

import contextlib
import functools
import inspect
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from probes.engines.layer_rules import chunks

Axes = tuple[int | None, ...]
"""For each value among a module's inputs, the axis that counts samples; None if there is none."""


@dataclass(frozen=True)
class Use:
    """One use of a module in a forward pass.

    Attributes:
        module: The module.
        parameters: Its trainable parameters, by name.
        args: Its positional inputs, detached.
        kwargs: Its named inputs, detached.
        grad: Gradient of the total loss at its (first) output.
        sample_axis: Axis that counts the samples.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad: Tensor
    sample_axis: int
    axes: Axes

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.grad.shape[self.sample_axis]


def find_axes(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], axis: int, n: int
) -> Axes:
    """Which axis of each input counts the samples.

    Attention masks and recurrent states have axes of their own; otherwise it is the given axis,
    where that is as long as there are samples. That can be chance, which `fits` is there for.

    Args:
        module: The module.
        args: Its positional inputs.
        kwargs: Its named inputs.
        axis: Axis of its output that counts the samples.
        n: Number of samples.

    Returns:
        An axis or None for each leaf of the inputs.
    """
    names = [*inspect.signature(module.forward).parameters]
    named = [*zip([*names, *[""] * len(args)], args, strict=False), *kwargs.items()]
    leaves = [(name, leaf) for name, value in named for leaf in tree_leaves(value)]
    return tuple(_axis_of(module, name, leaf, axis, n) for name, leaf in leaves)


def _axis_of(module: nn.Module, name: str, leaf: Any, axis: int, n: int) -> int | None:
    if not isinstance(leaf, Tensor):
        return None
    if isinstance(module, nn.MultiheadAttention) and "mask" in name:
        # (N, T) of keys, (N · heads, T, T) of pairs, or (T, T) for all samples
        return None if name == "attn_mask" and leaf.dim() == 2 else 0
    if isinstance(module, nn.RNNBase) and name == "hx":
        axis = 1
    return axis if leaf.dim() > axis and leaf.shape[axis] == n else None


def fits(axes: Axes, args: tuple[Any, ...], kwargs: dict[str, Any], n: int) -> bool:
    """Whether axes found for an earlier batch can be those of this one."""
    leaves = tree_leaves((args, kwargs))
    return len(leaves) == len(axes) and all(
        at is None or (isinstance(leaf, Tensor) and leaf.dim() > at and leaf.shape[at] % n == 0)
        for leaf, at in zip(leaves, axes, strict=True)
    )


def per_sample_gradients(use: Use, rows: slice) -> dict[str, Tensor]:
    """Gradient of the total loss with respect to a module's parameters, for each sample.

    The module runs once more on each sample, all samples at once where `torch.func.vmap` knows its
    operations, and one after the other where it does not.

    Args:
        use: The module, its inputs and the gradient at its output.
        rows: Samples to take.

    Returns:
        By parameter name, shape (n, *parameter.shape).

    Raises:
        RuntimeError: If the module does not run on single samples.
    """
    axis, n = use.sample_axis, use.n
    leaves, structure = tree_flatten((use.args, use.kwargs))
    batched = [
        leaf.unflatten(at, (n, -1)).movedim(at, 0)[rows]
        for leaf, at in zip(leaves, use.axes, strict=True)
        if at is not None
    ]
    grads = use.grad.movedim(axis, 0)[rows]

    def single(samples: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        remaining = iter(samples)
        own = [
            leaf if at is None else next(remaining)
            for leaf, at in zip(leaves, use.axes, strict=True)
        ]
        args, kwargs = tree_unflatten(own, structure)
        return args, kwargs

    def differentiated(grad: Tensor, *samples: Tensor) -> dict[str, Tensor]:
        args, kwargs = single(samples)
        parameters = _values(use)
        pull_back = vjp(lambda values: _run(use.module, values, args, kwargs), parameters)[1]
        pulled: dict[str, Tensor] = pull_back(grad.unsqueeze(axis))[0]
        return pulled

    with _hooks_off(use.module):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # vmap warns where it is slow, which is no news
                stacked: dict[str, Tensor] = vmap(differentiated)(grads, *batched)
                return stacked
        except (RuntimeError, NotImplementedError):  # torch.func does not know all operations
            each = []
            for grad, *samples in zip(grads, *batched, strict=True):
                args, kwargs = single(samples)
                each.append(_gradients(use, args, kwargs, grad.unsqueeze(axis)))
            return {name: torch.stack([one[name] for one in each]) for name in use.parameters}


class NotSampleBySampleError(Exception):
    """What a module raised when it was run on single samples."""


def summed_gradients(uses: Sequence[Use]) -> Iterator[tuple[slice, dict[nn.Parameter, Tensor]]]:
    """Per-sample gradients of parameters, added up over all of their uses.

    Args:
        uses: Uses of modules in one pass over the same samples.

    Yields:
        Some samples, as many as fit into the memory budget, and the gradient of each parameter.

    Raises:
        NotSampleBySampleError: If a module does not run on single samples.
    """
    together: dict[nn.Parameter, list[tuple[int, str]]] = defaultdict(list)
    for index, use in enumerate(uses):
        for name, parameter in use.parameters.items():
            together[parameter].append((index, name))
    if not uses:
        return
    for rows in chunks(uses[0].n, sum(p.numel() * p.element_size() for p in together)):
        try:
            gradients = [per_sample_gradients(use, rows) for use in uses]
        except Exception as error:  # whatever a user's own module raises on one sample
            raise NotSampleBySampleError(str(error)) from error
        yield (
            rows,
            {
                parameter: functools.reduce(torch.add, (gradients[i][k] for i, k in places))
                for parameter, places in together.items()
            },
        )


def batch_gradients(use: Use) -> dict[str, Tensor]:
    """Gradient of the total loss with respect to a module's parameters, from one use of it.

    Args:
        use: The module, its inputs and the gradient at its output.

    Returns:
        By parameter name, shape of the parameter.
    """
    with _hooks_off(use.module):
        return _gradients(use, use.args, use.kwargs, use.grad)


def _gradients(
    use: Use, args: tuple[Any, ...], kwargs: Mapping[str, Any], grad: Tensor
) -> dict[str, Tensor]:
    """The same by plain autograd, which takes any module that training takes."""
    # torch 2.13 crashes in GroupNorm on channels-last input whose gradient nobody asks for.
    args, named = tree_map_only(Tensor, Tensor.contiguous, (args, dict(kwargs)))
    with torch.enable_grad():
        values = {name: p.requires_grad_() for name, p in _values(use).items()}
        output = _run(use.module, values, args, named)
        # Of a sum: for a given output gradient, torch imports sympy, which takes 60 MiB.
        total = (output * grad).sum()
        gradients = torch.autograd.grad(total, list(values.values()), allow_unused=True)
    return {
        name: torch.zeros_like(value) if gradient is None else gradient
        for (name, value), gradient in zip(values.items(), gradients, strict=True)
    }


def _values(use: Use) -> dict[str, Tensor]:
    return {name: p.detach().to(use.grad.dtype) for name, p in use.parameters.items()}


def _run(
    module: nn.Module, values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    frozen = {name: t.detach() for name, t in module.named_parameters() if name not in values}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    result = functional_call(module, {**frozen, **buffers, **values}, args, kwargs)
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first


@contextlib.contextmanager
def _hooks_off(module: nn.Module) -> Iterator[None]:
    """Let calls of a module trigger nobody's hooks, ours or the user's."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    places = [(part, kind, getattr(part, kind)) for part in module.modules() for kind in kinds]
    try:
        for part, kind, _ in places:
            setattr(part, kind, OrderedDict())
        yield
    finally:
        for part, kind, hooks in places:
            setattr(part, kind, hooks)
