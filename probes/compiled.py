"""How hooks live with `torch.compile`.

A hook on a value within a compiled graph does not fire. So what hangs such hooks is a graph break;
what only asks whether that is due is traced into the graph, which stays whole on other steps.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


def graph_break(function: F) -> F:
    """The function, run as it is written wherever compiled code calls it."""
    broken: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return broken


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """A context in which compiled models run as they are written; torch before 2.6 has none."""
    if not _is_loaded() or not hasattr(torch.compiler, "set_stance"):
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


def runs_compiled() -> bool:
    """Whether compiled models stay compiled within `uncompiled`."""
    return _is_loaded() and not hasattr(torch.compiler, "set_stance")


def _is_loaded() -> bool:
    return "torch._dynamo" in sys.modules  # which takes 2 s and 100 MiB, so it is not asked for
