"""The manifest of a compacted run: which buckets stand in for which parts.

`compacted/v0001/` holds buckets, each a part whose rows are those of a range of samples, and
`manifest.json`. The newest version with a manifest counts; a part that it replaces is no longer
read, whether its file is still there or not. So the folder's rename to its name is the commit.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dynamics.traces.errors import CorruptTraceError, SchemaError, TraceError
from dynamics.traces.layout import PartName, write_durably
from dynamics.traces.limits import MAX_JSON_BYTES, parse_json, read_regular
from dynamics.traces.schema import SCHEMA_VERSION, TABLES, check_schema_version

COMPACTED = "compacted"
MANIFEST_FILE = "manifest.json"
MANIFEST_COPY = "manifest.copy.json"
VERSION_FOLDER = re.compile(r"v(\d{4,9})")
RANK_FOLDER = re.compile(r"rank-\d{5,9}")


@dataclass(frozen=True, slots=True)
class Bucket:
    """One file of a compacted table; `first_sample` and `last_sample` bound its sample ids."""

    table: str
    name: str
    rows: int
    first_sample: int = 0
    last_sample: int = 0

    @property
    def part_name(self) -> PartName:
        """What its file name says."""
        name = PartName.parse(self.name)
        if name is None:
            raise ValueError(f"{self.name[:200]!r} is not the name of a bucket")
        return name


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a compaction made, and what that stands in for.

    Attributes:
        folder: Folder of its buckets.
        attempt: Newest attempt whose rows they hold; later fences limit them as they limit a part.
        buckets: The files.
        replaces: Rows as stored of each replaced part, by its path within the run.
        lost: Buckets that `repair` has set aside since.
    """

    folder: Path
    attempt: int
    buckets: tuple[Bucket, ...]
    replaces: Mapping[str, int]
    lost: tuple[Bucket, ...] = field(default=())


def list_versions(run: Path) -> list[tuple[int, Path]]:
    """Versions of a run's compacted form that have been committed, oldest first.

    Args:
        run: Folder of the run.

    Returns:
        Number and folder of each.
    """
    compacted = run / COMPACTED
    if compacted.is_symlink() or not compacted.is_dir():
        return []
    found = []
    for path in compacted.iterdir():
        match = VERSION_FOLDER.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found.append((int(match[1]), path))
    return sorted(found)


def read_manifest(run: Path) -> Manifest | None:
    """The manifest that counts, or None if the run has not been compacted.

    Args:
        run: Folder of the run.

    Returns:
        The manifest of the newest version.

    Raises:
        CorruptTraceError: If it is missing or damaged.
    """
    versions = list_versions(run)
    if not versions:
        return None
    path = versions[-1][1] / MANIFEST_FILE
    try:
        return decode_manifest(read_regular(path, MAX_JSON_BYTES), path)
    except FileNotFoundError:
        if not path.parent.exists():  # a newer version has just replaced it
            return read_manifest(run)
        raise CorruptTraceError(_mend(f"{path} is missing.", run)) from None
    except SchemaError:
        raise
    except TraceError as error:
        raise CorruptTraceError(_mend(f"{path} is damaged: {error}", run)) from None


def _mend(what: str, run: Path) -> str:
    return f"{what} `dynamics repair {run}` makes it anew from the buckets beside it."


def encode_manifest(manifest: Manifest) -> bytes:
    """A manifest as the bytes of its file, with a hash of the rest in it."""
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "attempt": manifest.attempt,
        "buckets": [asdict(bucket) for bucket in manifest.buckets],
        "lost": [asdict(bucket) for bucket in manifest.lost],
        "replaces": dict(sorted(manifest.replaces.items())),
    }
    return json.dumps({"content_hash": _hash(content), **content}, indent=1).encode()


def write_manifest(manifest: Manifest) -> None:
    """Write a manifest into its folder, durably, and a copy that only `repair` reads."""
    data = encode_manifest(manifest)
    write_durably(manifest.folder, MANIFEST_FILE, data)
    write_durably(manifest.folder, MANIFEST_COPY, data)


def copy_is_sound(manifest: Manifest) -> bool:
    """Whether the copy of a manifest holds the same."""
    path = manifest.folder / MANIFEST_COPY
    try:
        return decode_manifest(read_regular(path, MAX_JSON_BYTES), path) == manifest
    except (TraceError, OSError):
        return False


def decode_manifest(data: bytes, path: Path) -> Manifest:
    """A manifest from the bytes of its file.

    Args:
        data: The bytes.
        path: The file that they are from.

    Returns:
        The manifest.

    Raises:
        TraceError: If they are not those written.
    """
    content = parse_json(data, path)
    if content.pop("content_hash", None) != _hash(content):
        raise TraceError(f"{path} does not hold what was written to it.")
    check_schema_version(content.get("schema_version"), str(path))
    try:
        return _parse(path.parent, content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TraceError(f"{path} is not a manifest: {error}.") from None


def _hash(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _parse(folder: Path, content: Mapping[str, Any]) -> Manifest:
    manifest = Manifest(
        folder=folder,
        attempt=content["attempt"],
        buckets=tuple(Bucket(**bucket) for bucket in content["buckets"]),
        replaces=content["replaces"],
        lost=tuple(Bucket(**bucket) for bucket in content["lost"]),
    )
    for bucket in (*manifest.buckets, *manifest.lost):
        if bucket.table not in TABLES or bucket.part_name is None:
            raise ValueError(f"there is no table {bucket.table!r}")
        _whole(bucket.rows, bucket.first_sample, bucket.last_sample)
    _whole(manifest.attempt, *manifest.replaces.values())
    for path in manifest.replaces:
        _check_replaced(path)
    return manifest


def _whole(*numbers: object) -> None:
    if not all(type(number) is int for number in numbers):
        raise TypeError("a count or bound is not a whole number")


def _check_replaced(path: str) -> None:
    """A path in a manifest is only ever compared or unlinked as one of the run's own parts."""
    table, _, rest = path.partition("/")
    rank, _, name = rest.partition("/")
    is_part = table in TABLES and RANK_FOLDER.fullmatch(rank) and PartName.parse(name) is not None
    if not is_part or str(PurePosixPath(path)) != path:
        raise ValueError(f"{path[:200]!r} is not the path of a part")
