"""The page on cost, docs/performance.md, from the results that the benchmarks have written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def describe_performance() -> str:
    """The page on cost, from the results that the benchmarks have written."""
    lines = [
        "# What it costs",
        "",
        "Made by `make docs` from `benchmarks/results/`; do not edit. Why, and what else was "
        "tried: [performance-notes.md](performance-notes.md).",
        "",
        "## Gradient norms",
        "",
        "A step here is forward and backward pass with the norms of all parameters, written to "
        "disk by the recorder; numbers are the median of paired ratios to the plain step (lowest "
        "and highest round in brackets), interleaved, on one thread. Peers compute the same norms "
        "and write nothing. Memory is the peak of a process of its own, above the plain step's; "
        "some 75 MiB of ours is the trace writer (Arrow), whatever the network.",
        "",
        "Our rows: `fused` lets layers form their gradient from the per-sample ones (equal to "
        "rounding); `backpack engine` leaves training bit-identical; `eval mode` takes a pass of "
        "its own; `sketch` estimates. `loss alone` is `SampleLoss` with margin, p(label) and EL2N; "
        "`every 16th step` is the backpack engine on that schedule.",
    ]
    for path in sorted(RESULTS.glob("grad_norm-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        lines += ["", f"### {path.stem}", "", _environment(content)]
        for network in content["networks"]:
            lines += ["", f"#### {network['network']}", ""]
            lines += [
                "| method | step ÷ plain step | peak memory above plain |",
                "| --- | --- | --- |",
            ]
            plain = next(row for row in network["methods"] if row["method"] == "plain")
            lines += [_row(row, plain) for row in network["methods"]]
    for path in sorted(RESULTS.glob("fisher-*.json")):
        lines += ["", *_describe_fisher(path.stem, json.loads(path.read_text(encoding="utf-8")))]
    for path in sorted(RESULTS.glob("fisher_draws.json")):
        lines += ["", *_describe_draws(json.loads(path.read_text(encoding="utf-8")))]
    for path in sorted(RESULTS.glob("traces-*.json")):
        lines += ["", *_describe_traces(path.stem, json.loads(path.read_text(encoding="utf-8")))]
    return "\n".join(lines) + "\n"


def _environment(content: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in content["environment"].items() if v)


def _describe_fisher(name: str, content: dict[str, Any]) -> Iterator[str]:
    """The section on the Fisher trace, from the results of benchmarks/fisher.py.

    Yields:
        Its lines.
    """
    yield from (
        "## Fisher trace",
        "",
        "Seconds on one thread until tr F on a probe set (its size beside each network) is known "
        f"to a relative standard error of {content['target']:.0%}, given that set, by median run. "
        "Ours stops by itself; a peer's time is that of one replicate times as many as its "
        "variance asks for (at least one, and none for learning that variance), marked ~ where "
        "fewer were run. z is the distance from the exact value in standard errors; exact methods "
        "show the relative difference instead. Memory is the peak above model and data.",
        "",
        f"### {name}",
        "",
        _environment(content),
    )
    for part in content["parts"]:
        cost, accuracy = part["default"], part["training_accuracy"]
        network, state = part["network"], part["state"]
        if accuracy is not None:
            state += f" to {accuracy:.0%} accuracy on {part['trained_on']:,} images"
        rows = part["methods"]
        peers = [row["seconds"] for row in rows if "seconds" in row and "ours" not in row["method"]]
        own = rows[0]["seconds"]
        peaks = content["peak_bytes_above_model_and_data"][network]
        fractions = ", ".join(
            f"{fraction:.1%} of an epoch of {int(n):,} images"
            for n, fraction in cost["fraction_of_epoch"].items()
        )
        yield from (
            "",
            f"#### {network}, {state}, {part.get('inputs', content['inputs']):,} inputs",
            "",
            f"The best peer takes {min(peers) / own:.1f} times as long as ours. A measurement of "
            f"`FisherTrace` by default takes {cost['measurement_s']:.2g} s: {fractions}, by steps "
            f"of {cost['batch']} in {cost['step_s']:.2g} s.",
            "",
            "| method | seconds | ÷ ours | z or difference | peak memory |",
            "| --- | --- | --- | --- | --- |",
        )
        yield from (_fisher_row(row, own, peaks.get(row["method"])) for row in rows)
    yield from ("", "#### Peak memory beside training steps of the same batch", "")
    chosen = ["training step of 64", "ours, passes of 64", "training step of 256"]
    chosen += ["ours, passes of 256", "ours, by default"]
    yield from (f"| network | {' | '.join(chosen)} |", "| --- " * (len(chosen) + 1) + "|")
    for network, peaks in content["peak_bytes_above_model_and_data"].items():
        yield f"| {network} | {' | '.join(_mebibytes(peaks[what]) for what in chosen)} |"


def _describe_draws(content: dict[str, Any]) -> Iterator[str]:
    """The section on the variance of draws, from the results of benchmarks/fisher_draws.py.

    Yields:
        Its lines.
    """
    yield from (
        "## Variance of the ways to draw for a Fisher trace",
        "",
        "(Standard deviation of one draw ÷ trace)², exactly, from whole Jacobians of "
        f"{content['n']} inputs; a relative standard error of 2 % takes this over .0004 draws. The "
        "first four rows pass each input once, the others draw inputs too. Strata are simulated; "
        "the last row is measured, from 60 times 400 draws.",
    )
    for network in content["networks"]:
        states = network["states"]
        heads = [f"epoch {state['epoch']} ({state['accuracy']:.0%})" for state in states]
        yield from ("", f"### {network['network']}", "")
        yield from (f"| way | {' | '.join(heads)} |", "| --- " * (len(heads) + 1) + "|")
        for way in states[0]["variances"]:
            values = [f"{state['variances'][way]:.2g}" for state in states]
            yield f"| {way} | {' | '.join(values)} |"


def _describe_traces(name: str, content: dict[str, Any]) -> Iterator[str]:
    """The section on traces, from the results of benchmarks/traces.py.

    Yields:
        Its lines.
    """
    load, report, sizes = content["load"], content["report"], content["sizes"]
    yield from (
        "## Traces",
        "",
        "A trace of 80 epochs with `loss`, `margin` and `grad_norm`, values drawn uniformly from "
        "the 2²⁴ float32 in [0, 1): 3 bytes each that nothing can compress, and 1.5 more for the "
        "step, as random as the order of the samples. So "
        f"{content['two_values']['bytes_per_row']:.1f} bytes a row with two values, "
        f"{sizes[-1]['bytes_per_row']:.1f} with three. Real losses take less.",
        "",
        f"### {name}",
        "",
        _environment(content),
        "",
        f"Training: a step of {load['step_s'] * 1e3:.0f} ms with 256 rows takes "
        f"{load['ratio'] - 1:+.1%} with the writer at work (lowest and highest of "
        f"{load['rounds']} rounds {load['ratio_low'] - 1:+.1%} and {load['ratio_high'] - 1:+.1%}); "
        f"the calls of `append` themselves take {load['share_within_append']:.2%}.",
        "",
        f"`write_report` of a run of {report['n_rows']:,.0f} rows with every column takes "
        f"{_seconds(report)} and {_mebibytes(report.get('peak_bytes'))}.",
        "",
        "One row per sample, each method in a process of its own, peak memory with the "
        "interpreter. Ours gives thirteen columns and verifies every byte first; peers give count, "
        "mean and variance of the loss and two means, and verify nothing.",
        "",
        f"| method | {' | '.join(_size_head(size) for size in sizes)} |",
        "| --- " * (len(sizes) + 1) + "|",
    )
    for at, row in enumerate(sizes[0]["methods"]):
        if row["method"] != "one sample":
            cells = (_traces_cell(size["methods"][at], size["n_rows"]) for size in sizes)
            yield f"| {row['method']} | {' | '.join(cells)} |"
    yield from (
        "",
        "| | rows written a second | bytes a row | parts | one sample, first | one sample, later |",
        "| --- | --- | --- | --- | --- | --- |",
    )
    for size in sizes:
        sample = next(row for row in size["methods"] if row["method"] == "one sample")
        yield (
            f"| {_size_head(size)} | {size['rows_per_s']:,.0f} | {size['bytes_per_row']:.2f} "
            f"| {size['parts']} | {sample['first_s']:.2f} s | {sample['later_s']:.3f} s |"
        )


def _size_head(size: dict[str, Any]) -> str:
    return f"{size['n_rows'] / 1e6:g} M rows, {size['n_samples']:,} samples"


def _traces_cell(row: dict[str, Any], n_rows: int) -> str:
    if "refused" in row:
        return f"– ({row['refused']})"
    per_row = row["seconds"] / n_rows * 1e9
    return f"{row['seconds']:.2f} s ({per_row:.0f} ns a row), {_mebibytes(row['peak_bytes'])}"


def _seconds(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.1f} s" if "seconds" in row else f"– ({row['refused']})"


def _fisher_row(row: dict[str, Any], own: float, peak: int | None) -> str:
    if "refused" in row:
        return f"| {row['method']} | refuses: {row['refused'].split('(')[0].strip()} | – | – | – |"
    seconds = f"{'~ ' if row['is_extrapolated'] else ''}{row['seconds']:.3g}"
    difference = f"{row['relative_difference']:.0e}" if row["z"] is None else f"{row['z']:+.1f}"
    ratio = f"{row['seconds'] / own:.1f}"
    return f"| {row['method']} | {seconds} | {ratio} | {difference} | {_mebibytes(peak)} |"


def _mebibytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**20:.0f} MiB"


def _row(row: dict[str, Any], plain: dict[str, Any]) -> str:
    if "refused" in row:
        return f"| {row['method']} | refuses: {row['refused'].split('(')[0].strip()} | – |"
    ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
    peaks = row.get("peak_bytes"), plain.get("peak_bytes")
    extra = "–" if None in peaks else f"{(peaks[0] - peaks[1]) / 2**20:+.0f} MiB"
    return f"| {row['method']} | {ratio} | {extra} |"
