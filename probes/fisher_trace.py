"""The trace of the Fisher information of the weights, on a fixed probe set.

    tr F = E_x E_{y∼p(y|x)} ‖∇_w log p(y|x)‖²

with labels drawn from the model. With the data's labels instead, the same average is the trace of
the *empirical* Fisher, which is not an estimate of tr F: it vanishes as the training loss does. It
is stored under a name of its own. docs/fisher.md says which estimator answers which question.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, get_args

from torch import nn

from probes.engines.backpack import BackpackEngine
from probes.fisher_estimate import FisherEstimate, Kind
from probes.fisher_estimators import estimate, find_engine
from probes.fisher_plan import Plan
from probes.likelihood import Likelihood, output_fisher
from probes.probe import Event, Finding, Probe, Scalar, Vector
from probes.probe_set import ProbeSet
from probes.schedule import Schedule, every


def fisher_trace(
    model: nn.Module,
    data: Any,
    *,
    kind: Kind = "mc",
    likelihood: Likelihood = "softmax",
    target_stderr: float | None = 0.05,
    draws: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    mode: str = "eval",
    diagonal: bool = False,
) -> FisherEstimate:
    """Estimate the trace of the Fisher information of a network's weights, leaving it as it was.

    With J_i the Jacobian of the outputs for input i and H_i their Fisher information (for softmax,
    diag(p) − p pᵀ), tr F = (1/N) Σ_i tr(J_iᵀ H_i J_i):

    - `exact`: C − 1 vectors v with Σ v vᵀ = H_i, each input: (1/N) Σ_i Σ_v ‖J_iᵀ v‖².
    - `mc`: inputs drawn in proportion to tr H_i, and for each a unit vector v̂ with
      E v̂ v̂ᵀ = H_i / tr H_i, for softmax along e_c − p with c ∝ p_c‖e_c − p‖²; then
      tr F = mean(tr H) · E ‖Jᵀ v̂‖². Unbiased. Forward passes over inputs find tr H, as many of the
      probe set as pay; draws come in strata of two (inputs in order of predicted class and tr H),
      until `target_stderr` is met or `draws` are spent. Draws after the first 64 are also in
      proportion to ‖Jᵀ v̂‖² as those predict it from the layers' inputs and the class, and are
      divided by their chance.
    - `batch`: B ‖(1/B) Σ_i J_iᵀ v_i / √(N q_i)‖² for random batches, inputs drawn with probability
      q_i ∝ tr H_i, E v vᵀ = H with E v = 0: any architecture, no per-sample gradients, but the
      error of a handful of values. Each batch draws twice, which tells how its inputs differ.
    - `empirical`: (1/N) Σ_i ‖∇ log p(y_i|x_i)‖² at the data's labels, *not* an estimate of tr F;
      with the gradient noise scale tr Σ / ‖G‖² from the same pass, unbiased in both parts.

    The same pass gives each block's trace, share and ‖w‖², and the scale-free Σ_j w_j² F_jj.

    Args:
        model: Network from inputs to outputs of shape (N, C), or (N, T, C) for T positions whose
            log-probabilities add up.
        data: Probe set: (inputs, labels), inputs, or a map-style data set. Labels of −100 mark
            positions that do not count.
        kind: Estimator, `mc` by default.
        likelihood: `softmax` for class scores; `bernoulli` for logits of independent yes/no labels
            (BCE with logits); `gaussian` for means of labels with variance 1 (ℓ = ½‖y − z‖²).
        target_stderr: Relative standard error of the draws, given the probe set, at which `mc` and
            `batch` stop; None to spend all draws.
        draws: Most draws: 1,024 for `mc` by default, two per input for `batch`.
        batch_size: Most inputs per pass; `batch` also divides the probe set into 16 parts or more.
        seed: Seed of the draws; the global random state is neither used nor changed.
        mode: `eval`, the only one: BatchNorm's batch statistics would mix the samples.
        diagonal: Also return the diagonal of F; takes memory like the model. Not for `batch`.

    Returns:
        The trace with its standard errors, in total and for each block.

    Raises:
        ValueError: If an option is unknown or does not go with another, labels are needed and
            missing, or outputs or labels are not of the likelihood's shape.
        UnsupportedModelError: If a layer has no exact per-sample rule; all of them are named.

    Cost: in passes over one input. `exact`: a forward and C − 1 backward passes of N inputs. `mc`:
    a forward pass of up to N inputs, and both passes of each draw. `batch`: a forward pass of N
    inputs and of one for every two draws, and a backward pass for each draw. `empirical`: both
    passes of each input. Backward passes skip the weights' gradients but for `batch` and
    `empirical`.

    Reference:
        Achille, Rovere and Soatto, ICLR 2019, Sec. 3. On `empirical`: Kunstner, Balles and Hennig,
        NeurIPS 2019. H and its roots: Martens, JMLR 2020, Sec. 9. Noise scale: McCandlish et al.,
        2018, Sec. 2.2. Strata of two draws: Cochran, Sampling Techniques, 1977, Sec. 5A.
    """
    probe_set = data if isinstance(data, ProbeSet) else ProbeSet(data, probe="fisher_trace")
    _check(kind, mode, target_stderr, draws, diagonal, has_labels=probe_set.labels is not None)
    output_fisher(likelihood)
    return estimate(
        Plan(
            model=model,
            data=probe_set,
            kind=kind,
            likelihood=likelihood,
            target_stderr=target_stderr,
            draws=draws,
            batch_size=batch_size,
            seed=seed,
            diagonal=diagonal,
        )
    )


def _check(
    kind: str,
    mode: str,
    target_stderr: float | None,
    draws: int | None,
    diagonal: object,
    *,
    has_labels: bool,
) -> None:
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, but is {kind!r}.")
    if mode != "eval":
        raise ValueError(
            f"mode must be 'eval', but is {mode!r}. With BatchNorm's batch statistics a sample's "
            "outputs depend on the others of its batch, so neither log p(y|x) of one sample nor "
            "its gradient exists, and tr F would change with the batch size."
        )
    if kind == "empirical" and not has_labels:
        raise ValueError("The empirical Fisher needs labels: pass data=(inputs, labels).")
    if draws is not None and draws < 2:
        raise ValueError(f"An error can be told from two draws or more, but draws={draws}.")
    if target_stderr is not None and not target_stderr > 0:
        raise ValueError(
            f"target_stderr is a relative standard error above 0, such as 0.02, or None to spend "
            f"all draws, but is {target_stderr}."
        )
    if diagonal and kind == "batch":
        raise ValueError(
            "kind='batch' squares averages over batches, which gives no diagonal of F. Use "
            "kind='mc' or 'exact'."
        )


class FisherTrace(Probe):
    """Records `fisher_trace` on a fixed probe set, in total and by block, on a schedule.

    Scalars, each with standard error, number of inputs, estimator, label source and mode:
    `fisher_trace`, `fisher_share`, `scale_free_fisher_trace` and `weight_norm_sq`, or with
    `kind="empirical"` `empirical_fisher_trace`, `gradient_noise_scale` and `gradient_snr`;
    `fisher_draw_stderr` is the error that the draws alone bring in, with their number as n. A
    target that was not met is an event.

    Cost: that of `fisher_trace` at each measurement; the default takes about as long as training
    on as many samples as the probe set holds.

    Args:
        when: Schedule; before the first epoch and after each one by default.
        data: Probe set; a few hundred to a thousand training inputs usually suffice.
        kind: Estimator, `mc` by default.
        likelihood: Kind of outputs; class scores by default.
        target_stderr: Relative standard error of the draws at which `mc` and `batch` stop.
        draws: Most draws.
        batch_size: Inputs per pass.
        seed: Seed of the draws; every measurement draws anew.
        mode: `eval`, the only one.
        diagonal: When to keep the diagonal of F too, as the vector `fisher_diagonal` in the run
            (`empirical_fisher_diagonal` for that kind); never by default. Looked at whenever `when`
            is due.

    Raises:
        ValueError: If an option is unknown or does not go with another.
    """

    needs_whole_model: ClassVar[bool] = True

    def __init__(
        self,
        when: Schedule | None = None,
        *,
        data: Any,
        kind: Kind = "mc",
        likelihood: Likelihood = "softmax",
        target_stderr: float | None = 0.05,
        draws: int | None = None,
        batch_size: int = 128,
        seed: int = 0,
        mode: str = "eval",
        diagonal: Schedule | None = None,
    ) -> None:
        self.when = when or every(epochs=1)
        self._data = ProbeSet(data, probe="FisherTrace")
        has_labels = self._data.labels is not None
        _check(kind, mode, target_stderr, draws, diagonal, has_labels=has_labels)
        output_fisher(likelihood)
        self._kind: Kind = kind
        self._likelihood: Likelihood = likelihood
        self._target_stderr = target_stderr
        self._draws = draws
        self._batch_size = batch_size
        self._seed = seed
        self._diagonal = diagonal
        self._engine: BackpackEngine | None = None

    def attach(self, model: nn.Module) -> None:
        """Refuse, before training begins, layers that have no rule in eval mode."""
        if self._kind != "batch":
            self._engine = find_engine(model)

    def detach(self) -> None:
        """Forget the model; between measurements nothing is on it."""
        self._engine = None

    def measure(self, model: nn.Module, *, step: int, epoch: int) -> list[Finding]:
        """Estimate the trace now.

        Returns:
            Values in total and by block, and the diagonal if it is due.
        """
        due = self._diagonal
        keep = due is not None and (due.due_after_epoch(epoch) or due.due_at_step(step))
        plan = Plan(
            model=model,
            data=self._data,
            kind=self._kind,
            likelihood=self._likelihood,
            target_stderr=self._target_stderr,
            draws=self._draws,
            batch_size=self._batch_size,
            seed=self._seed * 1_000_003 + step,
            diagonal=keep,
        )
        return list(self._findings(estimate(plan, self._engine)))

    def _findings(self, whole: FisherEstimate) -> Iterator[Finding]:
        is_empirical = self._kind == "empirical"
        prefix = "empirical_" if is_empirical else ""
        source = "data" if is_empirical else "model"
        measured = partial(Scalar, estimator=self._kind, label_source=source, mode="eval")
        for block, part in {"total": whole, **whole.blocks}.items():
            value = partial(measured, block=block, n=part.n)
            yield value(f"{prefix}fisher_trace", part.value, stderr=part.stderr)
            if is_empirical:
                yield value("gradient_noise_scale", part.noise_scale)
                yield value("gradient_snr", part.snr)
                continue
            if block != "total":
                yield value("fisher_share", part.share, stderr=part.share_stderr)
            if self._kind != "batch":
                error = part.scale_free_stderr
                yield value("scale_free_fisher_trace", part.scale_free, stderr=error)
            yield Scalar("weight_norm_sq", part.weight_norm_sq, block=block)
        if whole.n_draws is not None:
            yield measured("fisher_draw_stderr", whole.draw_stderr, n=whole.n_draws)
        if whole.diagonal and is_empirical:
            yield measured("parameter_snr", whole.parameter_snr, n=whole.n)
        if whole.diagonal:
            yield Vector(f"{prefix}fisher_diagonal", whole.diagonal)
        if whole.target_met is False:
            found = whole.draw_stderr / whole.value if whole.value else math.nan
            detail = (
                f"relative standard error {found:.3g} after {whole.n_draws} draws, where "
                f"{self._target_stderr} was asked for"
            )
            yield Event("target_stderr_missed", "fisher_trace", detail)

    def describe(self) -> dict[str, object]:
        """What `run.json` says about the probe."""
        return {
            "probe": "FisherTrace",
            "when": str(self.when),
            "kind": self._kind,
            "likelihood": self._likelihood,
            "target_stderr": self._target_stderr,
            "draws": self._draws,
            "n": len(self._data),
            "seed": self._seed,
            "diagonal": str(self._diagonal) if self._diagonal else None,
        }
