"""What a Fisher trace is estimated from, and the estimate with its standard errors.

Each estimator ends in a table of values: one row per input, draw or batch, one column per block.
The trace is their mean. Shares are ratios of means, whose errors are those of the linearised
residuals, so the same rows give every standard error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

Kind = Literal["exact", "mc", "batch", "empirical"]
"""How a trace is estimated; `fisher_trace` defines them."""


@dataclass(frozen=True, slots=True)
class FisherEstimate:
    """An estimated trace, in total or of one block.

    Attributes:
        value: The trace, in nats² per squared unit of parameter, averaged over the probe set.
        stderr: Its standard error as an estimate for the inputs that the probe set was drawn from.
        draw_stderr: The part of it that more draws on the same probe set would remove; 0 for
            `exact` and `empirical`. Differences between two networks on one probe set have no
            other error.
        n: Inputs in the probe set.
        n_draws: Draws that the value rests on, or None where nothing is drawn.
        kind: Estimator.
        share: Share of the total trace.
        share_stderr: Its standard error, as `stderr`.
        weight_norm_sq: ‖w‖² of the trainable parameters.
        scale_free: Σ_j w_j² F_jj, unchanged when the layer is rescaled under BatchNorm; NaN for
            `batch`, which sees no single entry squared before it is averaged.
        scale_free_stderr: Its standard error.
        noise_scale: Gradient noise scale tr Σ / ‖G‖² in samples; NaN unless `empirical`.
        snr: Its inverse ‖G‖² / tr Σ, which may come out below 0 where noise hides the gradient.
        target_met: Whether `draw_stderr` reached the target; None where none was set.
        blocks: The same for each block's parameters; their values add up to `value`.
        diagonal: Diagonal of the Fisher matrix by parameter, shaped like it, if asked for.
        parameter_snr: Mean over parameters of ḡ_j² / Var g_j; NaN unless `empirical` with the
            diagonal.
    """

    value: float
    stderr: float
    n: int
    kind: Kind
    draw_stderr: float = 0.0
    n_draws: int | None = None
    share: float = 1.0
    share_stderr: float = 0.0
    weight_norm_sq: float = math.nan
    scale_free: float = math.nan
    scale_free_stderr: float = math.nan
    noise_scale: float = math.nan
    snr: float = math.nan
    target_met: bool | None = None
    blocks: "dict[str, FisherEstimate]" = field(default_factory=dict)
    diagonal: dict[str, Tensor] = field(default_factory=dict)
    parameter_snr: float = math.nan


class Values(Protocol):
    """A table of values whose mean is the estimate; columns are blocks."""

    @property
    def rows(self) -> np.ndarray:
        """The values, shape (rows, blocks)."""

    def mean(self, column: np.ndarray) -> float:
        """The estimate that a column stands for."""

    def variances(self, column: np.ndarray) -> tuple[float, float]:
        """Squared standard error of the mean, in all and of the draws alone."""


@dataclass(frozen=True)
class InputValues:
    """One row per input of the probe set: `exact` and `empirical`."""

    rows: np.ndarray

    def mean(self, column: np.ndarray) -> float:
        """Mean over the inputs."""
        return float(column.mean())

    def variances(self, column: np.ndarray) -> tuple[float, float]:
        """Over the inputs; there are no draws."""
        return (float(column.var(ddof=1)) / len(column) if len(column) > 1 else math.nan), 0.0


@dataclass(frozen=True)
class BatchValues:
    """Two rows per batch, whose vectors were drawn twice: `batch`.

    Batches are drawn anew, inputs in proportion to tr H, so what batches differ by is the draws'
    error. What the two draws of a batch have in common tells how the inputs' gains T_i / tr H_i
    vary; that these do not depend on tr H_i is assumed for the error of the probe set as a sample.

    Attributes:
        rows: Squared norm of the summed gradient over the batch's size, places 2k and 2k + 1.
        sizes: Inputs of each batch.
        all_traces: tr H of each input of the probe set.
    """

    rows: np.ndarray
    sizes: np.ndarray
    all_traces: np.ndarray

    @property
    def n_draws(self) -> int:
        """Vectors drawn."""
        return 2 * int(self.sizes.sum())

    def mean(self, column: np.ndarray) -> float:
        """Mean over the batches, by their sizes."""
        return float(np.average(column, weights=np.repeat(self.sizes, 2)))

    def variances(self, column: np.ndarray) -> tuple[float, float]:
        """From batches, and from what two draws of a batch have in common."""
        n_batches, weights = len(self.sizes), self.sizes / self.sizes.sum()
        if n_batches < 2:
            return math.nan, math.nan
        mean, more = self.mean(column), n_batches / (n_batches - 1)
        first, second = column[::2] - mean, column[1::2] - mean
        drawn = more * float(weights**2 @ (first + second) ** 2) / 4
        if not self.all_traces.any():
            return drawn, drawn
        common = more * float(weights * self.sizes @ (first * second))
        uneven = float((self.all_traces**2).mean() / self.all_traces.mean() ** 2)
        spread = uneven * (mean**2 + max(common, 0.0)) - mean**2
        return drawn + max(spread, 0.0) / len(self.all_traces), drawn


@dataclass(frozen=True)
class DrawValues:
    """One row per draw of an input and a direction: `mc`.

    Inputs are drawn among those looked at in strata of two draws each, of equal probability, so the
    draws' variance is read off the differences within these pairs (rows 2k and 2k + 1).

    Attributes:
        rows: ‖Jᵀv̂‖² of each draw, with v̂ of unit length.
        weights: Weight of each draw: tr H of its input over its probability, over the number of
            draws and of inputs looked at, so that the weighted sum is the mean over the inputs.
        tilts: The part of it that makes up for the choice of a direction, given the input.
        chosen: Index of each draw's input.
        traces: tr H of each draw's input.
        all_traces: tr H of each input looked at.
        n: Inputs in the probe set, from which those were taken at random.
    """

    rows: np.ndarray
    weights: np.ndarray
    tilts: np.ndarray
    chosen: np.ndarray
    traces: np.ndarray
    all_traces: np.ndarray
    n: int

    @property
    def n_draws(self) -> int:
        """Draws made."""
        return len(self.rows)

    @property
    def n_inputs(self) -> int:
        """Inputs looked at."""
        return len(self.all_traces)

    def mean(self, column: np.ndarray) -> float:
        """Sum over the draws by their weights."""
        return float(self.weights @ column)

    def parts(self, column: np.ndarray) -> tuple[float, float]:
        """Variance of the estimate that the draws bring in, and variance of single inputs' values.

        An input's value is its tr H times the mean over its directions, whose mean square the
        draws tell. A draw's square holds the directions' variance too, which pairs on one input
        tell; where there are none, draws are few and their error rules.
        """
        weighted = self.weights * column
        drawn = float(((weighted[::2] - weighted[1::2]) ** 2).sum())
        if self.n_inputs < 2:
            return drawn, math.nan
        if not self.traces.any():
            return drawn, 0.0
        by_trace = self.weights * self.traces
        mean_square = float(by_trace @ column**2 / by_trace.sum())
        tilted = self.tilts * column
        twice = (by_trace / self.tilts)[::2] * (self.chosen[::2] == self.chosen[1::2])
        if twice.any():
            squares = (tilted * column).reshape(-1, 2).mean(1)
            mean_square -= float(twice @ (squares - tilted[::2] * tilted[1::2]) / twice.sum())
        spread = float((self.all_traces**2).mean()) * mean_square - self.mean(column) ** 2
        return drawn, max(spread, 0.0) * self.n_inputs / (self.n_inputs - 1)

    def variances(self, column: np.ndarray) -> tuple[float, float]:
        """The draws', and that inputs are a sample: of the data, and of the probe set."""
        drawn, spread = self.parts(column)
        if self.n == 1:
            return math.nan, drawn
        left_out = spread * (1 / self.n_inputs - 1 / self.n) if self.n_inputs < self.n else 0.0
        return drawn + spread / self.n_inputs, drawn + left_out


@dataclass(frozen=True)
class Measured:
    """Everything that a pass over the probe set found.

    Attributes:
        blocks: Names of the blocks, in the model's order.
        values: Squared norms.
        scale_free: Σ_j w_j² g_ij² in the same rows; None for `batch`.
        weight_norms_sq: ‖w‖² of each block.
        n: Inputs in the probe set.
        n_draws: Draws, if any.
        target_met: Whether the target was met, if there was one.
    """

    blocks: Sequence[str]
    values: Values
    scale_free: np.ndarray | None
    weight_norms_sq: Sequence[float]
    n: int
    n_draws: int | None = None
    target_met: bool | None = None

    def estimate(self, kind: Kind) -> FisherEstimate:
        """The estimates of all blocks and of their total.

        Args:
            kind: Estimator that the values came from.

        Returns:
            The total, with the blocks in it.
        """
        total = self.values.rows.sum(1)
        blocks = {
            block: self._one(kind, index, self.values.rows[:, index], total)
            for index, block in enumerate(self.blocks)
        }
        return self._one(kind, None, total, total, blocks)

    def _one(
        self,
        kind: Kind,
        index: int | None,
        column: np.ndarray,
        total: np.ndarray,
        blocks: dict[str, FisherEstimate] | None = None,
    ) -> FisherEstimate:
        variance, drawn = self.values.variances(column)
        value, whole = self.values.mean(column), self.values.mean(total)
        share = value / whole if whole else math.nan
        residual_variance, _ = self.values.variances(column - share * total)
        scale_free, scale_free_variance = math.nan, math.nan
        if self.scale_free is not None:
            sums = self.scale_free.sum(1) if index is None else self.scale_free[:, index]
            scale_free = self.values.mean(sums)
            scale_free_variance, _ = self.values.variances(sums)
        norms = self.weight_norms_sq
        return FisherEstimate(
            value=value,
            stderr=math.sqrt(variance),
            n=self.n,
            kind=kind,
            draw_stderr=math.sqrt(drawn),
            n_draws=self.n_draws,
            share=share,
            share_stderr=math.sqrt(residual_variance) / whole if whole else math.nan,
            weight_norm_sq=sum(norms) if index is None else norms[index],
            scale_free=scale_free,
            scale_free_stderr=math.sqrt(scale_free_variance),
            target_met=self.target_met,
            blocks=blocks or {},
        )
