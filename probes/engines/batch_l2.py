"""BackPACK's `BatchL2Grad`, with our rules registered in it through its extension point."""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from backpack.extensions import BatchL2Grad
from backpack.extensions.firstorder.base import FirstOrderModuleExtension
from torch import Tensor, nn

from probes.engines.layer_rules import RULES, ParameterRule


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


def batch_l2(
    rule: BatchL2Grad, module: Any, parameters: Iterable[nn.Parameter], source: Tensor, grad: Tensor
) -> Tensor:
    """Squared per-sample gradient norms of a layer, as BackPACK computes them.

    Args:
        rule: What `complete_batch_l2` returned.
        module: The layer.
        parameters: Its trainable parameters.
        source: Its input, shape (N, ...).
        grad: Gradient at its output.

    Returns:
        Shape (N,), over all of the parameters.
    """
    module.input0 = source
    module.output = grad  # BackPACK looks up its storage only
    try:
        rule(module, (None,), (grad,))
        norms_sq = [_pop(parameter) for parameter in parameters]
    finally:
        del module.input0, module.output
    return functools.reduce(torch.add, norms_sq)


def _pop(parameter: Any) -> Tensor:
    norms_sq: Tensor = parameter.batch_l2
    del parameter.batch_l2
    return norms_sq
