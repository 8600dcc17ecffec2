"""The page on loops and modes, docs/integrations.md, from what benchmarks/modes.py has found."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "modes.json"

HEAD = """# Where people train: loops, modes, trackers

Made by `make docs` from `benchmarks/results/modes.json`, which `python benchmarks/modes.py` writes
and tests hold to what happens; do not edit.

## In your loop

| loop | extra | what to add |
| --- | --- | --- |
| plain PyTorch | – | `with Recorder(...)`, `recorder.epochs(n)`, `recorder.observe(losses, \
sample_id)` |
| Lightning | `lightning` | `RecorderCallback(recorder)` among the callbacks, `observe(self, \
losses, sample_id)` in `training_step` |
| transformers | `transformers` | `RecordingTrainer(..., recorder=recorder)` for `Trainer(...)`, \
`with_sample_ids(train_set)` |
| Accelerate | `accelerate` | `prepare_recorder(accelerator, out, model, probes)` for \
`Recorder(...)`, then as in the plain loop |

All four give the same trace of the same training (losses to 1e-6, norms to 1e-5, ids, epochs and
steps equal), and on the CPU the trained parameters are the same bits with and without the recorder.
The adapters are in `probes.integrations`; `probes` imports none of the libraries.

Ids: `with_sample_ids` numbers map-style sets by their index in the full set, also through `Subset`
and `ConcatDataset`; adds a column to a set of `datasets`; and numbers a stream by a 63-bit hash of
a key that you name. GPT-2 and BERT look positions up once for the whole batch: give them
`position_ids`, a row for each sequence, where gradient norms are wanted.

## Trackers

`Recorder(..., trackers=[TensorBoard("logs/a")])`, from `probes.trackers.tensorboard`, `.wandb`
(`WandB`) or `.mlflow` (`MLflow`). They get every scalar, its standard error as `<name>_stderr`, and
after each epoch five quantiles of the samples' losses, margins and norms; never a row of a sample.
Each has a thread of its own: one that raises or hangs is left behind with a warning and an event
`tracker_failed`, and training and trace are as without it.

## Modes

Each cell is a training of a few steps with that probe. Values are compared with those of single
samples in float64, the trained parameters with those of the same training without the probe.

- **exact**: within float32 rounding (largest relative error beside it), parameters bit-identical.
- **rounding**: values of a pass in low precision, or gradients formed in another order (`fused`);
  equal to rounding.
- **refused**: an error names the reason and the way out; never a wrong number.
"""

TAIL = """
A step that GradScaler skips is no step: rows keep the step that they began at, norms of what
overflowed are missing with a status bit, and an event `step_skipped` stands where the gradients
were cleared without an update (seen where `zero_grad` sets them to None, its default).

FSDP was tried as `fully_shard` on the CPU with gloo. No cell was measured on a GPU.
"""


def describe_integrations() -> str:
    """The page, from the committed results.

    Returns:
        Markdown.
    """
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = content["verdicts"]
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    probes = list(dict.fromkeys(row["probe"] for row in rows))
    reasons: dict[str, int] = {}
    cells = {(row["mode"], row["probe"]): _cell(row, reasons) for row in rows}
    lines = [HEAD, f"| mode | {' | '.join(probes)} |", "| --- |" + " --- |" * len(probes)]
    lines += [f"| {m} | {' | '.join(cells[m, probe] for probe in probes)} |" for m in modes]
    lines += ["", "Refused because:", ""]
    lines += [f"{number}. {reason}." for reason, number in reasons.items()]
    return "\n".join([*lines, TAIL]) + f"\ntorch {content['environment']['torch']}.\n"


def _cell(row: dict[str, Any], reasons: dict[str, int]) -> str:
    if row["kind"] == "refused":
        number = reasons.setdefault(row["reason"], len(reasons) + 1)
        return f"refused ({number})"
    return f"{row['kind']}, {row['error']:.0e}"
