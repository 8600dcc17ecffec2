"""The files of a table: listing them, and opening one.

No byte reaches Parquet before its hash has been compared with the one in the file's name.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.traces.errors import CorruptTraceError
from dynamics.traces.layout import PartName, content_hash
from dynamics.traces.schema import check_schema_version


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a table."""

    name: PartName
    path: Path


def list_parts(folder: Path, table: str) -> list[Part]:
    """Files of a table, in the order in which they were recorded.

    Args:
        folder: Folder of the run.
        table: Name of the table.

    Returns:
        The parts; anything else in the table's folders is passed over.
    """
    parts = []
    for path in (folder / table).glob("rank-*/part-*.parquet"):
        name = PartName.parse(path.name)
        if name is not None and not path.is_symlink():
            parts.append(Part(name, path))
    return sorted(parts, key=lambda part: (part.name.first_step, part.name, part.path))


def open_part(part: Part, *, verified: bool = False) -> pq.ParquetFile:
    """Open a part, after comparing its bytes with the hash in its name.

    Args:
        part: Which.
        verified: Whether its bytes have been compared before.

    Returns:
        The file, held in memory.

    Raises:
        CorruptTraceError: If its bytes are not those written, or not a Parquet file's.
    """
    data = part.path.read_bytes()
    if not verified:
        found = content_hash(data)
        if found != part.name.content_hash:
            raise CorruptTraceError(
                f"{part.path} is damaged: its bytes hash to {found}, and its name says "
                f"{part.name.content_hash}. Restore the file from a copy, or move it out of "
                "the run to read the rest without its rows."
            )
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptTraceError(f"{part.path} is not a Parquet file: {error}.") from None
    metadata = file.schema_arrow.metadata or {}
    version = metadata.get(b"schema_version", b"").decode(errors="replace")
    check_schema_version(version, str(part.path))
    return file
