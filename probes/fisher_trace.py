"""The trace of the Fisher information of the weights, on a fixed probe set.

    tr F = E_x E_{y∼p(y|x)} ‖∇_w log p(y|x)‖²

with labels drawn from the model. With the data's labels instead, the same average is the trace of
the *empirical* Fisher, which is not an estimate of tr F: it vanishes as the training loss does. It
is stored under a name of its own.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from probes.engines.extra_pass import extra_pass
from probes.probe import Probe, Scalar
from probes.probe_set import ProbeSet
from probes.schedule import Schedule, every

Kind = Literal["mc", "empirical"]
"""`mc`: labels drawn from the model. `empirical`: the data's labels."""

_SCALAR_NAME = {"mc": "fisher_trace", "empirical": "empirical_fisher_trace"}
_REMEDY = "The Fisher trace needs every trainable parameter; freeze or replace these layers."


@dataclass(frozen=True, slots=True)
class FisherEstimate:
    """An estimated trace.

    Attributes:
        value: Mean over the probe set of the squared gradient norms.
        stderr: Its standard error over the inputs (and, for `mc`, the drawn labels).
        n: Inputs in the probe set.
        kind: Estimator.
        blocks: The same for each layer's parameters; their values add up to `value`.
    """

    value: float
    stderr: float
    n: int
    kind: Kind
    blocks: dict[str, "FisherEstimate"] = field(default_factory=dict)


def fisher_trace(
    model: nn.Module,
    data: Any,
    *,
    kind: Kind = "mc",
    draws: int = 1,
    batch_size: int = 256,
    seed: int = 0,
) -> FisherEstimate:
    """Estimate the Fisher trace of a softmax classifier, in eval mode, leaving it as it was.

    `mc`: (1/N) Σ_i ‖∇_w log p(ŷ_i|x_i)‖² with ŷ_i ∼ p(·|x_i), averaged over `draws` per input.
    `empirical`: the same at the data's labels y_i.

    Args:
        model: Network from inputs to logits of shape (N, C).
        data: Probe set: (inputs, labels), inputs, or a map-style data set.
        kind: Estimator, `mc` by default.
        draws: Labels drawn per input, for `mc`.
        batch_size: Inputs per pass.
        seed: Seed of the drawn labels; the global random state is neither used nor changed.

    Returns:
        The trace, its standard error, and both per layer.

    Raises:
        ValueError: If the kind is unknown, `empirical` is asked for without labels, or `draws` is
            below 1.
        UnsupportedModelError: If a layer has no exact per-sample rule; all of them are named.

    Cost: one forward and `draws` backward passes over the probe set.

    Reference:
        Achille, Rovere and Soatto, ICLR 2019, Sec. 3. On the difference of the two kinds:
        Kunstner, Balles and Hennig, NeurIPS 2019.
    """
    _check_kind(kind)
    probe_set = data if isinstance(data, ProbeSet) else ProbeSet(data, probe="fisher_trace")
    if kind == "empirical" and probe_set.labels is None:
        raise ValueError("The empirical Fisher needs labels: pass data=(inputs, labels).")
    if draws < 1:
        raise ValueError(f"fisher_trace draws at least one label per input, but draws={draws}.")
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    moments = _Moments()
    n_draws = 1 if kind == "empirical" else draws
    with extra_pass(model, probe="FisherTrace", remedy=_REMEDY) as own_pass:
        for inputs, labels in probe_set.batches(batch_size, device):
            log_p = model(inputs).log_softmax(dim=1)
            capture = own_pass.take()
            source = labels if kind == "empirical" else None
            sums: dict[str, Tensor] = {}
            for draw in range(n_draws):
                target = _draw_labels(log_p, generator) if source is None else source
                scores = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
                last = draw + 1 == n_draws
                norms_sq = own_pass.norms_sq(capture, scores, retain_graph=not last)
                sums = {block: sums.get(block, 0) + value for block, value in norms_sq.items()}
            moments.add({block: value / n_draws for block, value in sums.items()})
    return moments.estimate(kind)


def _draw_labels(log_p: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(log_p.detach().exp(), 1, generator=generator).squeeze(1)


class _Moments:
    """Running sums of per-sample values by block, on the device until the end."""

    def __init__(self) -> None:
        self._n = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, norms_sq: dict[str, Tensor]) -> None:
        total = torch.stack(list(norms_sq.values())).sum(0)
        self._n += len(total)
        for block, values in {"total": total, **norms_sq}.items():
            values = values.double()
            sums = torch.stack([values.sum(), values.square().sum()])
            self._sums[block] = self._sums[block] + sums if block in self._sums else sums

    def estimate(self, kind: Kind) -> FisherEstimate:
        n = self._n
        estimates = {}
        for block, sums in self._sums.items():
            first, second = sums.tolist()
            variance = max(second / n - (first / n) ** 2, 0.0) * n / max(n - 1, 1)
            stderr = math.sqrt(variance / n) if n > 1 else math.nan
            estimates[block] = FisherEstimate(first / n, stderr, n, kind)
        total = estimates.pop("total")
        return FisherEstimate(total.value, total.stderr, n, kind, estimates)


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, but is {kind!r}.")


class FisherTrace(Probe):
    """Records `fisher_trace` on a fixed probe set, in total and per layer, on a schedule.

    Scalars: `fisher_trace` (kind `mc`) or `empirical_fisher_trace`, with standard error, number of
    inputs, estimator, label source and mode.

    Cost: one forward and `draws` backward passes over the probe set at each measurement.

    Args:
        when: Schedule; before the first epoch and after each one by default.
        data: Probe set; a few hundred to a thousand training inputs usually suffice.
        kind: Estimator, `mc` by default.
        draws: Labels drawn per input, for `mc`.
        batch_size: Inputs per pass.
        seed: Seed of the drawn labels; every measurement draws anew.

    Raises:
        ValueError: If the kind is unknown.
    """

    def __init__(
        self,
        when: Schedule | None = None,
        *,
        data: Any,
        kind: Kind = "mc",
        draws: int = 1,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        _check_kind(kind)
        self.when = when or every(epochs=1)
        self._data = ProbeSet(data, probe="FisherTrace")
        self._kind = kind
        self._draws = draws
        self._batch_size = batch_size
        self._seed = seed

    def measure(self, model: nn.Module, *, step: int) -> list[Scalar]:
        """Estimate the trace now.

        Returns:
            The total and one value per layer.
        """
        estimate = fisher_trace(
            model,
            self._data,
            kind=self._kind,
            draws=self._draws,
            batch_size=self._batch_size,
            seed=self._seed * 1_000_003 + step,
        )
        return [
            Scalar(
                name=_SCALAR_NAME[self._kind],
                value=part.value,
                block=block,
                stderr=part.stderr,
                n=part.n,
                estimator=self._kind,
                label_source="model" if self._kind == "mc" else "data",
                mode="eval",
            )
            for block, part in {"total": estimate, **estimate.blocks}.items()
        ]

    def describe(self) -> dict[str, object]:
        """What `run.json` says about the probe."""
        return cast(
            "dict[str, object]",
            {"probe": "FisherTrace", "when": str(self.when), "kind": self._kind}
            | {"draws": self._draws, "n": len(self._data), "seed": self._seed},
        )
