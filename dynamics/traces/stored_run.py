"""Runs and studies on an object store, read as those on a disk are.

The small files of a run are read when it is opened and looked at again with every question; its
parts are copied when they are first needed. Nothing is ever written to the store.
"""

import contextlib
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from dynamics.traces.compaction.manifest import COMPACTED, MANIFEST_FILE, Manifest, read_manifest
from dynamics.traces.errors import CorruptTraceError, TraceError
from dynamics.traces.layout import RUN_FILE, STUDY_FILE, PartName
from dynamics.traces.object_store import StoredFile, StoredFolder
from dynamics.traces.parts import Part, bucket_parts, parts_among, replaced_path
from dynamics.traces.reader import Run
from dynamics.traces.row_groups import THREADS, Footer
from dynamics.traces.schema import Table
from dynamics.traces.study import Study
from dynamics.traces.vectors import VECTORS, VectorFile, read_vector, vectors_among

_SMALL = re.compile(
    rf"{re.escape(RUN_FILE)}|(attempts|end)/[\w-]+\.json"
    rf"|{COMPACTED}/v\d{{4,9}}/{re.escape(MANIFEST_FILE)}"
)
_VERSION = re.compile(rf"({COMPACTED}/v\d{{4,9}})/.+")
_OF_A_RANK = re.compile(r"(\w+)/rank-\d{5,9}/([^/]+)")
_RUNS_AT_ONCE = 8


class StoredRun(Run):
    """A run on an object store.

    Args:
        url: Its folder, such as s3://bucket/runs/a.

    Attributes:
        path: A temporary folder with the small files of the run.
    """

    def __init__(self, url: str) -> None:
        self._folder = StoredFolder(url)
        self._small: dict[str, StoredFile] = {}
        self._files: dict[str, StoredFile] = {}
        path = _temporary_folder(self, self._folder.name)
        self._look_again(path)
        if RUN_FILE not in self._files:
            raise TraceError(_nothing_there(self._folder, self._files, RUN_FILE, "run"))
        super().__init__(path)
        self.location = url

    def __getstate__(self) -> dict[str, Any]:
        """What a worker on another machine needs: it is told which parts to read."""
        _ = self.attempts
        return self.__dict__

    def _look_again(self, path: Path) -> None:
        self._files = {name: file for name, file in self._folder.list().items() if file}
        small = {name: file for name, file in self._files.items() if _SMALL.fullmatch(name)}
        for name in self._small.keys() - small.keys():
            (path / name).unlink()
        for match in filter(None, map(_VERSION.fullmatch, self._files)):
            if f"{match[1]}/{MANIFEST_FILE}" not in small:
                raise TraceError(
                    f"{self._folder.url} has files of {match[1]}, but not yet their "
                    f"{MANIFEST_FILE}. Wait until the upload has ended, or upload the run again."
                )
        for name, file in small.items():
            if self._small.get(name) != file:
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(self._folder.read(name))
        self._small = small

    def parts(self, table: str) -> list[Part]:
        """Files of a table that count: buckets by sample, then parts as they were recorded."""
        self._look_again(self.path)
        manifest = read_manifest(self.path)
        self._check_arrived(manifest)
        copies, stored = self._folder.copies, parts_among(self._copies_of(table))
        if manifest is None:
            return stored
        live = [part for part in stored if replaced_path(copies, part) not in manifest.replaces]
        folder = copies / manifest.folder.relative_to(self.path)
        return bucket_parts(replace(manifest, folder=folder), table) + live

    def _check_arrived(self, manifest: Manifest | None) -> None:
        """Refuse a run of which an upload has brought a later file but not an earlier one."""
        missing = []
        sequences: dict[tuple[str, int], dict[int, str]] = {}
        for file in {*self._files, *(manifest.replaces if manifest else ())}:
            folder, _, name = file.rpartition("/")
            part = PartName.parse(name)
            if part is not None and _OF_A_RANK.fullmatch(file):
                known = sequences.setdefault((folder, part.attempt), {})
                if known.setdefault(part.sequence, file) != file:
                    raise TraceError(
                        f"{self._folder.url} holds both {known[part.sequence]} and {file}: two "
                        "runs were uploaded to one place. Upload each to a place of its own."
                    )
        for (folder, attempt), found in sequences.items():
            gaps = sorted({*range(max(found))} - found.keys())
            missing += [f"{folder}/part-{attempt:04d}-{gap:06d}-…" for gap in gaps]
        if manifest is not None:
            folder = f"{COMPACTED}/{manifest.folder.name}"
            buckets = [f"{folder}/{bucket.table}/{bucket.name}" for bucket in manifest.buckets]
            missing += [file for file in buckets if file not in self._files]
        was_mended = any(file.startswith("set-aside/") for file in self._files)
        if missing and not was_mended:
            raise TraceError(
                f"{self._folder.url} lacks {missing[0]}"
                f"{f' and {len(missing) - 1} more' if missing[1:] else ''}, while later files are "
                "there. Wait until the upload has ended, or upload the run again."
            )

    def _copies_of(self, table: str) -> Iterator[Path]:
        found = map(_OF_A_RANK.fullmatch, self._files)
        yield from (self._folder.copies / m[0] for m in found if m and m[1] == table)

    def footers_of(self, parts: Sequence[Part], *, threads: int = THREADS) -> list[Footer]:
        """Footers of some parts of `samples`; see `Run.footers_of`. Copies the parts first."""
        self._fetch(parts)
        with self._copies_trusted():
            return super().footers_of(parts, threads=threads)

    def _live_rows(self, part: Part, spec: Table) -> pa.Table:
        self._fetch([part])
        with self._copies_trusted():
            return super()._live_rows(part, spec)

    @contextlib.contextmanager
    def _copies_trusted(self) -> Iterator[None]:
        try:
            yield
        except CorruptTraceError as error:
            raise CorruptTraceError(
                f"{error} The file is a copy of one of {self.location}: delete "
                f"{self._folder.copies}, and it is copied anew."
            ) from None

    def _fetch(self, parts: Iterable[Part]) -> None:
        self._folder.fetch({part.path: part.name.content_hash for part in parts})

    def _list_vectors(self) -> list[VectorFile]:
        self._look_again(self.path)
        return vectors_among(self._copies_of(VECTORS))

    def _read_vector(self, file: VectorFile) -> Any:
        self._folder.fetch({file.path: file.content_hash})
        return read_vector(file)


class StoredStudy(Study):
    """A study on an object store.

    Args:
        url: Its folder, such as s3://bucket/studies/noise-ratio.
    """

    def __init__(self, url: str) -> None:
        self._folder = StoredFolder(url)
        found = self._folder.list(recursive=False)
        if STUDY_FILE not in found:
            files = {name: file for name, file in found.items() if file}
            raise TraceError(_nothing_there(self._folder, files, STUDY_FILE, "study"))
        path = _temporary_folder(self, self._folder.name)
        (path / STUDY_FILE).write_bytes(self._folder.read(STUDY_FILE))
        super().__init__(path)
        self.location = url

    @cached_property
    def runs(self) -> list[Run]:
        """The runs of the study, ordered by folder name."""
        found = self._folder.list(recursive=False).items()
        folders = [self._folder.inner(name) for name, file in sorted(found) if file is None]

        def open_if_run(folder: StoredFolder) -> Run | None:
            holds_run = RUN_FILE in folder.list(recursive=False)
            return StoredRun(folder.url) if holds_run else None

        with ThreadPoolExecutor(_RUNS_AT_ONCE) as pool:
            return [run for run in pool.map(open_if_run, folders) if run is not None]

    def folders(self) -> list[Path]:
        """Temporary folders of the runs, ordered by name."""
        return [run.path for run in self.runs]


def _temporary_folder(owner: object, name: str) -> Path:
    """A folder of that name, which goes with its owner."""
    folder = tempfile.mkdtemp(prefix="dynamics-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / name
    path.mkdir()
    return path


def _nothing_there(folder: StoredFolder, files: dict[str, StoredFile], file: str, kind: str) -> str:
    for other, other_kind in ((RUN_FILE, "run"), (STUDY_FILE, "study")):
        if other in files:
            return f"{folder.url} is a {other_kind}, not a {kind}. Open it with open_{other_kind}."
    what = f"has no {file}" if files else "holds nothing"
    return (
        f"{folder.url} {what}, so it is not the folder of a {kind}. Check the path, or upload the "
        f"{kind} first."
    )
