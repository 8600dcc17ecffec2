"""Per-sample norms at almost the price of the backward pass: the layer's own backward takes them.

In linear layers over sequences and in convolutions, the weight's gradient is a sum of per-sample
gradients. Here the backward pass forms those, takes their norms, and adds them up to the gradient
that training uses, so nothing is computed twice. Where comparing positions is cheaper, that stands
beside the ordinary gradient instead; which of the two, is measured once for each layer and shape.

Gradients equal those of plain training to rounding, not bit for bit: the order of additions
differs.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from probes.compiled import graph_break
from probes.engines.backpack import BackpackEngine, NormCapture
from probes.engines.layer_rules import (
    BATCH_NORMS,
    CONVOLUTIONS,
    chunks,
    conv_gradients,
    outer_norms_sq,
    pad_source,
    row_norms,
    unfold,
)
from probes.engines.units import Unit

Parts = tuple[Tensor, Tensor]
"""Gradient of the weight, and its squared norm for each sample."""

_ROUTES: dict[Any, int] = {}
"""Index of the fastest route for each kind of layer and shape measured so far."""


class FusedEngine(BackpackEngine):
    """Like `BackpackEngine`, with the backward passes of the dearest layers replaced."""

    fused_kinds: ClassVar[set[type[nn.Module]]] = {nn.Linear, *CONVOLUTIONS, *BATCH_NORMS}

    def _attach_unit(self, unit: Unit) -> None:
        if unit.has_rule and not unit.shares and self._fuses(unit):
            self._fused_eagerly = graph_break(self._run_fused)
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
        source = args[0] if args else kwargs["input"]
        layer: Any = unit.module
        if not (self.armed and torch.is_grad_enabled()) or source.dim() < _least_axes(layer):
            return original(*args, **kwargs)
        return self._fused_eagerly(unit, source)

    def _run_fused(self, unit: Unit, source: Tensor) -> Tensor:
        layer: Any = unit.module
        capture = self._current_capture()
        if capture is not None:
            capture.count(unit)
        sink = _Sink(self, capture, unit)
        weight, bias = layer.weight, layer.bias
        device = source.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            source, weight = source.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            if isinstance(layer, BATCH_NORMS):
                return _FusedBatchNorm.apply(source, weight, bias, layer, sink)  # type: ignore[no-untyped-call]
            if isinstance(layer, nn.Linear):
                return _FusedLinear.apply(source, weight, bias, sink)  # type: ignore[no-untyped-call]
            return _FusedConv.apply(source, weight, bias, layer, sink)  # type: ignore[no-untyped-call]


class _Sink:
    """Where a layer's backward pass puts its norms."""

    def __init__(self, engine: FusedEngine, capture: NormCapture | None, unit: Unit) -> None:
        self._engine = engine
        self._capture = capture
        self._unit = unit

    def put(self, norms_sq: Tensor, source: Tensor, grad: Tensor) -> None:
        """Take the norms, or, of a layer used several times, what they can be made from later."""
        capture, unit = self._capture, self._unit
        if capture is None or not self._engine._is_first(capture, unit):
            return
        if capture.uses(unit) == 1:
            capture.norms_sq[unit.block] = norms_sq
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
        times = [min(_time(route) for _ in range(3)) for route in routes]
        _ROUTES[key] = times.index(min(times))
    return routes[_ROUTES[key]]()


def _time(route: Callable[[], Parts]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    route()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _add_up(gradients: Tensor) -> Parts:
    """Per-sample gradients (n, ...) to their sum and their squared norms."""
    flat = gradients.flatten(1)
    ones = flat.new_ones(1, len(flat))
    return (ones @ flat).view(gradients.shape[1:]), row_norms(flat).square_()


def _in_chunks(n: int, bytes_each: int, form: Callable[[slice], Tensor]) -> Parts:
    total: Tensor | None = None
    norms = []
    for rows in chunks(n, bytes_each):
        part, norm = _add_up(_float(form(rows)))
        total = part if total is None else total + part
        norms.append(norm)
    return cast("Tensor", total), torch.cat(norms)


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, weight: Tensor, bias: Tensor | None, sink: Any) -> Tensor:
        ctx.save_for_backward(source, weight)
        ctx.sink, ctx.has_bias = sink, bias is not None
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

        def pairs() -> Parts:
            return flat_left.t() @ flat_right, outer_norms_sq(_float(left), _float(right))

        def formed() -> Parts:
            return _in_chunks(n, 4 * d_in * d_out, lambda s: left[s].transpose(1, 2) @ right[s])

        key = ("linear", left.shape, right.shape, grad.dtype, grad.device)
        single = left.shape[1] == 1
        total, norms_sq = fastest(key, [pairs] if single else [pairs, formed])
        bias_grad = None
        if ctx.has_bias:
            each = _float(flat_left) if single else _float(left).sum(1)
            norms_sq = norms_sq + row_norms(each).square_()
            bias_grad = each.sum(0).to(grad.dtype)
        ctx.sink.put(norms_sq, source, grad)
        source_grad = (flat_left @ weight).view(source.shape) if ctx.needs_input_grad[0] else None
        return source_grad, total.to(weight.dtype), bias_grad, None


class _FusedBatchNorm(torch.autograd.Function):
    """BatchNorm in eval mode: an affine map of each sample, with fixed statistics."""

    @staticmethod
    def forward(
        ctx: Any, source: Tensor, weight: Tensor, bias: Tensor, layer: Any, sink: Any
    ) -> Tensor:
        mean, var = layer.running_mean, layer.running_var
        ctx.save_for_backward(source, weight, mean, torch.rsqrt(var + layer.eps))
        ctx.sink = sink
        return F.batch_norm(source, mean, var, weight, bias, eps=layer.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, weight, mean, rstd = ctx.saved_tensors
        left, right = (t.reshape(*t.shape[:2], -1) for t in (grad, source))
        offsets = _float(left).sum(2)
        products = torch.einsum("ncl,ncl->nc", _float(left), _float(right))
        scales = (products - mean * offsets) * rstd
        ctx.sink.put(row_norms(scales).square_() + row_norms(offsets).square_(), source, grad)
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

        def pairs() -> Parts:
            right = _float(unfold(layer, source)).transpose(1, 2)
            left = _float(grad).flatten(2).transpose(1, 2)
            return plain((False, True, False))[1], outer_norms_sq(left, right)

        routes = [
            lambda: _in_chunks(
                n, 4 * weight.numel(), lambda s: conv_gradients(layer, source[s], grad[s])
            )
        ]
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and grad[0, 0].numel() <= 256:
            routes.append(pairs)
        key = (str(layer), source.shape, grad.dtype, grad.device)
        total, norms_sq = fastest(key, routes)
        bias_grad = None
        if ctx.has_bias:
            each = _float(grad).flatten(2).sum(2)
            norms_sq = norms_sq + row_norms(each).square_()
            bias_grad = each.sum(0).to(grad.dtype)
        ctx.sink.put(norms_sq, source, grad)
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
