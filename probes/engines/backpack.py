"""Per-sample squared gradient norms from whatever backward pass comes, by BackPACK's mechanism.

A forward hook on each unit keeps its input and hangs a hook on its output; when the backward pass
brings the output's gradient, BackPACK's `BatchL2Grad`, with our rules registered in it, turns both
into ‖∂L/∂w‖² per sample. The hooks are ours rather than BackPACK's own, so nothing global is
switched on, in-place activations are no problem (a hook on the output sees the gradient of the
value before it is overwritten), and nothing stays on the model. Training's gradients are untouched.

Parameters that are used more than once (tied weights, a layer called twice) are added over their
uses before squaring. Modules without a rule are differentiated as a whole. The first backward pass
is a self-test: for every parameter, the uses that the hooks have seen must explain the gradient
that training itself computed.
"""

import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from probes.compiled import graph_break
from probes.engines.batch_l2 import batch_l2, complete_batch_l2
from probes.engines.capture import NO_TASK, NormCapture, behind_views, detached, to_float
from probes.engines.differentiate import (
    Axes,
    NotSampleBySampleError,
    Use,
    batch_gradients,
    find_axes,
    fits,
    summed_gradients,
)
from probes.engines.layer_rules import layer_norms_sq, row_norms
from probes.engines.self_test import TOLERANCE, compare_gradients, find_faults
from probes.engines.units import (
    Unit,
    count_entries,
    find_owners,
    find_problems,
    find_units,
    listed,
    trainable,
)

_OVER = -2  # no pass of ours is running


class BackpackEngine:
    """Hooks on a model that fill a `NormCapture` for each forward pass while armed.

    Args:
        model: The network.

    Attributes:
        armed: Whether forward passes are captured.
        problems: One line for each part of the model for which norms would be meaningless.
        mixing: Those of them that spoil the norms of other layers too.
        coverage: Share of the trainable parameters that the norms are taken over.
        edges: Where in the graph the layers' gradients arrive; None while nobody asks for them.
        units: The parts that norms are taken of.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.armed = False
        self.edges: list[GradientEdge] | None = None
        self._rule = complete_batch_l2()
        self._handles: list[RemovableHandle] = []
        self._watches: dict[str, RemovableHandle] = {}
        self._forward: NormCapture | None = None
        self._backward: NormCapture | None = None
        self._task = NO_TASK
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
        (inert := object.__new__(type(self))).armed = False
        return inert

    def _divide(self) -> None:
        self._names = {p: name for name, p in self._model.named_parameters() if p.requires_grad}
        self.units = [u for u in find_units(self._model) if u.module not in self._refused]
        self._parameters = {name: p for p, name in self._names.items()}
        owners = find_owners(self.units)
        self._owners = {self._names[p]: unit for p, unit in owners.items()}
        total = count_entries(self._names)
        self.coverage = count_entries(owners) / total if total else 0.0

    @property
    def is_verified(self) -> bool:
        """Whether the self-test of every parameter is over."""
        return self._owners.keys() <= self._verified

    @property
    def block_of(self) -> dict[nn.Parameter, str]:
        """Block that each trainable parameter counts in."""
        return {self._parameters[name]: unit.block for name, unit in self._owners.items()}

    @property
    def blocks(self) -> list[str]:
        """Names of the units that parameters count in, in the model's order."""
        return list(dict.fromkeys(unit.block for unit in self._owners.values()))

    def _follow_freezing(self, model: nn.Module, args: Any) -> None:
        """Before each forward pass: parameters may have been frozen or unfrozen since the last."""
        if self.armed and trainable(model) != {id(p) for p in self._names}:
            self.detach()
            self._divide()
            self.attach()

    def attach(self, *, graph_breaks: bool = True) -> None:
        """Place the hooks.

        Args:
            graph_breaks: Let them be such in a compiled model, on steps where they are armed: a
                hook on a value within a compiled graph does not fire.
        """
        self._eagerly = graph_break(self._record_use) if graph_breaks else self._record_use
        self._handles.append(self._model.register_forward_pre_hook(self._follow_freezing))
        for unit in self.units:
            self._attach_unit(unit)
        self._watch(self._parameters.keys() - self._verified)

    def _watch(self, names: Iterable[str]) -> None:
        """Place hooks on parameters that are to be verified."""
        for name in names:
            if name not in self._watches:
                hook = functools.partial(self._reached, name)
                self._watches[name] = self._parameters[name].register_hook(hook)  # type: ignore[no-untyped-call]

    def _attach_unit(self, unit: Unit) -> None:
        hook = functools.partial(self._after_forward, unit)
        self._handles.append(unit.module.register_forward_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in (*self._handles, *self._watches.values()):
            handle.remove()
        self._handles.clear()
        self._watches.clear()
        self._forward = self._backward = None

    def take(self) -> NormCapture | None:
        """The capture of the forward passes since the last call; None if nothing was captured."""
        capture, self._forward = self._forward, None
        return capture

    def begin_backward(self, capture: NormCapture) -> None:
        """Say whose backward pass is beginning, so that gradients at parameters are told apart."""
        task = torch._C._current_graph_task_id()
        if task != NO_TASK and task == self._task and self._backward is not None:
            # Several batches share one backward pass, so parameters get the sum of their gradients.
            capture.is_alone = self._backward.is_alone = False
            self._running.append(capture)
        elif task != NO_TASK:
            self._running = [capture]
            torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)
        self._backward, self._task = capture, task

    def _end_backward(self) -> None:
        """Take what is taken from parameters, before the optimiser changes them."""
        self._task = _OVER
        while self._running:
            self._add_up(self._running.pop())

    def _add_up(self, capture: NormCapture) -> None:
        with self._disarmed(), torch.no_grad():
            self._multiply_outer(capture)
            self._add_up_uses(capture)
        capture.later.clear()

    @contextlib.contextmanager
    def _disarmed(self) -> Iterator[None]:
        armed, self.armed = self.armed, False
        try:
            yield
        finally:
            self.armed = armed

    def finish(self, capture: NormCapture, n: int) -> list[str]:
        """Complete a capture whose backward pass is over.

        Args:
            capture: The capture; its `norms_sq` are final afterwards.
            n: Samples in the batch.

        Returns:
            What makes the norms inexact, one line each; empty if nothing does.
        """
        self._backward = None if capture is self._backward else self._backward
        self._add_up(capture)
        problems = find_faults(capture, n)
        return problems or (self._verify(capture) if capture.is_alone else [])

    def _after_forward(
        self, unit: Unit, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        if not (self.armed and torch.is_grad_enabled()):
            return None
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and not first.requires_grad:
            return None
        if unit.has_rule and not torch.compiler.is_compiling() and not first._is_view():
            self._record_layer_use(unit, args[0] if args else kwargs["input"], first)
            return None
        return self._eagerly(unit, args, kwargs, output)

    def _record_layer_use(self, unit: Unit, source: Tensor, output: Tensor) -> None:
        """`_record_use` without what only modules in general need: small steps feel that."""
        capture = self._current_capture()
        if capture is None:
            return
        capture.count(unit)
        hook = functools.partial(self._at_layer_output, capture, unit, source.detach())
        output.register_hook(hook)  # type: ignore[no-untyped-call]
        if self.edges is not None:
            self.edges.append(get_gradient_edge(output))

    def _at_layer_output(
        self, capture: NormCapture, unit: Unit, source: Tensor, grad: Tensor
    ) -> None:
        is_simple = (
            capture.uses(unit) == 1
            and not unit.shares
            and unit.block not in capture.norms_sq
            and grad.dtype in (torch.float32, torch.float64)
            and (source.dtype is grad.dtype or not source.is_floating_point())
            and not torch.is_grad_enabled()
        )
        if is_simple and not self._must_verify(unit):
            self._measure(capture, unit, source, grad)
        else:
            self._at_output(capture, unit, ((source,), {}), grad.shape, grad)

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
        inputs = tree_map(detached, (args, kwargs))
        hooked, shape, returned = behind_views(first, is_known=unit.has_rule)
        # The hook must not hold `output` itself: the cycle through its graph is never collected.
        hook = functools.partial(self._at_output, capture, unit, inputs, shape)
        hooked.register_hook(hook)  # type: ignore[no-untyped-call]
        if self.edges is not None:
            self.edges.append(get_gradient_edge(hooked))
        problem = f"`{unit.block}` passes a gradient on through more than its first output"
        for other in tree_leaves(others):
            if isinstance(other, Tensor) and other.requires_grad:
                other.register_hook(lambda _: capture.problems.append(problem))  # type: ignore[no-untyped-call]
        if returned is first:
            return None
        make = getattr(output, "_make", tuple)  # named tuples stay such
        return make((returned, *others)) if isinstance(output, tuple) else returned

    def _current_capture(self) -> NormCapture | None:
        if torch._C._current_graph_task_id() == NO_TASK:
            self._forward = self._forward or NormCapture()
            return self._forward
        # In a backward pass, activation checkpointing runs a forward again. A gradient comes to
        # this one only where the first ran without a graph (reentrant); other hooks never fire.
        return self._backward

    def _at_output(
        self, capture: NormCapture, unit: Unit, inputs: Any, shape: torch.Size, grad: Tensor
    ) -> None:
        grad = grad.reshape(shape)
        capture.coarsest = max(capture.coarsest, grad.dtype, key=TOLERANCE.__getitem__)
        dtype = torch.promote_types(grad.dtype, torch.float32)
        args, kwargs = tree_map(functools.partial(to_float, dtype=dtype), inputs)
        grad = grad.detach().to(dtype)
        use = self._use(unit, args, kwargs, grad)
        if not unit.has_rule or unit.shares or capture.uses(unit) > 1:
            if self._is_first(capture, unit):
                capture.later[unit].append(use)
            return
        if self._must_verify(unit):
            with self._disarmed():
                gradients = batch_gradients(use)
            for key, gradient in gradients.items():
                self._explain(capture, unit.parameters[key], gradient)
        if self._is_first(capture, unit):
            with torch.no_grad():
                self._measure(capture, unit, args[0] if args else kwargs["input"], grad)

    def _must_verify(self, unit: Unit) -> bool:
        return any(self._names[p] not in self._verified for p in unit.parameters.values())

    def _use(self, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any], grad: Tensor) -> Use:
        n = grad.shape[unit.sample_axis]
        axes = self._axes.get(unit)
        if axes is None or not fits(axes, args, kwargs, n):  # if so, to be verified again
            axes = find_axes(unit.module, args, kwargs, unit.sample_axis, n)
            self._axes[unit] = axes
            again = {self._names[p] for p in unit.parameters.values()}
            self._verified -= again
            self._watch(again)
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
        if type(module) is nn.Linear and grad.dim() == 2 and "weight" in unit.parameters:
            capture.outer[unit] = row_norms(source), row_norms(grad)
            capture.norms_sq[unit.block] = capture.outer[unit][1]  # in its place until `finish`
            return
        together = layer_norms_sq(module, unit.parameters.keys(), source, grad)
        if together is None:
            together = batch_l2(self._rule, module, unit.parameters.values(), source, grad)
        capture.norms_sq[unit.block] = together

    def _multiply_outer(self, capture: NormCapture) -> None:
        """Norms of linear layers over single vectors, ‖g aᵀ‖² + ‖g‖²: few calls for all of them."""
        alike: dict[Any, list[Unit]] = defaultdict(list)
        for unit, (source, grad) in capture.outer.items():
            alike["bias" in unit.parameters, source.shape, source.dtype, grad.dtype].append(unit)
        for (has_bias, *_), units in alike.items():
            sources, grads = (torch.stack([capture.outer[u][k] for u in units]) for k in (0, 1))
            norms_sq = sources.square_().add_(int(has_bias)).mul_(grads.square_())
            capture.norms_sq |= zip((unit.block for unit in units), norms_sq, strict=True)
        capture.outer.clear()

    def _add_up_uses(self, capture: NormCapture) -> None:
        """Norms of units that were differentiated, tied, or used several times."""
        uses = [use for some in capture.later.values() for use in some]
        parts: dict[str, list[Tensor]] = defaultdict(list)
        try:
            for rows, gradients in summed_gradients(uses):
                squares: dict[str, Tensor] = {}
                for parameter, total in gradients.items():
                    block = self._owners[self._names[parameter]].block
                    square = self._square(capture, parameter, rows, total)
                    squares[block] = squares[block] + square if block in squares else square
                    if self._names[parameter] not in self._verified:
                        self._explain(capture, parameter, total.sum(0))
                for block, square in squares.items():
                    parts[block].append(square)
        except NotSampleBySampleError as error:
            names = listed(unit.block for unit in capture.later)
            capture.problems.append(f"{names} cannot be run sample by sample: {error}")
            return
        capture.norms_sq |= {block: torch.cat(part) for block, part in parts.items()}

    def _square(
        self, capture: NormCapture, parameter: nn.Parameter, rows: slice, gradients: Tensor
    ) -> Tensor:
        """Squared norms of the gradients of some samples, where those have been formed."""
        return gradients.reshape(len(gradients), -1).square().sum(1)

    def _verify(self, capture: NormCapture) -> list[str]:
        """Compare what the hooks have seen with the gradients that training got."""
        fused = {self._names[p] for p in capture.fused}
        problems, passed = compare_gradients(capture, self._owners.keys() - self._verified, fused)
        self._verified |= passed
        for name in self._watches.keys() & self._verified:
            self._watches.pop(name).remove()  # Python in the backward pass costs on every step
        return problems

    def _reached(self, name: str, grad: Tensor) -> None:
        # Checkpoints that are reentrant run backward passes of their own within ours.
        if self._backward is not None and self._task != _OVER:
            verify = name not in self._verified
            self._backward.reached[name] = grad.detach().clone() if verify else None
