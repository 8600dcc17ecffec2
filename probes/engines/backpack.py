"""Per-sample squared gradient norms by BackPACK's rules, in whatever backward pass comes.

A forward hook on each layer keeps the layer's input and hangs a hook on its output; when the
backward pass brings the output's gradient, BackPACK's `BatchL2Grad` rule for that layer (or ours,
where it has none) turns both into ‖∂L/∂w‖² per sample. The hooks are ours rather than BackPACK's
own, so nothing global is switched on, in-place activations are no problem (a hook on the output
tensor sees the gradient of the value before it is overwritten), and nothing stays on the model.

What a rule cannot give exactly is refused, not skipped: `problems` lists it before training, and
`NormCapture` notices gradients that arrived at a parameter without passing its layer's hook.
"""

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from backpack.extensions import BatchL2Grad
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter
from torch.utils.hooks import RemovableHandle

from probes.engines.layer_rules import own_rule

_BY_BACKPACK = {
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
}


class NormCapture:
    """Squared per-sample norms of one forward pass, filled in by its backward pass.

    Attributes:
        norms_sq: Squared norm of c_i ∇ℓ_i over each block's parameters, shape (N,) each.
        uses: How often each layer's hook has fired.
        reached: Names of the parameters at which a gradient has arrived.
    """

    def __init__(self) -> None:
        self.norms_sq: dict[str, Tensor] = {}
        self.uses: Counter[str] = Counter()
        self.reached: set[str] = set()

    def add(self, block: str, norms_sq: Tensor) -> None:
        """Add a layer's squared norms; called once per use of the layer."""
        self.uses[block] += 1
        if self.uses[block] == 1:
            self.norms_sq[block] = norms_sq

    def total_sq(self) -> Tensor:
        """Squared norm over all blocks, shape (N,); at least one layer's hook must have fired."""
        return torch.stack(list(self.norms_sq.values())).sum(0)

    def clear(self) -> None:
        """Forget the norms, for another backward pass through the same forward pass."""
        self.norms_sq.clear()
        self.uses.clear()


class BackpackEngine:
    """Hooks on a model that fill a `NormCapture` for each forward pass while armed.

    Args:
        model: The network.

    Attributes:
        armed: Whether forward passes are captured.
        problems: One line for each part of the model that has no exact rule.
        coverage: Share of the trainable parameters that the norms are taken over.
    """

    def __init__(self, model: nn.Module) -> None:
        self.armed = False
        self.problems = list(_find_problems(model))
        self._rule = BatchL2Grad()
        self._layers = {
            name or type(layer).__name__: layer
            for name, layer in model.named_modules()
            if _has_rule(layer) and _own_trainable(layer)
        }
        self._names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        covered = {p for layer in self._layers.values() for p in _own_trainable(layer).values()}
        self._uncovered = {name for p, name in self._names.items() if p not in covered}
        self._owners = {
            self._names[p]: block
            for block, layer in self._layers.items()
            for p in _own_trainable(layer).values()
        }
        n_trainable = sum(p.numel() for p in self._names)
        self.coverage = sum(p.numel() for p in covered) / n_trainable if n_trainable else 1.0
        self._handles: list[RemovableHandle] = []
        self._forward: NormCapture | None = None
        self._backward: NormCapture | None = None

    @property
    def blocks(self) -> list[str]:
        """Names of the layers that have a rule, in the model's order."""
        return list(self._layers)

    def attach(self) -> None:
        """Place the hooks."""
        for block, layer in self._layers.items():
            hook = functools.partial(self._after_forward, block)
            self._handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        for parameter, name in self._names.items():
            reached = functools.partial(self._reached, name)
            self._handles.append(parameter.register_hook(reached))  # type: ignore[no-untyped-call]

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
        self._backward = capture

    def check(self, capture: NormCapture, n: int) -> list[str]:
        """What makes a finished capture inexact; empty if nothing does.

        Args:
            capture: A capture whose backward pass is over.
            n: Samples in the batch.

        Returns:
            One line for each problem, naming the layer.
        """
        problems = []
        if not capture.uses:
            return [
                "no layer's hook fired: the losses do not depend on a layer with a rule, or the "
                "model was compiled and called before the hooks were placed (enter the recorder "
                "first, then call torch.compile)"
            ]
        for block, uses in capture.uses.items():
            if uses > 1:
                problems.append(f"`{block}` is used {uses} times in one forward pass")
        for block, norms_sq in capture.norms_sq.items():
            if norms_sq.shape != (n,):
                rows = " × ".join(map(str, norms_sq.shape))
                problems.append(
                    f"`{block}` works on {rows} rows where the batch has {n} samples; "
                    "its first dimension must be the sample"
                )
        for name in sorted(capture.reached - self._uncovered):
            if self._owners[name] not in capture.uses:
                problems.append(f"`{name}` is used outside of its layer's forward")
        return problems

    def _after_forward(
        self, block: str, layer: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        if not (self.armed and torch.is_grad_enabled() and output.requires_grad):
            return
        if self._forward is None:
            self._forward = NormCapture()
        source = args[0] if args else kwargs["input"]
        # The hook must not hold `output` itself: the cycle through its graph is never collected.
        output.register_hook(
            functools.partial(self._apply_rule, self._forward, block, layer, source.detach())
        )

    def _apply_rule(
        self, capture: NormCapture, block: str, layer: nn.Module, source: Tensor, grad: Tensor
    ) -> None:
        dtype = torch.promote_types(grad.dtype, torch.float32)
        grad = grad.detach().to(dtype)
        source = source.to(dtype) if source.is_floating_point() else source
        with torch.no_grad():
            rule = own_rule(layer) or self._backpack_norms_sq
            capture.add(block, rule(layer, source, grad))

    def _backpack_norms_sq(self, layer: nn.Module, source: Tensor, grad: Tensor) -> Tensor:
        layer.input0 = source
        layer.output = grad  # BackPACK looks up its storage only
        try:
            self._rule(layer, (None,), (grad,))
            norms_sq = [_pop_batch_l2(p) for p in _own_trainable(layer).values()]
        finally:
            del layer.input0, layer.output
        return torch.stack(norms_sq).sum(0)

    def _reached(self, name: str, grad: Tensor) -> None:
        if self._backward is not None:
            self._backward.reached.add(name)


def _pop_batch_l2(parameter: Tensor) -> Tensor:
    norms_sq: Tensor = parameter.batch_l2  # type: ignore[attr-defined]  # set by BackPACK
    del parameter.batch_l2  # type: ignore[attr-defined]
    return norms_sq


def _has_rule(layer: nn.Module) -> bool:
    return type(layer) in _BY_BACKPACK or own_rule(layer) is not None


def _own_trainable(layer: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}


def _find_problems(model: nn.Module) -> Iterator[str]:
    owners: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, layer in model.named_modules():
        label = f"`{name or 'model'}` ({type(layer).__name__})"
        parameters = _own_trainable(layer)
        for key, parameter in parameters.items():
            owners[parameter].append(f"`{name}.{key}`" if name else f"`{key}`")
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
            yield f"{label} normalises with batch statistics, which mixes the samples"
        elif parameters and not _has_rule(layer):
            yield f"{label} has parameters {_listed(parameters)} and no rule"
        elif extra := set(parameters) - {"weight", "bias"}:
            yield f"{label} is re-parameterised: {_listed(sorted(extra))}"
        elif any(isinstance(p, UninitializedParameter) for p in parameters.values()):
            yield f"{label} is not initialised yet; run one batch through the model first"
        elif isinstance(layer, nn.Embedding) and layer.scale_grad_by_freq:
            yield f"{label} scales its gradient by frequency in the batch, which mixes the samples"
    for uses in owners.values():
        if len(uses) > 1:
            yield f"{' and '.join(uses)} are one shared parameter"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in itertools.islice(names, 4))
