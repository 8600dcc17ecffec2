"""Per-sample squared gradient norms from whatever backward pass comes, by BackPACK's mechanism.

A forward hook on each unit keeps its input and hangs a hook on its output; when the backward pass
brings the output's gradient, BackPACK's `BatchL2Grad`, with our rules registered in it, turns both
into ‖∂L/∂w‖² per sample. The hooks are ours rather than BackPACK's own, so nothing global is
switched on, in-place activations are no problem (a hook on the output tensor sees the gradient of
the value before it is overwritten), and nothing stays on the model. Training's own gradients are
untouched.

Parameters that are used more than once (tied weights, a layer called twice) are added over their
uses before squaring. Modules without a rule are differentiated as a whole. The first backward pass
is a self-test: for every parameter, the uses that the hooks have seen must explain the gradient
that training itself computed.
"""

import functools
from collections import defaultdict
from typing import Any

import torch
from backpack.extensions import BatchL2Grad
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from probes.compiled import graph_break
from probes.engines.capture import NO_TASK as _NO_TASK
from probes.engines.capture import NormCapture as NormCapture
from probes.engines.capture import behind_views
from probes.engines.differentiate import (
    Axes,
    Use,
    batch_gradients,
    find_axes,
    fits,
    per_sample_gradients,
)
from probes.engines.layer_rules import RULES, ParameterRule, chunks
from probes.engines.units import Unit, find_problems, find_units, listed

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}
_OVER = -2  # no pass of ours is running


class _RegisteredRule(FirstOrderModuleExtension):  # type: ignore[misc]  # BackPACK ships no types
    """Our rules for the parameters of one kind of layer, in the form that BackPACK calls."""

    def __init__(self, rules: dict[str, ParameterRule]) -> None:
        for name, rule in rules.items():
            setattr(self, name, functools.partial(self._apply, rule))
        super().__init__(params=list(rules))

    @staticmethod
    def _apply(
        rule: ParameterRule, extension: Any, module: Any, g_inp: Any, g_out: Any, _: Any
    ) -> Tensor:
        return rule(module, module.input0, g_out[0])


def complete_batch_l2() -> BatchL2Grad:
    """BackPACK's `BatchL2Grad` with our rules registered, also for use with BackPACK alone."""
    extension = BatchL2Grad()
    for kind, rules in RULES.items():
        extension.set_module_extension(kind, _RegisteredRule(rules), overwrite=True)
    return extension


class BackpackEngine:
    """Hooks on a model that fill a `NormCapture` for each forward pass while armed.

    Args:
        model: The network.

    Attributes:
        armed: Whether forward passes are captured.
        problems: One line for each part of the model for which norms would be meaningless.
        mixing: Those of them that spoil the norms of other layers too.
        coverage: Share of the trainable parameters that the norms are taken over.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.armed = False
        self._rule = complete_batch_l2()
        self._handles: list[RemovableHandle] = []
        self._forward: NormCapture | None = None
        self._backward: NormCapture | None = None
        self._task = _NO_TASK
        self._running: list[NormCapture] = []
        self._verified: set[str] = set()
        self._axes: dict[Unit, Axes] = {}
        problems = find_problems(model)
        self.problems = list(problems.values())
        self.mixing = [text for module, text in problems.items() if isinstance(module, _BatchNorm)]
        self._refused = set(problems)
        self._divide()
        if not self._names:
            self.problems.append("no parameter is trainable")

    def __deepcopy__(self, memo: dict[int, Any]) -> "BackpackEngine":
        """What the hooks on a copy of the model, such as a running average, belong to: nobody."""
        inert = object.__new__(type(self))
        inert.armed = False
        return inert

    def _divide(self) -> None:
        self._names = {p: name for name, p in self._model.named_parameters() if p.requires_grad}
        self._units = [u for u in find_units(self._model) if u.module not in self._refused]
        self._parameters = {name: p for p, name in self._names.items()}
        covered = {p for unit in self._units for p in unit.parameters.values()}
        self._owners = {
            self._names[p]: unit for unit in self._units for p in unit.parameters.values()
        }
        total = sum(map(_size, self._names))
        self.coverage = sum(map(_size, covered)) / total if total else 0.0

    @property
    def blocks(self) -> list[str]:
        """Names of the units, in the model's order."""
        return [unit.block for unit in self._units]

    def _follow_freezing(self, model: nn.Module, args: Any) -> None:
        """Before each forward pass: parameters may have been frozen or unfrozen since the last."""
        if self.armed and {p for p in model.parameters() if p.requires_grad} != self._names.keys():
            self.detach()
            self._divide()
            self.attach()

    def attach(self) -> None:
        """Place the hooks.

        In a compiled model they are graph breaks, on steps where they are armed: a hook on a value
        within a compiled graph does not fire.
        """
        self._handles.append(self._model.register_forward_pre_hook(self._follow_freezing))
        for unit in self._units:
            self._attach_unit(unit)
        for parameter, name in self._names.items():
            hook = functools.partial(self._reached, name)
            self._handles.append(parameter.register_hook(hook))  # type: ignore[no-untyped-call]

    def _attach_unit(self, unit: Unit) -> None:
        self._eagerly = graph_break(self._record_use)
        hook = functools.partial(self._after_forward, unit)
        self._handles.append(unit.module.register_forward_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._forward = self._backward = None

    def take(self) -> NormCapture | None:
        """The capture of the forward passes since the last call; None if nothing was captured."""
        capture, self._forward = self._forward, None
        return capture

    def begin_backward(self, capture: NormCapture) -> None:
        """Say whose backward pass is beginning, so that gradients at parameters are told apart."""
        task = torch._C._current_graph_task_id()
        if task != _NO_TASK and task == self._task and self._backward is not None:
            # Several batches share one backward pass, so parameters get the sum of their gradients.
            capture.is_alone = self._backward.is_alone = False
            self._running.append(capture)
        elif task != _NO_TASK:
            self._running = [capture]
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)
        self._backward, self._task = capture, task

    def _end_backward(self) -> None:
        """Take what is taken from parameters, before the optimiser changes them."""
        self._task = _OVER
        running, self._running = self._running, []
        for capture in running:
            self._add_up(capture)

    def _add_up(self, capture: NormCapture) -> None:
        armed, self.armed = self.armed, False
        with torch.no_grad():
            self._add_up_uses(capture)
        capture.later.clear()
        self.armed = armed

    def finish(self, capture: NormCapture, n: int) -> list[str]:
        """Complete a capture whose backward pass is over.

        Args:
            capture: The capture; its `norms_sq` are final afterwards.
            n: Samples in the batch.

        Returns:
            What makes the norms inexact, one line each; empty if nothing does.
        """
        if capture is self._backward:
            self._backward = None
        self._add_up(capture)
        if not capture.norms_sq:
            return [
                "no layer's hook fired: the losses do not depend on a parameter, or the model was "
                "compiled and called before the hooks were placed (enter the recorder first, then "
                "call torch.compile)"
            ]
        problems = list(capture.problems)
        for block, norms_sq in capture.norms_sq.items():
            if norms_sq.shape != (n,):
                problems.append(
                    f"`{block}` works on {norms_sq.numel()} rows where the batch has {n} samples; "
                    "its first dimension must be the sample"
                )
        return problems or (self._verify(capture) if capture.is_alone else [])

    def _after_forward(
        self, unit: Unit, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        if not (self.armed and torch.is_grad_enabled()):
            return None
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and not first.requires_grad:
            return None
        return self._eagerly(unit, args, kwargs, output)

    def _record_use(self, unit: Unit, args: Any, kwargs: Any, output: Any) -> Any:
        """Hang the hook on a unit's output; returns the output if that had to be replaced."""
        first, *others = output if isinstance(output, tuple) else (output,)
        capture = self._current_capture()
        if capture is None:
            return None
        if not isinstance(first, Tensor):
            kind = type(first).__name__
            capture.problems.append(f"`{unit.block}` returns a {kind} where a tensor is needed")
            return None
        capture.count(unit)
        inputs = tree_map(_detached, (args, kwargs))
        hooked, shape, returned = behind_views(first, is_known=unit.has_rule)
        # The hook must not hold `output` itself: the cycle through its graph is never collected.
        hook = functools.partial(self._at_output, capture, unit, inputs, shape)
        hooked.register_hook(hook)  # type: ignore[no-untyped-call]
        problem = f"`{unit.block}` passes a gradient on through more than its first output"
        for other in tree_leaves(others):
            if isinstance(other, Tensor) and other.requires_grad:
                other.register_hook(lambda _: capture.problems.append(problem))  # type: ignore[no-untyped-call]
        if returned is first:
            return None
        make = getattr(output, "_make", tuple)  # named tuples stay such
        return make((returned, *others)) if isinstance(output, tuple) else returned

    def _current_capture(self) -> NormCapture | None:
        if torch._C._current_graph_task_id() == _NO_TASK:
            self._forward = self._forward or NormCapture()
            return self._forward
        # In a backward pass, activation checkpointing runs a forward again. A gradient comes to
        # this one only where the first ran without a graph (reentrant); other hooks never fire.
        return self._backward

    def _at_output(
        self, capture: NormCapture, unit: Unit, inputs: Any, shape: torch.Size, grad: Tensor
    ) -> None:
        grad = grad.reshape(shape)
        capture.coarsest = max(capture.coarsest, grad.dtype, key=_TOLERANCE.__getitem__)
        dtype = torch.promote_types(grad.dtype, torch.float32)
        args, kwargs = tree_map(functools.partial(_to, dtype=dtype), inputs)
        grad = grad.detach().to(dtype)
        use = self._use(unit, args, kwargs, grad)
        if not unit.has_rule or unit.shares or capture.uses(unit) > 1:
            if self._is_first(capture, unit):
                capture.later[unit].append(use)
            return
        if any(self._names[p] not in self._verified for p in unit.parameters.values()):
            for key, gradient in batch_gradients(use).items():
                self._explain(capture, unit.parameters[key], gradient)
        if self._is_first(capture, unit):
            with torch.no_grad():
                self._measure(capture, unit, args[0] if args else kwargs["input"], grad)

    def _use(self, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any], grad: Tensor) -> Use:
        n = grad.shape[unit.sample_axis]
        axes = self._axes.get(unit)
        if axes is None or not fits(axes, args, kwargs, n):
            # What was verified with other axes is to be verified again.
            axes = find_axes(unit.module, args, kwargs, unit.sample_axis, n)
            self._axes[unit] = axes
            self._verified -= {self._names[p] for p in unit.parameters.values()}
        return Use(unit.module, unit.parameters, args, kwargs, grad, unit.sample_axis, axes)

    def _is_first(self, capture: NormCapture, unit: Unit) -> bool:
        """Whether no norms of the unit are there; otherwise it was not known to be used twice."""
        if unit.block in capture.norms_sq:
            capture.problems.append(
                f"`{unit.block}` is used more than once, in parts that are checkpointed with "
                "use_reentrant=True; use_reentrant=False is exact"
            )
            return False
        return True

    def _explain(self, capture: NormCapture, parameter: nn.Parameter, gradient: Tensor) -> None:
        name = self._names[parameter]
        known = capture.explained.get(name)
        capture.explained[name] = gradient if known is None else known + gradient

    def _measure(self, capture: NormCapture, unit: Unit, source: Tensor, grad: Tensor) -> None:
        """Take a unit's norms from its rule."""
        module: Any = unit.module
        module.input0 = source
        module.output = grad  # BackPACK looks up its storage only
        try:
            self._rule(module, (None,), (grad,))
            norms_sq = [_pop_batch_l2(p) for p in unit.parameters.values()]
        finally:
            del module.input0, module.output
        capture.norms_sq[unit.block] = functools.reduce(torch.add, norms_sq)

    def _add_up_uses(self, capture: NormCapture) -> None:
        """Norms of units that were differentiated, tied, or used several times."""
        together: dict[nn.Parameter, list[tuple[str, Use]]] = defaultdict(list)
        for unit, uses in capture.later.items():
            for use in uses:
                for name, parameter in unit.parameters.items():
                    together[parameter].append((name, use))
        uses_of_all = [use for uses in capture.later.values() for use in uses]
        if not uses_of_all:
            return
        n = uses_of_all[0].n
        sizes = [p.numel() * p.element_size() for p in together]
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for rows in chunks(n, sum(sizes)):
            try:
                gradients = {id(use): per_sample_gradients(use, rows) for use in uses_of_all}
            except Exception as error:  # whatever a user's own module raises on one sample
                names = listed(unit.block for unit in capture.later)
                capture.problems.append(f"{names} cannot be run sample by sample: {error}")
                return
            squares: dict[str, Tensor] = {}
            for parameter, places in together.items():
                total = functools.reduce(torch.add, (gradients[id(u)][k] for k, u in places))
                block = self._owners[self._names[parameter]].block
                square = total.reshape(len(total), -1).square().sum(1)
                squares[block] = squares[block] + square if block in squares else square
                if self._names[parameter] not in self._verified:
                    self._explain(capture, parameter, total.sum(0))
            for block, square in squares.items():
                parts[block].append(square)
        capture.norms_sq |= {block: torch.cat(part) for block, part in parts.items()}

    def _verify(self, capture: NormCapture) -> list[str]:
        """Compare what the hooks have seen with the gradients that training got."""
        problems = []
        gradients = [gradient for gradient in capture.reached.values() if gradient is not None]
        # A gradient can be zero but for rounding, as that of a bias before a normalisation; then
        # two ways to it differ by as much as it has.
        whole = torch.stack([g.double().norm() for g in gradients]).norm() if gradients else 0.0
        for name in sorted(capture.reached.keys() & self._owners.keys() - self._verified):
            expected, explained = capture.reached[name], capture.explained.get(name)
            if self._parameters[name] in capture.fused:
                self._verified.add(name)  # its layer formed this very gradient from the samples
                continue
            if expected is None or explained is None:
                problems.append(f"`{name}` is used outside of its layer's forward")
                continue
            tolerance = max(_TOLERANCE[expected.dtype], _TOLERANCE[capture.coarsest])
            off = (explained - expected.to(explained.dtype)).norm()
            types = expected.dtype, capture.coarsest
            rounding = 10 * max(torch.finfo(dtype).eps for dtype in types) * whole
            if off > tolerance * expected.norm() + rounding + 1e-30:
                problems.append(
                    f"`{name}`: single samples do not add up to its gradient. Its module draws "
                    "random numbers or mixes samples, or the parameter is used elsewhere too"
                )
            else:
                self._verified.add(name)
        return problems

    def _reached(self, name: str, grad: Tensor) -> None:
        # Checkpoints that are reentrant run backward passes of their own within ours.
        if self._backward is not None and self._task != _OVER:
            verify = name not in self._verified
            self._backward.reached[name] = grad.detach().clone() if verify else None


def _size(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _to(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value


def _pop_batch_l2(parameter: Any) -> Tensor:
    norms_sq: Tensor = parameter.batch_l2
    del parameter.batch_l2
    return norms_sq
