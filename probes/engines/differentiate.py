"""Per-sample gradients of any module that treats each sample by itself.

Through `torch.func`, all samples at once; where that does not know an operation, one by one.
"""

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap


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

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.grad.shape[self.sample_axis]


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

    def is_batched(value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > axis and value.shape[axis] == n

    inputs = [*use.args, *use.kwargs.values()]
    batched = [value.movedim(axis, 0)[rows] for value in inputs if is_batched(value)]
    grads = use.grad.movedim(axis, 0)[rows]

    def single(samples: Iterable[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        remaining = iter(samples)
        own = [next(remaining).unsqueeze(axis) if is_batched(v) else v for v in inputs]
        return tuple(own[: len(use.args)]), dict(zip(use.kwargs, own[len(use.args) :], strict=True))

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
    with torch.enable_grad():
        values = {name: p.requires_grad_() for name, p in _values(use).items()}
        output = _run(use.module, values, args, dict(kwargs))
        gradients = torch.autograd.grad(output, list(values.values()), grad, allow_unused=True)
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
