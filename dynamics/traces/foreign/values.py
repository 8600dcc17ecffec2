"""Foreign values as the trace stores them, or an error that names the first that cannot be."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.traces.errors import TraceError

_TRUTH = {"true": 1.0, "false": 0.0}


def as_stored(values: pa.Array, field: pa.Field, where: str, first_row: int) -> pa.Array:
    """One column's values in the type of a trace's column.

    NaN stays NaN in floating columns, where the writer makes it missing and says so in `status`;
    among whole numbers it can only mean missing.

    Args:
        values: Numbers, truth values or text.
        field: The trace's column.
        where: The source, for messages.
        first_row: Number of the first value's row, from 1, for messages.

    Returns:
        The values, of the field's type.

    Raises:
        TraceError: If a value is not a number where one is needed, not whole, out of range, or
            missing where the trace allows none.
    """
    what = f"{where}, row {{row}}: `{field.name}` "
    if pa.types.is_string(field.type):
        stored = _as_text(values, what, first_row)
    elif pa.types.is_floating(field.type):
        stored = _as_numbers(values, what, first_row).cast(field.type, safe=False)
    else:
        stored = _as_whole(values, field, what, first_row)
    if not field.nullable and stored.null_count:
        row = first_row + int(np.argmax(stored.is_null().to_numpy(zero_copy_only=False)))
        raise TraceError(f"{what.format(row=row)}is missing, and every row needs it.")
    return stored


def _as_text(values: pa.Array, what: str, first_row: int) -> pa.Array:
    try:
        return values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise TraceError(
            f"{what.format(row=first_row)}should be text, but is {values.type}."
        ) from None


def _as_numbers(values: pa.Array, what: str, first_row: int) -> pa.Array:
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()).cast(pa.float64())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return values.cast(pa.float64(), safe=False)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise TraceError(f"{what.format(row=first_row)}should be a number, but is {kind}.")
    return pa.array(_parse_each(values.to_pylist(), what, first_row), pa.float64())


def _parse_each(texts: list[str | None], what: str, first_row: int) -> list[float | None]:
    numbers: list[float | None] = []
    for row, text in enumerate(texts, first_row):
        try:
            numbers.append(None if text is None else _parse(text))
        except ValueError:
            raise TraceError(
                f"{what.format(row=row)}should be a number, but is {str(text)[:60]!r}."
            ) from None
    return numbers


def _parse(text: str) -> float:
    truth = _TRUTH.get(text.strip().lower())
    return float(text) if truth is None else truth


def _as_whole(values: pa.Array, field: pa.Field, what: str, first_row: int) -> pa.Array:
    if pa.types.is_integer(values.type):  # not by way of float64, which ends at 2^53
        numbers, missing = values.to_numpy(zero_copy_only=False), values.is_null()
        whole = pc.fill_null(values, 0).to_numpy()
    else:
        numbers = _as_numbers(values, what, first_row).to_numpy(zero_copy_only=False)
        missing = pa.array(np.isnan(numbers))
        whole = np.nan_to_num(numbers, nan=0.0, posinf=np.inf, neginf=-np.inf)
    bounds = np.iinfo(field.type.to_pandas_dtype())
    low, high = (0, 1) if field.name == "correct" else (bounds.min, bounds.max)
    if field.name == "step":  # as many digits as the name of a part has room for
        low, high = 0, 10**18 - 1
    exact = min(high, 2**53) if whole.dtype.kind == "f" else high
    bad = (whole < max(low, -exact)) | (whole > exact) | (whole != np.floor(whole))
    if bad.any():
        at = int(np.argmax(bad))
        raise TraceError(
            f"{what.format(row=first_row + at)}should be a whole number from {low:,} to {high:,}, "
            f"but is {numbers[at]}."
        )
    kept = whole.astype(field.type.to_pandas_dtype())
    return pa.array(kept, mask=missing.to_numpy(zero_copy_only=False))
