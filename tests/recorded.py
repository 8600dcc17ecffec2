"""Small runs and studies, hand-made with `dynamics.traces`: what a report is drawn from, no torch.

In `full_run` a share of the labels is wrong, and the network memorises them from `LEARNED` on:
right labels have losses near 0.1, wrong ones near 3 before that and near 0.1 after it.
"""

import json

import numpy as np

from dynamics import open_run, open_study
from dynamics.noise_law import law_accuracy
from dynamics.traces import SCHEMA_VERSION, TraceWriter, begin_attempt, create_run

N, N_CLASSES, EPOCHS, LEARNED = 120, 4, 8, 5
BATCH = 40  # steps per epoch: N / BATCH

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "{{7*7}}{% raw %}",
    r"$\frac{ b$ and \_{^",
    "</svg></style></title><b>",
    "\u202e\u05d0\u05d1\u05d2 \u0627\u0628 \u2066",
    "<!-- ]]> --> &lt;&amp;",
)
HOSTILE_SETS = HOSTILE[::2]


def info(**changed):
    """What `run.json` holds beside the schema version."""
    return {
        "run_id": "0" * 32,
        "model": {"class": "MLP", "n_parameters": 1234, "n_trainable": 1200, "device": "cpu"},
        "n_samples": N,
        "labels_sha256": None,
        "probes": [{"probe": "SampleLoss", "when": None}],
        "versions": {"numpy": "2.0"},
        "data": {},
        "config": {"lr": 0.05},
        **changed,
    }


def write_run(path, tables, *, clean=True, about=None):
    """A run that holds the given tables, each a list of columns by name."""
    create_run(path, about or info())
    add_attempt(path, tables, clean=clean)
    return open_run(path)


def add_attempt(path, tables, *, from_step=0, from_epoch=-1, clean=True):
    attempt = begin_attempt(path, from_step=from_step, from_epoch=from_epoch)
    writer = TraceWriter(path, attempt=attempt)
    for name, batches in tables.items():
        for columns in batches:
            writer.append(name, columns)
    writer.close(clean=clean)


def labels(n=N, share=0.3, seed=0):
    """Labels as trained and true labels; exactly round(share · n) differ."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % N_CLASSES
    given = true.copy()
    wrong = rng.permutation(n)[: round(share * n)]
    given[wrong] = (given[wrong] + 1) % N_CLASSES
    return given, true


def roster(given, true=None):
    columns = {"sample_id": np.arange(len(given)), "label": given}
    return [columns if true is None else columns | {"true_label": true}]


def sample_batches(given, true, *, epochs=EPOCHS, seed=0, only=None):
    """Rows of `samples`, one batch after another; `only` keeps these columns beside the keys."""
    rng = np.random.default_rng(seed)
    n = len(given)
    batches = []
    for epoch in range(epochs):
        high = (given != true) & (epoch < LEARNED)
        loss = np.where(high, 3.0, 0.1) * rng.uniform(0.7, 1.3, n)
        p = np.exp(-loss)
        columns = {
            "loss": loss,
            "weight": np.ones(n),
            "margin": np.log(p / (1 - p)),
            "p_true": p,
            "el2n": 1 - p,
            "predicted": np.where(high, true, given),
            "correct": (~high).astype(np.int8),
            "grad_norm": 10 * (1 - p),
        }
        columns = {k: v for k, v in columns.items() if only is None or k in only}
        for first in range(0, n, BATCH):
            at = np.arange(first, min(first + BATCH, n))
            keys = {"step": np.full(len(at), (epoch * n + first) // BATCH)}
            keys |= {"epoch": np.full(len(at), epoch), "sample_id": at}
            batches.append(keys | {name: values[at] for name, values in columns.items()})
    return batches


def scalar(epoch, name, value, block="total", stderr=0.01, n=100, steps=N // BATCH):
    """One row of `scalars`, taken at the end of the epoch."""
    row = {"step": (epoch + 1) * steps, "epoch": epoch, "name": name, "block": block}
    row |= {"value": value, "stderr": stderr, "n": n}
    return {key: [item] for key, item in row.items()}


def scalar_batches(*, test="test", layers=("0", "2"), sets=("test",), epochs=EPOCHS):
    """Accuracies, Fisher traces with an interior peak, shares of the gradient, predictions."""
    rows = []
    for epoch in range(-1, epochs):
        peak = 1 + 4 * np.exp(-((epoch - 3) ** 2) / 4)
        for name, scale in (("fisher_trace", 1.0), ("empirical_fisher_trace", 0.5)):
            rows.append(scalar(epoch, name, scale * peak, stderr=0.05))
            for layer in layers:
                rows.append(scalar(epoch, name, scale * peak / len(layers), layer, 0.05))
    for epoch in range(epochs):
        rows.append(scalar(epoch, "accuracy", min(1.0, 0.5 + 0.1 * epoch), "train, noisy labels"))
        rows.append(scalar(epoch, "accuracy", 0.9 - 0.02 * abs(epoch - 3), test))
        for c in range(N_CLASSES):
            share = (1 + c + 0.1 * epoch * (c - 1.5)) / 10
            rows.append(scalar(epoch, "weighted_gradient_share", share, f"class {c}"))
            rows.append(scalar(epoch, "weight_share", 0.25, f"class {c}", None))
            rows += [scalar(epoch, "predicted_frac", share, f"{s}: class {c}") for s in sets]
    return rows


def full_run(path, *, clean=True, about=None, **scalars):
    """Every column, every scalar, true labels: 30 % of them wrong."""
    given, true = labels()
    tables = {
        "samples": sample_batches(given, true),
        "scalars": scalar_batches(**scalars),
        "events": [{"step": [0], "epoch": [0], "name": ["epoch_end"]}],
        "roster": roster(given, true),
    }
    return write_run(path, tables, clean=clean, about=about)


def losses_only(path, *, share=0.3):
    """Losses and nothing else: no roster, no logits, no scalars. One group when `share` is 0."""
    given, true = labels(share=share)
    return write_run(path, {"samples": sample_batches(given, true, only=["loss"])})


def hostile_run(path):
    """A full run with hostile texts wherever a run may name something but its folder."""
    given, true = labels()
    texts = {text: text for text in HOSTILE}
    first = HOSTILE[0]
    tables = {
        "samples": sample_batches(given, true, epochs=3),
        "scalars": scalar_batches(test=HOSTILE[1], layers=HOSTILE, sets=HOSTILE_SETS, epochs=3),
        "events": [{"step": [0], "epoch": [0], "name": [t], "subject": [t]} for t in HOSTILE],
        "roster": roster(given, true),
    }
    about = info(
        model={"class": " ".join(HOSTILE), "n_trainable": 12},
        data={"source": first, **texts},
        config={**texts, "nested": {"list": list(HOSTILE), **texts}},
        probes=[{"probe": text, **texts} for text in HOSTILE],
        versions=texts,
        run_id=first,
    )
    return write_run(path, tables, about=about)


def noise_scalars(noisy, *, epoch=9, train=1.0, true=0.9, precision=0.9, recall=0.8):
    """What `noise_table` reads: the last epoch of a run of the noise-ratio study."""
    values = {
        ("accuracy", "train, noisy labels"): train,
        ("accuracy", "held-out, noisy labels"): noisy,
        ("accuracy", "held-out, true labels"): true,
        ("label_precision", "held-out"): precision,
        ("label_recall", "held-out"): recall,
    }
    return [scalar(epoch, name, v, block, stderr=0.005) for (name, block), v in values.items()]


def write_study(path, runs, *, name="noise-ratio", factors=("noise", "ratio", "seed"), also=()):
    """A study of runs given as dicts: the factors' levels, scalars, clean."""
    path.mkdir(parents=True)
    levels = {f: sorted({run[f] for run in runs}) for f in factors}
    content = {"schema_version": SCHEMA_VERSION, "name": name, "factors": levels}
    (path / "study.json").write_text(json.dumps(content), encoding="utf-8")
    for run in runs:
        config = {"study": name, **{f: run[f] for f in (*factors, *also)}}
        tables = {"scalars": run["scalars"], "roster": roster(np.arange(10), np.arange(10))}
        named = {"ratio": "{:g}", "seed": "seed{}"}
        folder = "-".join(named.get(f, "{}").format(run[f]) for f in factors)
        about = info(config=config)
        write_run(path / folder, tables, clean=run.get("clean", True), about=about)
    return open_study(path)


def fisher_run(setting, seed, trace, empirical=None, train=None, *, stderr=0.1, clean=True):
    """A run of a fisher-trace study: its curves from before training on."""
    rows = []
    for i, value in enumerate(trace):
        rows.append(scalar(i - 1, "fisher_trace", value, stderr=stderr))
        rows.append(scalar(i - 1, "fisher_trace", value / 2, "head.1", stderr=stderr))
    for i, value in enumerate(empirical or []):
        rows.append(scalar(i - 1, "empirical_fisher_trace", value, stderr=stderr))
    for epoch, value in enumerate(train or []):
        rows.append(scalar(epoch, "accuracy", value, "train", stderr=0.01))
        rows.append(scalar(epoch, "accuracy", value / 2, "test", stderr=0.01))
    return {"setting": setting, "seed": seed, "scalars": rows, "clean": clean}


def write_fisher_study(path, runs):
    return write_study(path, runs, name="fisher-trace", factors=("setting", "seed"))


def study_runs(
    kinds=("symmetric", "asymmetric"),
    ratios=(0.0, 0.2, 0.4, 0.6, 0.8),
    seeds=2,
    accuracy=None,
    noise=0.005,
):
    """Runs for `write_study` that follow a law, `accuracy(ratio, kind)`, up to small noise."""
    rng = np.random.default_rng(0)
    runs = []
    for kind in kinds:
        for ratio in ratios:
            for seed in range(seeds):
                exact = (accuracy or law)(ratio, kind)
                noisy = float(np.clip(exact + noise * rng.standard_normal(), 0, 1))
                run = {"noise": kind, "ratio": ratio, "seed": seed}
                runs.append(run | {"scalars": noise_scalars(noisy, recall=1 - ratio)})
    return runs


def law(ratio, kind):
    return float(law_accuracy(ratio, kind=kind, n_classes=10))


def accuracy_rows(epochs, test, train=1.0):
    """Accuracies that rise to their last value."""
    rows = []
    for epoch in range(epochs):
        share = (epoch + 1) / epochs
        rows.append(scalar(epoch, "accuracy", test * share, "test", stderr=0.01))
        rows.append(scalar(epoch, "accuracy", train * share, "train", stderr=0.01))
    return rows


def critical_run(deficit, rate, onset, until, seed, test, *, trace=(), train=1.0, clean=True):
    """A run of a critical-period study: final accuracies, and a Fisher trace from epoch -1 on."""
    rows = accuracy_rows(3, test, train)
    rows += [scalar(i - 1, "fisher_trace", v, stderr=0.05 * v) for i, v in enumerate(trace)]
    about = {"network": "mlp", "deficit": deficit, "rate": rate, "onset": onset, "until": until}
    return about | {"seed": seed, "scalars": rows, "clean": clean}


def write_critical_study(path, runs):
    factors = ("network", "deficit", "rate", "onset", "until", "seed")
    return write_study(path, runs, name="critical-period", factors=factors)


def timing_run(regulariser, start, end, seed, test, *, trace=(1, 9, 3), epochs=20, clean=True):
    """A run of a regularisation-timing study of `epochs` epochs."""
    rows = accuracy_rows(3, test)
    rows += [scalar(i - 1, "fisher_trace", v, stderr=0.05 * v) for i, v in enumerate(trace)]
    about = {"regulariser": regulariser, "on_from": start, "on_until": end, "seed": seed}
    return about | {"epochs": epochs, "scalars": rows, "clean": clean}


def write_timing_study(path, runs):
    factors = ("regulariser", "on_from", "on_until", "seed")
    return write_study(path, runs, name="regularisation-timing", factors=factors, also=("epochs",))
