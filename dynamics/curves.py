"""What a curve over epochs did: where it began, peaked and ended, and whether the peak is one."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True, slots=True)
class CurveShape:
    """Begin, peak and end of a measured curve, with standard errors.

    Attributes:
        first: First value.
        peak: Largest value.
        peak_stderr: Its standard error.
        peak_epoch: Epoch of the largest value; the first one of ties.
        last: Last value.
        last_stderr: Its standard error.
        has_interior_peak: Whether the peak is neither first nor last, and above both by more than
            1.96 standard errors of the difference.
    """

    first: float
    peak: float
    peak_stderr: float
    peak_epoch: int
    last: float
    last_stderr: float
    has_interior_peak: bool


def describe_curve(table: pd.DataFrame) -> CurveShape:
    """Describe one curve.

    The errors of two points are taken as independent. On one fixed probe set they are positively
    correlated, so the test of the peak errs on the side of finding none; that the peak is the
    largest of many values errs on the other.

    Args:
        table: Rows of `run.scalars()` of one name and block: columns `epoch, value, stderr`.

    Returns:
        Its shape.

    Raises:
        ValueError: If there is no finite value.
    """
    rows = table.dropna(subset=["value"]).sort_values("epoch", kind="stable")
    if rows.empty:
        raise ValueError("A curve needs at least one finite value.")
    value = rows["value"].to_numpy(dtype=np.float64)
    stderr = rows["stderr"].to_numpy(dtype=np.float64)
    top = int(value.argmax())
    known = np.nan_to_num(stderr)
    clear = [value[top] - value[end] > 1.96 * np.hypot(known[top], known[end]) for end in (0, -1)]
    return CurveShape(
        first=float(value[0]),
        peak=float(value[top]),
        peak_stderr=float(stderr[top]),
        peak_epoch=int(rows["epoch"].iloc[top]),
        last=float(value[-1]),
        last_stderr=float(stderr[-1]),
        has_interior_peak=0 < top < len(value) - 1 and all(clear),
    )
