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
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from backpack.extensions import BatchL2Grad
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter
from torch.utils.hooks import RemovableHandle

from probes.engines.differentiate import Use, batch_gradients, per_sample_gradients
from probes.engines.layer_rules import RULES, ParameterRule, chunks, layer_norms_sq, row_norms
from probes.engines.units import Unit, find_owners, find_problems, find_units, listed, trainable

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.05}
_NO_TASK = -1  # what torch reports outside of a backward pass


class NormCapture:
    """Squared per-sample norms of one forward pass, filled in by its backward pass.

    Attributes:
        norms_sq: Squared norm of c_i ∇ℓ_i over each block's parameters, shape (N,) each.
        variances: Variance of each squared norm, where it is estimated.
        reached: Parameters that a gradient has arrived at, with it while they are to be verified.
        explained: Gradients of parameters to be verified, as the uses seen by the hooks give them.
        problems: What went wrong on the way, one line each.
        is_alone: Whether no other batch shared the backward pass.
        coarsest: The least precise type that a layer's gradient came in.
    """

    def __init__(self) -> None:
        self.norms_sq: dict[str, Tensor] = {}
        self.variances: dict[str, Tensor] = {}
        self.reached: dict[str, Tensor | None] = {}
        self.explained: dict[str, Tensor] = {}
        self.problems: list[str] = []
        self.is_alone = True
        self.coarsest = torch.float64
        self.forwards: Counter[Unit] = Counter()
        self.fired: Counter[Unit] = Counter()
        self.fused: set[nn.Parameter] = set()
        self.later: dict[Unit, list[Use]] = defaultdict(list)
        self.outer: dict[Unit, tuple[Tensor, Tensor]] = {}

    def clear(self) -> None:
        """Forget the norms, for another backward pass through the same forward pass."""
        self.norms_sq.clear()
        self.variances.clear()
        self.reached.clear()
        self.explained.clear()
        self.fired.clear()
        self.later.clear()
        self.outer.clear()
        self.fused.clear()


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
        edges: Places in the graph where the layers' gradients arrive, of the forward passes since
            the list was put there; None while nobody asks for them.
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
        self._task = _NO_TASK
        self._verified: set[str] = set()
        problems = find_problems(model)
        self.problems = list(problems.values())
        self.mixing = [text for module, text in problems.items() if isinstance(module, _BatchNorm)]
        self._refused = set(problems)
        self._divide()
        if not self._names:
            self.problems.append("no parameter is trainable")

    def _divide(self) -> None:
        self._names = {p: name for name, p in self._model.named_parameters() if p.requires_grad}
        self._units = [u for u in find_units(self._model) if u.module not in self._refused]
        self._parameters = {name: p for p, name in self._names.items()}
        owners = find_owners(self._units)
        self._owners = {self._names[p]: unit for p, unit in owners.items()}
        total = sum(map(_size, self._names))
        self.coverage = sum(map(_size, owners)) / total if total else 0.0

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

    def attach(self) -> None:
        """Place the hooks."""
        self._handles.append(self._model.register_forward_pre_hook(self._follow_freezing))
        for unit in self._units:
            self._attach_unit(unit)
        for parameter, name in self._names.items():
            if name not in self._verified:
                hook = functools.partial(self._reached, name)
                self._watches[name] = parameter.register_hook(hook)  # type: ignore[no-untyped-call]

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
        if task != _NO_TASK and task == self._task and self._backward is not None:
            # Several batches share one backward pass, so parameters get the sum of their gradients.
            capture.is_alone = self._backward.is_alone = False
        self._backward, self._task = capture, task

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
        armed, self.armed = self.armed, False
        with torch.no_grad():
            self._multiply_outer(capture)
            self._add_up_uses(capture)
        self.armed = armed
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
    ) -> None:
        if not (self.armed and torch.is_grad_enabled()):
            return
        if unit.has_rule and not torch.compiler.is_compiling() and not output._is_view():
            self._after_layer(unit, args[0] if args else kwargs["input"], output)
            return
        first, *others = output if isinstance(output, tuple) else (output,)
        if not first.requires_grad:
            return
        capture = self._current_capture(unit)
        if capture is None:
            return
        capture.forwards[unit] += 1
        inputs = tuple(_detached(v) for v in args), {k: _detached(v) for k, v in kwargs.items()}
        # The hook must not hold `output` itself: the cycle through its graph is never collected.
        first.register_hook(functools.partial(self._at_output, capture, unit, inputs))
        if self.edges is not None:
            self.edges.append(get_gradient_edge(first))
        problem = f"`{unit.block}` passes a gradient on through more than its first output"
        for other in _tensors(others):
            if other.requires_grad:
                other.register_hook(lambda _: capture.problems.append(problem))  # type: ignore[no-untyped-call]

    def _after_layer(self, unit: Unit, source: Tensor, output: Tensor) -> None:
        """`_after_forward` without what only modules in general need: small steps feel that."""
        capture = self._current_capture(unit) if output.requires_grad else None
        if capture is None:
            return
        capture.forwards[unit] += 1
        hook = functools.partial(self._at_layer_output, capture, unit, source.detach())
        output.register_hook(hook)  # type: ignore[no-untyped-call]
        if self.edges is not None:
            self.edges.append(get_gradient_edge(output))

    def _at_layer_output(
        self, capture: NormCapture, unit: Unit, source: Tensor, grad: Tensor
    ) -> None:
        is_simple = (
            capture.forwards[unit] == 1
            and not unit.shares
            and unit.block not in capture.norms_sq
            and grad.dtype in (torch.float32, torch.float64)
            and (source.dtype is grad.dtype or not source.is_floating_point())
            and not torch.is_grad_enabled()
        )
        if is_simple and not self._must_verify(unit):
            self._measure(capture, unit, source, grad)
        else:
            self._at_output(capture, unit, ((source,), {}), grad)

    def _current_capture(self, unit: Unit) -> NormCapture | None:
        if torch._C._current_graph_task_id() == _NO_TASK:
            self._forward = self._forward or NormCapture()
            return self._forward
        # In a backward pass, activation checkpointing runs a forward again. A gradient comes to
        # this one only where the first ran without a graph (reentrant).
        capture = self._backward
        return None if capture is None or capture.forwards[unit] else capture

    def _at_output(self, capture: NormCapture, unit: Unit, inputs: Any, grad: Tensor) -> None:
        capture.coarsest = max(capture.coarsest, grad.dtype, key=_TOLERANCE.__getitem__)
        dtype = torch.promote_types(grad.dtype, torch.float32)
        args, kwargs = inputs
        args = tuple(_to(value, dtype) for value in args)
        kwargs = {name: _to(value, dtype) for name, value in kwargs.items()}
        grad = grad.detach().to(dtype)
        use = Use(unit.module, unit.parameters, args, kwargs, grad, unit.sample_axis)
        if not unit.has_rule or unit.shares or capture.forwards[unit] > 1:
            capture.later[unit].append(use)
            return
        if self._must_verify(unit):
            for key, gradient in batch_gradients(use).items():
                self._explain(capture, unit.parameters[key], gradient)
        if unit.block in capture.norms_sq:
            capture.problems.append(f"`{unit.block}` is used twice in a checkpointed part")
        else:
            with torch.no_grad():
                self._measure(capture, unit, args[0] if args else kwargs["input"], grad)

    def _must_verify(self, unit: Unit) -> bool:
        return any(self._names[p] not in self._verified for p in unit.parameters.values())

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
        if together is not None:
            capture.norms_sq[unit.block] = together
            return
        module.input0 = source
        module.output = grad  # BackPACK looks up its storage only
        try:
            self._rule(module, (None,), (grad,))
            norms_sq = [_pop_batch_l2(p) for p in unit.parameters.values()]
        finally:
            del module.input0, module.output
        capture.norms_sq[unit.block] = functools.reduce(torch.add, norms_sq)

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
                square = self._square(capture, parameter, rows, total)
                squares[block] = squares[block] + square if block in squares else square
                if self._names[parameter] not in self._verified:
                    self._explain(capture, parameter, total.sum(0))
            for block, square in squares.items():
                parts[block].append(square)
        capture.norms_sq |= {block: torch.cat(part) for block, part in parts.items()}

    def _square(
        self, capture: NormCapture, parameter: nn.Parameter, rows: slice, gradients: Tensor
    ) -> Tensor:
        """Squared norms of the gradients of some samples, where those have been formed."""
        return gradients.reshape(len(gradients), -1).square().sum(1)

    def _verify(self, capture: NormCapture) -> list[str]:
        """Compare what the hooks have seen with the gradients that training got."""
        problems = []
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
            if off > tolerance * expected.norm() + 1e-30:
                problems.append(
                    f"`{name}`: single samples do not add up to its gradient. Its module draws "
                    "random numbers or mixes samples, or the parameter is used elsewhere too"
                )
            else:
                self._verified.add(name)
        for name in self._watches.keys() & self._verified:
            self._watches.pop(name).remove()  # Python in the backward pass costs on every step
        return problems

    def _reached(self, name: str, grad: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if self._backward is not None and self._task in (_NO_TASK, task):
            verify = name not in self._verified
            self._backward.reached[name] = grad.detach().clone() if verify else None


def _size(parameter: Tensor) -> int:
    return 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _to(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value


def _pop_batch_l2(parameter: Any) -> Tensor:
    norms_sq: Tensor = parameter.batch_l2
    del parameter.batch_l2
    return norms_sq
