"""The page on traces beyond one machine, docs/scale.md, from benchmarks/results/scale-cpu.json.

python docs/scale.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results" / "scale-cpu.json"

_PROSE = """# Traces beyond one machine

Made by `python docs/scale.py` from `benchmarks/results/scale-cpu.json`, which `python
benchmarks/scale.py` writes; edit those.

## Several workers

```python
summarise_samples(run)                                  # this process: right for most runs
summarise_samples(run, executor="process", workers=16)  # cores of this machine, nothing to install
summarise_samples(run, executor="ray")                  # pip install 'training-dynamics[ray]'
```

The samples are cut into ranges, each with all rows of its samples; a worker reads the row groups
that may hold its range, and the tables are laid under one another. The result is that of one
process.

- `ray` uses the Ray that the script has joined with `ray.init(...)`, or else the cluster at
  `RAY_ADDRESS` (`auto` for the one running here); both are left running. Otherwise it starts one
  on this machine and stops it again: no dashboard, no usage reports, at most 512 MiB of shared
  memory, and token authentication as Ray sets it, with its token in `~/.ray/auth_token` or at
  `RAY_AUTH_TOKEN_PATH`.
- A worker that dies is replaced and its range done again, up to three times. `process` ends with
  an error.
- Every machine of a cluster must read the run where it is: on a shared folder of the same path,
  or on an object store. Each needs this package installed, and the credentials of the store.
- Of a run as it was recorded, every worker reads a stretch of every epoch; of a compacted one its
  own buckets. So compact a run that several machines are to read from an object store: then each
  byte is copied once, to one of them.

## Object stores

`open_run("s3://bucket/runs/a")` and `open_study("s3://bucket/studies/s")` read what lies on S3,
on a service that speaks its language (`AWS_ENDPOINT_URL`), or on any other store that pyarrow
knows (`gs://`, `abfs://`). Credentials come from where the store's own tools take them, never
from the URL.

The small files of a run are read when it is opened, and looked at again with each question, so
that a run that grows is seen growing. A part is copied whole when a question first needs it, and
is hashed before it counts: `samples(sample_id=...)` of a compacted run copies one bucket. Copies
lie in `DYNAMICS_CACHE` (default `~/.cache/training-dynamics`), at most `DYNAMICS_CACHE_BYTES` (20
GB); those used longest ago make room. If one question needs more than that at once, the error
says so.

**Writing stays on a disk.** A recorder relies on renames that a store does not have. Upload with
your own tool, while the run grows or after it ended:

```bash
aws s3 sync runs/a s3://bucket/runs/a --exclude "*.tmp-*"
```

No order of arrival gives a wrong answer. Files are never changed, and their names carry what is
needed to see that one is missing: a part without the record of its attempt, a gap in the sequence
of parts, a bucket that the manifest names, a compaction without its manifest are each an error
that says to wait or to upload again. What cannot be seen is the end: a run of which the last
parts have not arrived reads as the shorter run that it was, and `run.ended_cleanly` is false
until the records of its end are there. After a compaction add `--delete` once the new files have
arrived, or leave the old parts: they are passed over. Two runs in one place are refused.
`verify`, `repair` and `compact` want a copy on a disk.

Not done: recording to a store, and reading parts of a file by range. A summary of an uncompacted
run by several machines copies the whole run to each of them.
"""


def describe_scale(content: dict[str, Any]) -> str:
    """The page, from what benchmarks/scale.py has measured."""
    lines = [_PROSE, *_measured(content), *_checked(content), *_implied(content["model"])]
    return "\n".join([*lines, *_crossover(content["model"])]) + "\n"


def _measured(content: dict[str, Any]) -> Iterator[str]:
    environment = ", ".join(f"{k} {v}" for k, v in content["environment"].items() if v)
    yield from (
        "## What was measured",
        "",
        environment,
        "",
        f"Runs of {content['epochs']} epochs with three random values a row (no real run "
        "takes more "
        "bytes) and sparse 63-bit ids. Seconds for the thirteen columns of "
        "`summarise_samples`, every "
        "byte hashed first, workers already there; a worker uses one core, the embedded engine two "
        "threads. Efficiency is T(1) ÷ (W T(W)). Difference is the largest relative one of "
        "any mean "
        "to the embedded engine's; ids and counts are compared exactly.",
        "",
        "| run | form | executor | workers | seconds | efficiency | ids and counts | difference |",
        "| --- " * 8 + "|",
    )
    for size in content["sizes"]:
        head = f"{size['n_rows'] / 1e6:.3g} M rows, {size['n_samples']:,} samples"
        for form in ("as_written", "compacted"):
            if form in size:
                yield from _rows(head, form.replace("_", " "), size[form])
    yield ""
    for size in content["sizes"]:
        compacted = ""
        if "compact_s" in size:
            compacted = (
                f"; compacting takes {size['compact_s'] / size['n_rows'] * 1e6:.2f} µs a row and "
                f"leaves {size['compacted_bytes_per_row']:.1f} bytes"
            )
        yield (
            f"- {size['n_rows'] / 1e6:.3g} M rows: {size['bytes_per_row']:.1f} bytes a row, "
            "written "
            f"at {size['rows_per_s'] / 1e6:.2f} M rows a second{compacted}."
        )


def _rows(head: str, form: str, measured: dict[str, Any]) -> Iterator[str]:
    yield f"| {head} | {form} | embedded | – | {measured['embedded_s']:.2f} | – | – | – |"
    one = {r["executor"]: r["work_s"] for r in measured["executors"] if r["workers"] == 1}
    for row in measured["executors"]:
        efficiency = one[row["executor"]] / (row["workers"] * row["work_s"])
        same = "equal" if row["same_ids"] and row["same_counts"] else "**differ**"
        difference = "same bits" if row["same_bits"] else f"{row['largest_difference']:.0e}"
        yield (
            f"| {head} | {form} | {row['executor']} | {row['workers']} | {row['work_s']:.2f} "
            f"| {efficiency:.2f} | {same} | {difference} |"
        )


def _checked(content: dict[str, Any]) -> Iterator[str]:
    model = content["model"]
    yield from (
        "",
        "## The model, and how far it is off",
        "",
        "T(N rows, W workers) = N c ÷ (min(W, cores) e) + calls × a call's cost, as "
        "written. c and e "
        f"are those of the {model['reference_rows'] / 1e6:.3g} M rows by one and two workers; "
        "everything else is predicted.",
        "",
        "| executor | c, one worker | e | a call | start of the workers | peak of a worker |",
        "| --- " * 6 + "|",
    )
    for name, known in model["constants"].items():
        yield (
            f"| {name} | {known['s_per_row'] * 1e9:.0f} ns a row | {known['efficiency']:.2f} "
            f"| {known['call_s'] * 1e3:.1f} ms | {known['start_s']:.1f} s "
            f"| {known['worker_peak_bytes'] / 2**20:.0f} MiB |"
        )
    yield from (
        "",
        "| rows | executor | workers | measured | predicted | error |",
        "| --- " * 6 + "|",
    )
    for row in model["checks"]:
        yield (
            f"| {row['n_rows'] / 1e6:.3g} M | {row['executor']} | {row['workers']} "
            f"| {row['work_s']:.2f} s | {row['predicted_s']:.2f} s | {row['relative_error']:+.0%} |"
        )


def _implied(model: dict[str, Any]) -> Iterator[str]:
    target, implied, assumed = model["target"], model["extrapolated"], model["assumed"]
    yield from (
        "",
        "## What it implies for a large study",
        "",
        f"{target['n_samples'] / 1e6:.2f} M samples × {target['n_epochs']} epochs × "
        f"{target['n_runs']} runs are {implied['n_rows'] / 1e9:,.0f} billion rows and "
        f"{implied['n_bytes'] / 1e12:.1f} TB of the worst kind. Extrapolated by a factor of "
        f"{implied['n_rows'] / 1e8:,.0f} from what was measured, so a plan and no promise.",
        "",
        f"Assumed, not bought: machines of {assumed['cores_per_machine']} cores like ours at "
        f"${assumed['dollars_per_machine_hour']:.2f} an hour, "
        f"{assumed['network_bytes_per_s'] / 1.25e8:.0f} Gbit/s each to the store, compacted runs, "
        "e as for two workers; a store at "
        f"${assumed['dollars_per_gb_month']} a GB and month, "
        f"${assumed['dollars_per_1000_reads']} for 1,000 reads and "
        f"${assumed['dollars_per_1000_writes']} for 1,000 writes.",
        "",
        f"- Writing takes {implied['write_core_s'] / 3600:.0f} core hours, spread over the "
        "training.",
        f"- Keeping it takes ${implied['storage_dollars_per_month']:.0f} a month, uploading "
        "it once "
        f"${implied['write_dollars']:.2f}, reading it once ${implied['read_dollars']:.2f} "
        "of requests.",
        f"- One summary of every run takes {implied['core_s'] / 3600:.1f} core hours. The embedded "
        f"engine takes {implied['embedded_s_per_run']:.0f} s a run and "
        f"{implied['embedded_s'] / 3600:.1f} hours for all, one after the other.",
        f"- A run's summary is {implied['result_bytes_per_run'] / 1e6:.0f} MB: keep one at a time.",
        "",
        "| machines | computing | network | one summary of everything | money |",
        "| --- " * 5 + "|",
    )
    for row in implied["machines"]:
        yield (
            f"| {row['machines']} | {_time(row['compute_s'])} | {_time(row['network_s'])} "
            f"| {_time(row['seconds'])} | ${row['dollars']:.2f} |"
        )
    yield from (
        "",
        "The longer of computing and network counts. Money hardly depends on the number of "
        "machines, "
        "so take as many as the answer is urgent. Hundreds of runs are shared best by giving each "
        "worker whole runs, with the embedded engine: ranges are for one run that is too "
        "slow or too "
        "large by itself.",
    )


def _crossover(model: dict[str, Any]) -> Iterator[str]:
    yield from (
        "",
        "## Where the embedded engine stops being the right choice",
        "",
        f"It takes {model['embedded_s_per_row'] * 1e9:.0f} ns a row with two threads, and "
        "320 bytes a "
        "sample beside some 300 MB. So it stops",
        "",
        "- where the samples do not fit: 3 million in the default `memory_limit` of 1 GB, "
        "200 million in 64 GB. DuckDB takes over there, on the disk and slowly; ranges "
        "need no more "
        "memory than the largest of them;",
        "- where its time is too long and more cores are free. Rows of one run from which "
        "on workers "
        "are faster, with their start included:",
        "",
        "| free cores | process | ray |",
        "| --- | --- | --- |",
    )
    by_cores: dict[int, list[str]] = {}
    for row in model["crossovers"]:
        cell = "never" if row["n_rows"] is None else f"{row['n_rows'] / 1e6:,.0f} M"
        by_cores.setdefault(row["cores"], []).append(cell)
    for cores, cells in by_cores.items():
        yield f"| {cores} | {' | '.join(cells)} |"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write_scale() -> None:
    """Write docs/scale.md."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    (DOCS / "scale.md").write_text(describe_scale(content), encoding="utf-8")


if __name__ == "__main__":
    write_scale()
