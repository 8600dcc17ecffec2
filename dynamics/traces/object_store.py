"""A folder of an object store, and verified copies of its parts on this machine.

Parts never change and carry the hash of their bytes in their names, so a copy that was right once
stays right. A part is copied whole when it is first read, and reaches the cache only after its hash
has been compared. The cache holds a bounded number of bytes: what was used longest ago makes room.
Where the store is and who may read it is left to pyarrow: for S3, the variables, profiles and roles
of AWS; `AWS_ENDPOINT_URL` for another service that speaks its language.
"""

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs

from dynamics.traces.errors import CorruptTraceError, TraceError
from dynamics.traces.layout import content_hash
from dynamics.traces.limits import MAX_FILE_BYTES, MAX_JSON_BYTES
from dynamics.traces.parts import PartGoneError

CACHE_FOLDER, CACHE_BYTES = "DYNAMICS_CACHE", "DYNAMICS_CACHE_BYTES"
DEFAULT_CACHE_BYTES = 20 * 10**9
_AT_ONCE = 8
_CHUNK = 1 << 20
_DENIED = (  # what S3, Google and Azure say
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "Forbidden",
    "status 403",
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it: its size, and when it was put there."""

    size: int
    mtime_ns: int


class StoredFolder:
    """A folder of an object store.

    Args:
        url: The folder, such as s3://bucket/runs/a; what follows a `?` are settings of pyarrow.

    Attributes:
        url: The folder.
        name: Its name.
        copies: Where copies of its parts lie on this machine.

    Raises:
        ValueError: If the URL holds a password, or no folder.
    """

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        if place.username is not None or place.password is not None:
            raise ValueError(
                "A URL of a trace must not hold credentials, for it is shown in reports. Give them "
                "as your store's own tools take them: environment, profile or role."
            )
        inner = place.path.strip("/")
        if not inner or {".", ".."} & {*inner.split("/")}:
            raise ValueError(f"{url} does not name a folder of a bucket, as s3://bucket/runs/a.")
        self.url = url
        self.name = inner.rpartition("/")[2]
        where = f"{place.scheme}://{place.netloc}/{inner}?{place.query}"
        self.copies = cache_folder() / content_hash(where.encode()) / self.name

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "name": self.name, "copies": self.copies}

    @cached_property
    def _root(self) -> tuple[Any, str]:
        with self.reached():
            return pa.fs.FileSystem.from_uri(self.url)

    def inner(self, name: str) -> "StoredFolder":
        """A folder within this one."""
        place = urlsplit(self.url)
        return StoredFolder(place._replace(path=f"{place.path.rstrip('/')}/{name}").geturl())

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Say of an error of the store what can be done about it.

        Yields:
            Nothing; ask the store within.

        Raises:
            FileNotFoundError: If the bucket or the file is not there.
            PermissionError: If the store does not let us in.
            ConnectionError: If it does not answer, or says anything else.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.url} is not a place that pyarrow can read: {error}") from None
        except OSError as error:
            raise self._explained(error) from None

    def _explained(self, error: OSError) -> OSError:
        said = str(error)
        if "NO_SUCH_BUCKET" in said:
            return FileNotFoundError(
                f"There is no bucket {urlsplit(self.url).netloc!r}, which {self.url} should be in. "
                "Check its name, and AWS_ENDPOINT_URL if it is not Amazon's."
            )
        if any(code in said for code in _DENIED):
            return PermissionError(
                f"The store does not let us read {self.url}: no credentials, wrong ones, or no "
                "right to list and get. Set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY, or what your store asks for. It said: {said}"
            )
        return ConnectionError(
            f"The store that holds {self.url} could not be read. Check the network, the region and "
            f"AWS_ENDPOINT_URL, and try again; what was copied so far is kept. It said: {said}"
        )

    def list(self, *, recursive: bool = True) -> dict[str, StoredFile | None]:
        """What is in the folder: files, and None for each folder, by path within it."""
        system, root = self._root
        with self.reached():
            try:  # allow_not_found would pass over a bucket that is not there, too
                found = system.get_file_info(pa.fs.FileSelector(root, recursive=recursive))
            except FileNotFoundError:
                found = []
        within = {info.path[len(root) :].strip("/"): info for info in found}
        return {
            path: StoredFile(info.size, info.mtime_ns or 0) if info.is_file else None
            for path, info in within.items()
            if not {"", ".", ".."} & {*path.split("/")}
        }

    def read(self, path: str) -> bytes:
        """Bytes of a small file.

        Args:
            path: Its path within the folder.

        Returns:
            The bytes.

        Raises:
            TraceError: If it is larger than JSON of a trace can be.
        """
        system, root = self._root
        with self.reached(), system.open_input_stream(f"{root}/{path}") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise TraceError(f"{self.url}: {path} holds over {MAX_JSON_BYTES} bytes.")
        return data

    def fetch(self, hashes: Mapping[Path, str]) -> None:
        """Copy files that have not been copied yet, up to eight at a time.

        Args:
            hashes: Hash that each file must have, by the place of its copy within `copies`.

        Raises:
            CorruptTraceError: If a file's bytes are not those written.
            PartGoneError: If one is no longer there.
            TraceError: If the cache has no room for all of them at once.
        """
        missing = [path for path in hashes if not _use(path)]
        if not missing:
            return
        system, root = self._root
        remote = [f"{root}/{path.relative_to(self.copies).as_posix()}" for path in missing]
        with self.reached():
            sizes = [info.size for info in system.get_file_info(remote)]
        if None in sizes:
            raise PartGoneError(
                f"{remote[sizes.index(None)]} is gone from {self.url}: the run was compacted and "
                "uploaded again while it was read. Open the run again."
            )
        if max(sizes) > MAX_FILE_BYTES:
            raise TraceError(f"{self.url} has a part of over {MAX_FILE_BYTES} bytes.")
        make_room(cache_folder(), sum(sizes), keep=hashes)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="trace-fetch") as pool:
            wanted = [hashes[path] for path in missing]
            _ = [*pool.map(self._copy, remote, missing, sizes, wanted)]

    def _copy(self, remote: str, path: Path, size: int, wanted: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
        digest, n = hashlib.sha256(), 0
        try:
            with temporary.open("xb") as file:
                for chunk in self._chunks(remote):
                    n += file.write(chunk)
                    digest.update(chunk)
            if n < size:
                raise self._explained(OSError(f"{remote} ended after {n} of {size} bytes"))
            if digest.hexdigest()[: len(wanted)] != wanted:
                raise CorruptTraceError(
                    f"{remote} of {self.url} is damaged: its bytes do not hash to {wanted}, as its "
                    "name says. Upload the file again."
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _chunks(self, remote: str) -> Iterator[bytes]:
        with self.reached(), self._root[0].open_input_stream(remote) as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk


def cache_folder() -> Path:
    """Where copies of parts lie: `DYNAMICS_CACHE`, or a folder of the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(CACHE_FOLDER) or default / "training-dynamics").absolute()


def _use(path: Path) -> bool:
    """Note that a copy is used, if it is there."""
    try:
        state = path.lstat()
        os.utime(path, ns=(time.time_ns(), state.st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def make_room(cache: Path, n_bytes: int, *, keep: Iterable[Path]) -> None:
    """Remove the copies that were used longest ago, until there is room for some bytes more.

    Args:
        cache: The cache.
        n_bytes: Bytes that are to come.
        keep: Copies that must stay.

    Raises:
        TraceError: If the cache may not hold that much.
    """
    limit = int(os.environ.get(CACHE_BYTES) or DEFAULT_CACHE_BYTES)
    states = {}
    for path in cache.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            if path.is_file():
                states[path] = path.lstat()
    held, kept = sum(state.st_size for state in states.values()), {*keep}
    for path in sorted(states, key=lambda path: states[path].st_atime_ns):
        if held + n_bytes > limit and path not in kept:
            path.unlink(missing_ok=True)
            held -= states[path].st_size
    if held + n_bytes > limit:
        raise TraceError(
            f"{held + n_bytes:,} bytes of parts are needed at once, and the cache at {cache} may "
            f"hold {limit:,}. Set {CACHE_BYTES} to more, or {CACHE_FOLDER} to a larger disk."
        )
