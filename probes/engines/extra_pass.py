"""Per-sample gradient norms in a pass of the probe's own: eval mode, nothing left behind.

Training needs the gradients of the weights; these passes do not. Once the first of them has passed
the engine's self-test, the backward pass is asked for the gradients at the layers' outputs only,
and skips the products that would make weight gradients: a third of a training step.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Never

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from probes.compiled import runs_compiled
from probes.engines.backpack import BackpackEngine
from probes.engines.capture import NormCapture
from probes.errors import UnsupportedModelError
from probes.neutral import neutral

_REENTRANT = (
    "a part of it is checkpointed with use_reentrant=True, through which torch passes gradients in "
    "training's backward pass only; with use_reentrant=False this probe is exact"
)


class ExtraPass:
    """Forward passes whose per-sample norms can be taken; made by `extra_pass`.

    Args:
        model: The network, in eval mode.
        engine: An attached engine.
        probe: Name of the probe, for errors.
        remedy: What the user can do about a problem.
    """

    def __init__(self, model: nn.Module, engine: BackpackEngine, probe: str, remedy: str) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.engine = engine
        self._probe = probe
        self._remedy = remedy
        self._edges: list[GradientEdge] = []

    def take(self) -> NormCapture:
        """The capture of the forward pass just made."""
        capture = self.engine.take()
        if capture is None:
            self._refuse(["no layer's hook fired"])
        self._edges, self.engine.edges = self.engine.edges or [], []
        return capture

    def norms_sq(
        self,
        capture: NormCapture,
        losses: Tensor,
        *,
        retain_graph: bool = False,
        gradient: bool = False,
    ) -> dict[str, Tensor]:
        """Squared norm of each sample's gradient, by layer.

        Args:
            capture: What `take` returned after the forward pass.
            losses: One value per sample, computed from that pass, shape (N,).
            retain_graph: Keep the graph for another call with the same capture.
            gradient: Also set `summed_gradients`, at the cost of the weights' products.

        Returns:
            Shape (N,) for each layer.

        Raises:
            UnsupportedModelError: If the pass shows that the norms would be inexact.
        """
        self.engine.begin_backward(capture)
        wanted: list[Any] = [*self._edges]  # tensors and edges; torch's own type takes no mixture
        if gradient or not self.engine.is_verified:
            wanted = [*self.parameters, *self._edges]
        try:
            found = torch.autograd.grad(
                losses.sum(), wanted, retain_graph=retain_graph, allow_unused=True
            )
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            self._refuse([_REENTRANT])
        self.summed_gradients = found[: len(self.parameters)] if gradient else ()
        problems = self.engine.finish(capture, len(losses))
        if problems:
            self._refuse(problems)
        norms_sq = dict(capture.norms_sq)
        capture.clear()
        return norms_sq

    def _refuse(self, problems: Sequence[str]) -> Never:
        raise UnsupportedModelError.listing(self._probe, problems, self._remedy)


@contextlib.contextmanager
def extra_pass(
    model: nn.Module,
    *,
    probe: str,
    remedy: str,
    engine: BackpackEngine | None = None,
    build: Callable[[nn.Module], BackpackEngine] = BackpackEngine,
) -> Iterator[ExtraPass]:
    """Take forward and backward passes of one's own, in eval mode, leaving the model as it was.

    Args:
        model: The network.
        probe: Name of the probe, for errors.
        remedy: What the user can do about a layer without a rule.
        engine: Engine of an earlier pass over the same model, whose self-test is over; a new one by
            default.
        build: Makes the new one, of the model in eval mode.

    Yields:
        What takes the norms.

    Raises:
        UnsupportedModelError: If a layer has no exact rule in eval mode; all of them are named.
    """
    with neutral(model), torch.enable_grad():
        engine = engine or build(model)
        if engine.problems:
            raise UnsupportedModelError.listing(probe, engine.problems, remedy)
        engine.attach(graph_breaks=runs_compiled())
        engine.armed, engine.edges = True, []
        try:
            yield ExtraPass(model, engine, probe, remedy)
        finally:
            engine.detach()
            engine.edges = None
