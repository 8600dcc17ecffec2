"""Files of one JSON object a line, read so that every mistake names its line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynamics.traces.errors import TraceError

MAX_LINE = 2**24
"""Longest line, in bytes."""


def iter_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, one a line; empty lines are passed over.

    Args:
        path: The file, in UTF-8.

    Yields:
        Number of the line, from 1, and its object.

    Raises:
        TraceError: If a line is too long, not JSON, or not an object.
    """
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise TraceError(f"{path}, line {number} is longer than {MAX_LINE:,} bytes.")
            if line.strip():
                yield number, _parse(line, f"{path}, line {number}")


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise TraceError(
            f"{where} is not one JSON object: {error}. It begins {line[:60]!r}."
        ) from None
    if not isinstance(record, dict):
        raise TraceError(
            f"{where} should hold one JSON object, but holds a {type(record).__name__}."
        )
    return record
