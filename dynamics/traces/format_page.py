"""The trace format as a page for people: `docs/trace-format.md`, written from the schema."""

from dynamics.traces.limits import (
    MAX_DECODED_BYTES,
    MAX_FILE_BYTES,
    MAX_JSON_BYTES,
    MAX_ROWS,
    MAX_TEXT_BYTES,
)
from dynamics.traces.schema import (
    BLOCK_PREFIX,
    SAMPLES,
    SCALAR_NAMES,
    SCALARS,
    SCHEMA_VERSION,
    TABLES,
    Status,
    Table,
)

_FOLDER = f"""# The trace format

Schema version {SCHEMA_VERSION}. Written from `dynamics/traces/` by `make docs`; do not edit.

A run is a folder of immutable Parquet parts, one folder per table and rank. Any Parquet reader \
can open them; `dynamics.open_run` also checks each part's content hash and leaves out what a \
resumed run has replaced.

```
run.json                          written once: versions, data set, configuration
attempts/attempt-0000.json        one per start; a later one fences off what it repeats
samples/rank-00000/part-<attempt>-<sequence>-<first step>-<last step>-<sha256>.parquet
scalars/…  events/…  roster/…     the same
vectors/rank-00000/<name>-<attempt>-<step>-epoch<epoch>-<sha256>.parquet
end/attempt-0000-rank-00000.json  clean end: how many parts and rows each table has
compacted/v0001/<table>/part-….parquet, manifest.json and its copy
set-aside/                        what `repair` moved out of the way, a record of why beside each
```

Non-finite values are stored as missing (NULL), with a bit in `status` that says why: query \
engines disagree on NaN, and one of them loses such rows.

A row of attempt *a* counts unless a later attempt restarted before it: a `samples` row is dropped \
when its step ≥ `from_step` of a later attempt; a `scalars` or `events` row when its step is \
greater, or equal with epoch ≥ `from_epoch`.

`occurrence` and `REPEAT` are stored as one rank saw them. In a run of which any attempt has a \
`world_size` above 1, readers number the rows of each (epoch, sample_id) again: by step, then \
rank, then stored `occurrence`. Files named `.tmp-…` are not part of a run."""

_CARE = f"""## Compacted runs

`dynamics compact` rewrites a run into buckets. A bucket of `samples` holds all rows of a range of \
samples, by sample, epoch and step; each other table becomes one file; vectors stay. Rows that no \
longer count are left out. A bucket reads like a part of the newest attempt that it includes, so \
later fences limit it and the run can be resumed. `manifest.json` lists the buckets (hash in the \
name, rows, range of samples) and every part that they replace, which is not read any more. The \
folder's rename to `v0001` is the commit; the parts are removed after it, when the buckets have \
been read back and compared with them. Of several versions the newest counts.

## What is promised

- A byte is decoded only after its file's hash has been compared with the name, and every page is \
compared with its checksum. A file that differs is an error that names it, never data.
- `dynamics verify` names each file that is damaged, missing or strange, each (epoch, sample_id, \
occurrence) that is there twice, and the samples that an epoch lacks. It changes nothing.
- `dynamics repair` deletes nothing. It moves what is broken to `set-aside/`, makes `run.json`, \
attempts and the manifest anew as far as the rows allow, and lists in `set-aside/gone.csv` each \
(epoch, sample_id) that is gone, as far as the roster or the other epochs tell. Afterwards \
`verify` finds no damage.
- Whenever `compact` or `repair` is interrupted, no row is lost and none is read twice.
- A file is refused before decoding if it is a link, holds more than {MAX_FILE_BYTES >> 30} GiB, \
{MAX_ROWS:,} rows or {MAX_DECODED_BYTES >> 30} GiB once decoded, or has a column that is not \
listed here or of another type; so is JSON of more than {MAX_JSON_BYTES >> 20} MiB, and a text of \
more than {MAX_TEXT_BYTES >> 20} MiB. There is no pickle anywhere.
- A minor version only adds nullable columns of fixed width; those of a newer one are not read. \
Another major is refused."""

_VECTORS = """## vectors

One file for each: column `value` (float, nullable; nats² per squared unit of parameter for \
`fisher_diagonal` and `empirical_fisher_diagonal`), all parameters one after another; the footer's \
`parameters` lists their names and shapes. Fences count as for `scalars`."""


def describe_format() -> str:
    """The trace format as a Markdown page, written from the schema and the limits."""
    sections = [_FOLDER, *(_describe_table(table) for table in TABLES.values()), _VECTORS]
    bits = ["## Status bits", "", "| bit | name |", "| --- | --- |"]
    bits += [f"| {bit.value} | `{bit.name}` |" for bit in Status]
    return "\n\n".join([*sections, "\n".join(bits), _CARE]) + "\n"


def _describe_table(table: Table) -> str:
    lines = [f"## {table.name}", "", table.description, ""]
    lines += ["| column | type | unit | convention |", "| --- | --- | --- | --- |"]
    for column in table.columns:
        kind = f"{column.type}{', nullable' if column.nullable else ''}"
        unit = column.unit or "text"
        lines.append(f"| `{column.name}` | {kind} | {unit} | {column.convention} |")
    if table is SAMPLES:
        lines.append(
            f"| `{BLOCK_PREFIX}<block>` | float, nullable | as `grad_norm` | ‖∇ℓ_i‖₂ over one "
            "block's parameters, if asked for. |"
        )
    if table is SCALARS:
        lines += ["", "| name | unit | convention |", "| --- | --- | --- |"]
        lines += [f"| `{n}` | {u} | {text} |" for n, (u, text) in SCALAR_NAMES.items()]
    return "\n".join(lines)
