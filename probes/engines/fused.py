"""Per-sample norms at almost the price of the backward pass: the layer's own backward takes them.

In linear layers over sequences and in convolutions, the weight's gradient is a sum of per-sample
gradients. Here the backward pass forms those, takes their norms, and adds them up to the gradient
that training uses, so nothing is computed twice. Where comparing positions is cheaper, that stands
beside the ordinary gradient instead, and so does an estimate where one is asked for; which way is
fastest, is measured once for each layer and shape. A linear layer over single vectors keeps its own
backward pass: two norms per sample are all it takes.

Gradients equal those of plain training to rounding, not bit for bit: the order of additions
differs.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from probes.compiled import graph_break
from probes.engines.backpack import BackpackEngine
from probes.engines.capture import NormCapture
from probes.engines.layer_rules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    batch_norm_sums,
    chunks,
    conv_gradients,
    conv_gram,
    has_gram,
    outer_norms_sq,
    pad_source,
    row_norms,
)
from probes.engines.units import Unit


class Parts(NamedTuple):
    """Gradient of the weight, and its squared norm for each sample, exact or estimated."""

    total: Tensor
    norms_sq: Tensor
    variance: Tensor | None = None


Estimate = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From layer, input and output gradient to squared norms of the weight and their variance."""

_ROUNDS = 5
_LARGE = 2**16  # entries of a weight, from which on its gradients for a batch leave the cache
_FULL_PRECISION = (torch.float32, torch.float64)

_ROUTES: dict[Any, int] = {}
"""Index of the fastest route for each kind of layer and shape measured so far."""


class FusedEngine(BackpackEngine):
    """Like `BackpackEngine`, with the backward passes of the dearest layers replaced."""

    fused_kinds: ClassVar[set[type[nn.Module]]] = {nn.Linear, *CONVOLUTIONS, *BATCH_NORMS}
    estimate: Estimate | None = None

    def attach(self, *, graph_breaks: bool = True) -> None:
        """Place the hooks, and replace the layers' forward functions."""
        self._fused_eagerly = graph_break(self._run_fused) if graph_breaks else self._run_fused
        super().attach(graph_breaks=graph_breaks)

    def _attach_unit(self, unit: Unit) -> None:
        if unit.has_rule and not unit.shares and self._fuses(unit):
            forward = functools.partial(self._forward_fused, unit, unit.module.forward)
            unit.module.forward = forward
            self._handles.append(_ForwardRestorer(unit.module))  # type: ignore[arg-type]
        else:
            super()._attach_unit(unit)

    def _fuses(self, unit: Unit) -> bool:
        """Whether a layer's backward pass is replaced; not if a parameter of it is frozen."""
        everything = {name for name, _ in unit.module.named_parameters()}
        return type(unit.module) in self.fused_kinds and everything == unit.parameters.keys()

    def _forward_fused(
        self, unit: Unit, original: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        if not (self.armed and torch.is_grad_enabled()):
            return original(*args, **kwargs)
        source = args[0] if args else kwargs["input"]
        layer: Any = unit.module
        if source.dim() < _least_axes(layer):
            return original(*args, **kwargs)
        if isinstance(layer, nn.Linear) and source.dim() == 2:
            output = original(*args, **kwargs)
            self._after_forward(unit, layer, args, kwargs, output)
            return output
        return self._fused_eagerly(unit, source)

    def _run_fused(self, unit: Unit, source: Tensor) -> Tensor:
        layer: Any = unit.module
        capture = self._current_capture()
        if capture is not None:
            capture.count(unit)
        sink = _Sink(self, capture, unit)
        weight, bias = layer.weight, layer.bias
        device = source.device.type
        if not torch.is_autocast_enabled(device):
            return self._apply_fused(layer, source, weight, bias, sink)
        dtype = torch.get_autocast_dtype(device)
        source, weight = source.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            return self._apply_fused(layer, source, weight, bias, sink)

    @staticmethod
    def _apply_fused(layer: Any, source: Tensor, weight: Tensor, bias: Any, sink: Any) -> Tensor:
        if isinstance(layer, BATCH_NORMS):
            return _FusedBatchNorm.apply(source, weight, bias, layer, sink)  # type: ignore[no-untyped-call]
        if isinstance(layer, nn.Linear):
            return _FusedLinear.apply(source, weight, bias, layer, sink)  # type: ignore[no-untyped-call]
        return _FusedConv.apply(source, weight, bias, layer, sink)  # type: ignore[no-untyped-call]


class _Sink:
    """Where a layer's backward pass puts its norms."""

    def __init__(self, engine: FusedEngine, capture: NormCapture | None, unit: Unit) -> None:
        self._engine = engine
        self._capture = capture
        self._unit = unit

    def estimated(
        self, layer: Any, source: Tensor, grad: Tensor, total: Callable[[], Tensor]
    ) -> list[Callable[[], Parts]]:
        """One more route, if norms may be estimated and this is a layer that it pays for."""
        estimate = self._engine.estimate
        if estimate is None or not worth_estimating(layer, grad):
            return []
        return [lambda: Parts(total(), *estimate(layer, source, grad))]

    def put(
        self, norms_sq: Tensor, source: Tensor, grad: Tensor, variance: Tensor | None = None
    ) -> None:
        """Take the norms, or, of a layer used several times, what they can be made from later."""
        capture, unit = self._capture, self._unit
        if capture is None or not self._engine._is_first(capture, unit):
            return
        if capture.uses(unit) == 1:
            capture.norms_sq[unit.block] = norms_sq
            if variance is not None:
                capture.variances[unit.block] = variance
        else:
            use = self._engine._use(unit, (_float(source),), {}, _float(grad))
            capture.later[unit].append(use)
        capture.fused.update(unit.parameters.values())


class _ForwardRestorer:
    """Takes the place of a hook's handle: removing it gives the layer its forward back."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def remove(self) -> None:
        del self._module.forward


def worth_estimating(layer: Any, grad: Tensor) -> bool:
    """Whether a layer maps several positions of each sample, and without groups."""
    if isinstance(layer, nn.Linear):
        return grad.dim() > 2 and grad[0, ..., 0].numel() > 1
    return type(layer) in CONVOLUTIONS and layer.groups == 1


def _least_axes(layer: Any) -> int:
    return int(layer.weight.dim()) if isinstance(layer, CONVOLUTIONS) else 2


def fastest(key: Any, routes: Sequence[Callable[[], Parts]]) -> Parts:
    """Run the route that was fastest for this key; the first time, all of them.

    Args:
        key: Kind of layer, shapes, dtype and device.
        routes: Ways to the same result.

    Returns:
        The result.
    """
    if len(routes) == 1:
        return routes[0]()
    if key not in _ROUTES:
        # In turns, so that a busy moment of the machine falls on all of them; the least of several
        # is what a route costs without such moments.
        rounds = [[_time(route) for route in routes] for _ in range(_ROUNDS)]
        times = [min(times) for times in zip(*rounds, strict=True)]
        _ROUTES[key] = times.index(min(times))
    return routes[_ROUTES[key]]()


def _time(route: Callable[[], Parts]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        start = time.perf_counter()
        route()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.thread_time()  # while others have the core, nothing is counted
    route()
    return time.thread_time() - start


def _float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _add_up(gradients: Tensor) -> Parts:
    """Per-sample gradients (n, ...) to their sum and their squared norms."""
    flat = gradients.flatten(1)
    ones = flat.new_ones(1, len(flat))
    return Parts((ones @ flat).view(gradients.shape[1:]), row_norms(flat).square_())


def _in_chunks(n: int, bytes_each: int, form: Callable[[slice], Tensor]) -> Parts:
    total: Tensor | None = None
    norms = []
    for rows in chunks(n, bytes_each):
        part = _add_up(_float(form(rows)))
        total = part.total if total is None else total.add_(part.total)
        norms.append(part.norms_sq)
    return Parts(cast("Tensor", total), torch.cat(norms))


def _one_by_one(left: Tensor, right: Tensor) -> Parts:
    """Form a linear layer's gradients in one place, which stays in the processor's cache."""
    each = left.new_empty(left.shape[2], right.shape[2])
    total, norms = torch.zeros_like(each), []
    for sample_left, sample_right in zip(left, right, strict=True):
        torch.mm(sample_left.t(), sample_right, out=each)
        total.add_(each)
        norms.append(torch.linalg.vector_norm(each))
    return Parts(total, torch.stack(norms).square_())


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, sink: Any
    ) -> Tensor:
        ctx.save_for_backward(source, weight)
        ctx.layer, ctx.sink, ctx.has_bias = layer, sink, bias is not None
        output = F.linear(source, weight, bias)
        # Autograd lets nothing change a view that a function of one's own returned.
        return torch.ops.aten._unsafe_view(output, output.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, weight = ctx.saved_tensors
        n, (d_out, d_in) = len(source), weight.shape
        left, right = grad.reshape(n, -1, d_out), source.reshape(n, -1, d_in)
        flat_left, flat_right = left.reshape(-1, d_out), right.reshape(-1, d_in)

        def plain() -> Tensor:
            return flat_left.t() @ flat_right

        def pairs() -> Parts:
            return Parts(plain(), outer_norms_sq(_float(left), _float(right)))

        def formed() -> Parts:
            return _in_chunks(n, 4 * d_in * d_out, lambda s: left[s].transpose(1, 2) @ right[s])

        routes = [pairs, formed] if left.shape[1] > 1 else [pairs]
        if left.shape[1] > 1 and weight.numel() >= _LARGE and grad.dtype in _FULL_PRECISION:
            routes.append(lambda: _one_by_one(left, right))
        routes += ctx.sink.estimated(ctx.layer, source, grad, plain)
        key = ("linear", len(routes), left.shape, right.shape, grad.dtype, grad.device)
        total, norms_sq, variance = fastest(key, routes)
        bias_grad = None
        if ctx.has_bias:
            each = _float(left).sum(1)
            norms_sq = norms_sq + row_norms(each).square_()
            bias_grad = each.sum(0).to(grad.dtype)
        ctx.sink.put(norms_sq, source, grad, variance)
        source_grad = (flat_left @ weight).view(source.shape) if ctx.needs_input_grad[0] else None
        return source_grad, total.to(weight.dtype), bias_grad, None, None


class _FusedBatchNorm(torch.autograd.Function):
    """BatchNorm in eval mode: an affine map of each sample, with fixed statistics."""

    @staticmethod
    def forward(
        ctx: Any, source: Tensor, weight: Tensor, bias: Tensor, layer: Any, sink: Any
    ) -> Tensor:
        mean, var = layer.running_mean, layer.running_var
        ctx.save_for_backward(source, weight, mean, var)
        ctx.eps, ctx.sink = layer.eps, sink
        return F.batch_norm(source, mean, var, weight, bias, eps=layer.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, weight, mean, var = ctx.saved_tensors
        rstd = torch.rsqrt(var + ctx.eps)
        scales, offsets = batch_norm_sums(_float(source), _float(grad), mean, rstd)
        ctx.sink.put(row_norms(torch.cat([scales, offsets], 1)).square_(), source, grad)
        source_grad = None
        if ctx.needs_input_grad[0]:
            shape = (1, -1, *[1] * (grad.dim() - 2))
            source_grad = grad * (weight * rstd).to(grad.dtype).view(shape)
        kind = weight.dtype
        return source_grad, scales.sum(0).to(kind), offsets.sum(0).to(kind), None, None


class _FusedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, sink: Any
    ) -> Tensor:
        ctx.save_for_backward(source, weight)
        ctx.layer, ctx.sink, ctx.has_bias = layer, sink, bias is not None
        return layer._conv_forward(source, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, weight = ctx.saved_tensors
        layer, n = ctx.layer, len(source)
        padded, padding = pad_source(layer, source)

        def plain(mask: tuple[bool, bool, bool]) -> Any:
            return torch.ops.aten.convolution_backward(
                grad,
                padded,
                weight,
                None,
                layer.stride,
                padding,
                layer.dilation,
                False,
                layer.output_padding,
                layer.groups,
                mask,
            )

        def plain_weight() -> Tensor:
            return cast("Tensor", plain((False, True, False))[1])

        def pairs() -> Parts:
            return Parts(plain_weight(), conv_gram(layer, _float(source), _float(grad)))

        routes: list[Callable[[], Parts]] = [
            lambda: _in_chunks(
                n, 4 * weight.numel(), lambda s: conv_gradients(layer, source[s], grad[s])
            )
        ]
        if has_gram(layer) and grad[0, 0].numel() <= 256:
            routes.append(pairs)
        routes += ctx.sink.estimated(layer, source, grad, plain_weight)
        key = (str(layer), len(routes), source.shape, grad.dtype, grad.device)
        total, norms_sq, variance = fastest(key, routes)
        bias_grad = None
        if ctx.has_bias:
            each = _float(grad).flatten(2).sum(2)
            norms_sq = norms_sq + row_norms(each).square_()
            bias_grad = each.sum(0).to(grad.dtype)
        ctx.sink.put(norms_sq, source, grad, variance)
        source_grad = None
        if ctx.needs_input_grad[0]:
            source_grad = plain((True, False, False))[0]
            if padded is not source:
                source_grad = _unpad(layer, source, source_grad)
        return source_grad, total.to(weight.dtype), bias_grad, None, None


def _unpad(layer: Any, source: Tensor, padded_grad: Tensor) -> Tensor:
    """Gradient at the input from the gradient at the padded input."""
    with torch.enable_grad():
        leaf = source.detach().requires_grad_()
        padded, _ = pad_source(layer, leaf)
    return torch.autograd.grad(padded, leaf, padded_grad)[0]
