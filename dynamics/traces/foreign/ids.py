"""The numbers by which a trace knows samples that a log names by numbers or by text."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.traces.errors import TraceError

MAX_KEY = 1024
"""Longest text that may name a sample, in bytes."""

_WHOLE = r"^(0|-?[1-9][0-9]{0,18})$"


class TextIds(Exception):
    """The samples of a log are named by text, so their ids are hashes."""


def hash_key(key: str) -> int:
    """The id of a sample that is named by text: the first 63 bits of the text's SHA-256.

    The same text has the same id in every run. Among a million samples the chance that any two
    share an id is 5e-8, and then the import refuses them.

    Args:
        key: The text.

    Returns:
        A number from 0 to 2^63 − 1.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def number_samples(named: pa.Array, *, as_text: bool, where: str) -> tuple[pa.Array, pa.Array]:
    """Ids of samples, and their names if those are text.

    Args:
        named: How the log names them: whole numbers or text, none missing.
        as_text: Whether to take numbers for text too, because others of the log are text.
        where: The source, for messages.

    Returns:
        int64 ids, and the names as text; these are all missing when ids are the log's own numbers.

    Raises:
        TextIds: If a name is text and `as_text` is False.
        TraceError: If a name is longer than MAX_KEY, or neither a whole number nor text.
    """
    try:
        if pa.types.is_integer(named.type) and not as_text:
            return named.cast(pa.int64()), pa.nulls(len(named), pa.string())
        text = named.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TraceError(
            f"{where}: samples are named by whole numbers below 2^63 or by text: {error}."
        ) from None
    if not as_text:
        return _parse(text), pa.nulls(len(text), pa.string())
    encoded = text.dictionary_encode()
    keys = encoded.dictionary.to_pylist()
    if long := next((key for key in keys if len(key.encode()) > MAX_KEY), None):
        raise TraceError(
            f"{where}: the name of a sample has {len(long):,} characters, {long[:40]!r}…; "
            f"{MAX_KEY:,} bytes are the most. Is this the right column?"
        )
    hashes = np.array([hash_key(key) for key in keys], dtype=np.int64)
    return pa.array(hashes[encoded.indices.to_numpy()]), text


def _parse(text: pa.Array) -> pa.Array:
    if not pc.all(pc.match_substring_regex(text, _WHOLE), min_count=0).as_py():
        raise TextIds
    try:
        return text.cast(pa.int64())
    except pa.ArrowInvalid:  # beyond 64 bits
        raise TextIds from None
