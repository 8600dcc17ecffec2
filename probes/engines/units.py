"""How a model is divided for per-sample norms: layers with a rule, and modules taken whole.

A layer of a known kind is a unit with a rule for each of its parameters. Any other module that
holds parameters itself is taken whole, with everything below it, and differentiated sample by
sample; its first use is checked against the gradient that training itself computes. What neither
can give exactly is a problem, and is named.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from probes.engines.layer_rules import RULES


@dataclass(frozen=True, eq=False)
class Unit:
    """A part of the model whose parameters' norms are taken together.

    Attributes:
        block: Name under which its norms are recorded.
        module: The layer or module.
        parameters: Its trainable parameters, by name within the module.
        has_rule: Whether each parameter has a rule; otherwise the module is differentiated.
        shares: Whether a parameter of it is also one of another unit.
        sample_axis: Axis of its inputs and output that counts the samples.
    """

    block: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    has_rule: bool
    shares: bool
    sample_axis: int


def find_units(model: nn.Module) -> list[Unit]:
    """Divide a model into units, in its own order; frozen parameters belong to none.

    Args:
        model: The network.

    Returns:
        The units; together they hold every trainable parameter.
    """
    found = []
    for name, module, has_rule in _walk(model, ""):
        parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
        if parameters:
            found.append((name or type(module).__name__, module, parameters, has_rule))
    owners = Counter(p for _, _, parameters, _ in found for p in set(parameters.values()))
    return [
        Unit(
            block=block,
            module=module,
            parameters=parameters,
            has_rule=has_rule,
            shares=any(owners[p] > 1 for p in parameters.values()),
            sample_axis=0 if getattr(module, "batch_first", True) else 1,
        )
        for block, module, parameters, has_rule in found
    ]


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, bool]]:
    own = dict(module.named_parameters(recurse=False))
    rules = RULES.get(type(module))
    if rules is not None and set(own) <= set(rules):
        yield name, module, True
    elif own:
        yield name, module, False
    else:
        for child_name, child in module.named_children():
            yield from _walk(child, f"{name}.{child_name}" if name else child_name)


def count_entries(parameters: Iterable[Tensor]) -> int:
    """Number of entries of parameters; those not initialised yet have none."""
    return sum(p.numel() for p in parameters if not isinstance(p, UninitializedParameter))


def trainable(module: nn.Module) -> set[int]:
    """Identities of a model's trainable parameters.

    Asked before each forward pass, and five times as fast as going through `parameters()`.
    """
    found = {id(p) for p in module._parameters.values() if p is not None and p.requires_grad}
    for child in module._modules.values():
        if child is not None:
            found |= trainable(child)
    return found


def find_owners(units: Iterable[Unit]) -> dict[nn.Parameter, Unit]:
    """The unit that each parameter counts in: the first that holds it, as in `named_parameters`.

    Args:
        units: What `find_units` returned.

    Returns:
        One unit for each trainable parameter.
    """
    owners: dict[nn.Parameter, Unit] = {}
    for unit in units:
        for parameter in unit.parameters.values():
            owners.setdefault(parameter, unit)
    return owners


def find_problems(model: nn.Module) -> dict[nn.Module, str]:
    """What makes per-sample norms of a layer meaningless or unknown, before any pass.

    Args:
        model: The network.

    Returns:
        One line for each layer with a problem, naming it.
    """
    problems: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        label = f"`{name or 'model'}` ({type(module).__name__})"
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            problems[module] = f"{label} normalises with batch statistics, which mixes the samples"
        elif any(isinstance(p, UninitializedParameter) for p in own):
            problems[module] = f"{label} is not initialised yet; run one batch through it first"
        elif isinstance(module, torch.jit.ScriptModule) and own:
            problems[module] = f"{label} is TorchScript, whose parameters cannot be exchanged"
        elif isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
            problems[module] = (
                f"{label} scales its gradient by frequency in the batch, which mixes the samples"
            )
    return problems


def listed(names: Iterable[str], most: int = 4) -> str:
    """Names in backticks, the first few of them."""
    return ", ".join(f"`{name}`" for name in itertools.islice(names, most))
