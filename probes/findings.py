"""What probes found by passes of their own, as rows of the trace."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from probes.probe import Event, Finding, Scalar, scalar_columns


def finding_rows(
    findings: Sequence[Finding], *, step: int, epoch: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Scalars and events as rows; a scalar that is not finite brings an event that says so.

    Args:
        findings: What was found; vectors are passed over, for they are files of their own.
        step: Optimiser updates so far.
        epoch: Epoch in progress or just ended.

    Yields:
        Name of a table, and columns for it.
    """
    scalars = [finding for finding in findings if isinstance(finding, Scalar)]
    events = [
        Event("non_finite", scalar.name, f"block {scalar.block}: {scalar.value}")
        for scalar in scalars
        if not math.isfinite(scalar.value)
    ]
    events += [finding for finding in findings if isinstance(finding, Event)]
    if scalars:
        place = {"step": [step] * len(scalars), "epoch": [epoch] * len(scalars)}
        yield "scalars", place | scalar_columns(scalars)
    for event in events:
        row: dict[str, list[Any]] = {"step": [step], "epoch": [epoch], "name": [event.name]}
        yield "events", row | {"subject": [event.subject], "detail": [event.detail]}
