"""Damages a run on purpose, for `test_dynamics_traces_fuzz.py`, and reads it with limits.

Run as a program it takes a folder with a sound run, and seeds; for each it mutates a copy, opens,
verifies and reads it. It prints a line before each seed and one after it, so that whoever started
it knows which seed killed it. Only a `TraceError` may come out.
"""

import json
import resource
import shutil
import struct
import sys
import time
from pathlib import Path

import numpy as np

from dynamics import open_run
from dynamics.traces import TABLES, TraceError
from dynamics.traces.compaction.manifest import MANIFEST_FILE, _hash
from dynamics.traces.layout import content_hash
from dynamics.traces.verification.verify import verify

MEMORY = 1 << 30
EXTREMES = [0, 1, 2, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1]
EXTREMES += [-value for value in EXTREMES[1:]] + [2**63, 2**64, 10**400]


def mutate(run, rng):
    """Change one file of the run; returns what was done."""
    files = sorted(p for p in run.rglob("*") if p.is_file())
    path = files[rng.integers(len(files))]
    how = "json" if path.suffix == ".json" and rng.random() < 0.8 else "bytes"
    if how == "json":
        data, what = mutate_json(path, rng)
    else:
        data, what = mutate_bytes(path.read_bytes(), rng, files)
    what += ", unchanged" * (data == path.read_bytes())
    fits = path.suffix == ".parquet" and rng.random() < 0.85  # a hostile hand makes the hash fit
    if fits:
        target = path.with_name(f"{path.name[:-24]}{content_hash(data)}.parquet")
        path.unlink()
        path, before = target, path.name
        for manifest in run.glob(f"compacted/*/{MANIFEST_FILE}"):
            content = json.loads(manifest.read_bytes().replace(before.encode(), path.name.encode()))
            content.pop("content_hash")
            manifest.write_text(json.dumps({"content_hash": _hash(content), **content}))
    path.write_bytes(data)
    return f"{path.relative_to(run)}: {what}{', hash made to fit' if fits else ''}"


def mutate_bytes(data, rng, files):
    data = bytearray(data)
    n = len(data)
    kinds = ["flip", "footer flip", "footer int", "truncate", "splice", "repeat", "fill", "length"]
    kind = kinds[rng.integers(len(kinds))] if n > 12 else "fill"
    at = int(rng.integers(max(1, n)))
    footer = max(0, n - 8 - int.from_bytes(data[-8:-4], "little")) if n > 12 else 0
    footer = footer if footer < n - 8 else 0
    if kind == "flip":
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(n)] ^= 1 << int(rng.integers(8))
    elif kind == "footer flip":
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(footer, n - 8)] ^= 1 << int(rng.integers(8))
    elif kind == "footer int":  # a varint with all bits set, or a chosen one
        at = int(rng.integers(footer, n - 8))
        value = EXTREMES[rng.integers(12)]
        data[at : at + int(rng.integers(1, 4))] = varint(value)
        length = len(data) - 8 - footer
        data[-8:-4] = struct.pack("<I", length)
    elif kind == "truncate":
        del data[at:]
    elif kind == "splice":
        other = files[rng.integers(len(files))].read_bytes()
        data[at : at + int(rng.integers(64))] = other[: int(rng.integers(len(other) + 1))]
    elif kind == "repeat":
        data[at:at] = data[at : at + int(rng.integers(1, 512))] * int(rng.integers(1, 64))
    elif kind == "length":
        data[-8:-4] = struct.pack("<I", int(rng.integers(2**32)))
    else:
        size = int(rng.integers(1, 16))
        data[at : at + size] = bytes([int(rng.choice([0, 127, 128, 255]))]) * size
    return bytes(data), kind


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def mutate_json(path, rng):
    """One value replaced by a hostile one; a manifest's own hash is made to fit."""
    content = json.loads(path.read_bytes())
    places = list(walk(content))
    owner, key = places[rng.integers(len(places))]
    hostile = [None, True, -1, 1.5, "", "x" * 70_000, [], {}, [[]], "../../etc/passwd", "\x00"]
    hostile += ["1.0", "2.0", "1.999999999999", *EXTREMES]
    value = owner[key] = hostile[rng.integers(len(hostile))]
    if path.name == MANIFEST_FILE and rng.random() < 0.9:
        content.pop("content_hash", None)
        content = {"content_hash": _hash(content), **content}
    if rng.random() < 0.05:
        return b"[" * 200_000 + json.dumps(content).encode(), "nested json"
    return json.dumps(content).encode(), f"json {str(key)[:40]}={str(value)[:40]}"


def walk(content):
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items):
        yield content, key
        if isinstance(value, dict | list):
            yield from walk(value)


def read_everything(path):
    """Every way of reading; a trace that is refused in one may be read in another."""
    ways = [lambda run: run.samples(repeats=True), lambda run: list(run.iter_samples(["loss"]))]
    ways += [lambda run: run.samples(sample_id=3), lambda run: run.scalars()]
    ways += [lambda run: run.events(), lambda run: run.roster(), lambda run: run.vectors()]
    ways += [lambda run: run.vector("fisher_diagonal"), lambda run: run.ended_cleanly]
    ways += [lambda run: [run.column_names(table) for table in TABLES]]
    refused = 0
    for way in ways:
        try:
            way(open_run(path))
        except TraceError:
            refused += 1
    return refused


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main():
    sound, work = Path(sys.argv[1]), Path(sys.argv[2])
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in map(int, sys.argv[3:]):
        rng = np.random.default_rng(seed)
        run = work / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(sound, run)
        what = mutate(run, rng)
        say(f"begin {seed} {what}")
        began = time.monotonic()
        try:
            found = len(verify(run))
        except TraceError:
            found = -1
        refused = read_everything(run)
        took = time.monotonic() - began
        say(f"end {seed} {took:.3f} found={found} refused={refused}")


if __name__ == "__main__":
    main()
