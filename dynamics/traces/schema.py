"""What a trace holds: four tables, each column with its type, unit and convention.

`samples` is wide, one row per presentation of a sample; `scalars` is long, one row per measured
value; `events` says what happened and when; `roster` has one row per sample, with what never
changes. Everything that reads or writes a trace asks this file, and `docs/trace-format.md` is
written from it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag

import pyarrow as pa

from dynamics.traces.errors import SchemaError

SCHEMA_VERSION = "1.0"
"""Major.minor. A minor version only adds nullable columns; another major is refused."""

BLOCK_PREFIX = "grad_norm/"
"""Optional `samples` columns `grad_norm/<block>` hold the norm over one block's parameters."""


class Status(IntFlag):
    """Why a value of a `samples` row is missing or special; stored as the sum of its bits."""

    NON_FINITE_LOSS = 1
    """The loss was NaN or infinite; `loss` is missing."""
    NON_FINITE_GRAD_NORM = 2
    """The gradient norm was NaN or infinite; `grad_norm` is missing."""
    NON_FINITE_OUTPUT = 4
    """A value computed from the logits was NaN or infinite; that value is missing."""
    ZERO_WEIGHT = 8
    """The sample's factor in the total loss was 0, so its gradient norm cannot be recovered."""
    NO_BACKWARD = 16
    """No backward pass reached this row's loss."""
    ESTIMATED = 64
    """The gradient norm is an estimate; `grad_norm_stderr` is its standard error."""
    REPEAT = 32
    """The sample was seen before in this epoch: padding, or sampling with replacement."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its Arrow type, its unit, and the convention its values follow."""

    name: str
    type: pa.DataType
    unit: str
    convention: str
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the trace, and the columns its parts are sorted by."""

    name: str
    description: str
    columns: tuple[Column, ...]
    sorted_by: tuple[str, ...]

    @property
    def column_names(self) -> list[str]:
        """Names of the fixed columns, in stored order."""
        return [column.name for column in self.columns]

    def schema(self, names: Iterable[str] = ()) -> pa.Schema:
        """Arrow schema of a part that holds the fixed columns plus the given block columns.

        Args:
            names: Column names of the part; those that are not fixed must start with
                `grad_norm/` and belong to `samples`.

        Returns:
            The schema, fixed columns first, block columns in the order given.

        Raises:
            SchemaError: If a name is neither fixed nor a block column.
        """
        fields = [pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns]
        known = set(self.column_names)
        extra = [name for name in names if name not in known]
        for name in extra:
            if self.name != "samples" or not name.startswith(BLOCK_PREFIX):
                raise SchemaError(unknown_column(name, self))
            fields.append(pa.field(name, pa.float32()))
        return pa.schema(fields)


def unknown_column(name: str, table: Table) -> str:
    """The text of the error for a column that a table does not have."""
    blocks = f", and {BLOCK_PREFIX}<block>" if table.name == "samples" else ""
    return (
        f"`{table.name}` has no column {name!r}. It has {', '.join(table.column_names)}{blocks}; "
        f"docs/trace-format.md says what each one means."
    )


_STEP = Column(
    "step", pa.int64(), "updates", "Optimiser updates so far, when the value was taken.", False
)
_EPOCH = Column(
    "epoch", pa.int32(), "epochs", "Epoch in progress, from 0; 0 throughout without epochs.", False
)
_SCALAR_EPOCH = Column(
    "epoch",
    pa.int32(),
    "epochs",
    "Epoch in progress or just ended, from 0; −1 for a value taken before the first epoch.",
    False,
)
_SAMPLE_ID = Column(
    "sample_id", pa.int64(), "index", "Index of the sample in the full training set.", False
)
_LABEL = "class"

SAMPLES = Table(
    "samples",
    "One row per presentation of a sample in training, as the network saw it (its augmented view, "
    "before that step's update).",
    (
        _STEP,
        _EPOCH,
        _SAMPLE_ID,
        Column(
            "occurrence",
            pa.int32(),
            "count",
            "How often the sample was seen before in this epoch; rows above 0 carry REPEAT and "
            "are left out of per-epoch reductions.",
            False,
        ),
        Column("status", pa.int32(), "bits", "Sum of the status bits listed below.", False),
        Column("loss", pa.float32(), "nats", "The sample's own loss ℓ_i, unreduced, unweighted."),
        Column(
            "weight",
            pa.float32(),
            "1",
            "Importance weight: as given to `observe`, otherwise the sample's factor in the total "
            "loss divided by the mean factor of its batch.",
        ),
        Column(
            "margin", pa.float32(), "logits", "Assigned label's logit minus the best other logit."
        ),
        Column("p_true", pa.float32(), "probability", "Softmax probability of the assigned label."),
        Column("el2n", pa.float32(), "1", "‖softmax(z) − e_y‖₂ with the assigned label y."),
        Column("predicted", pa.int32(), _LABEL, "Class with the largest logit; the first of ties."),
        Column("correct", pa.int8(), "0 or 1", "Whether `predicted` is the assigned label."),
        Column(
            "grad_norm",
            pa.float32(),
            "nats per unit of parameter",
            "‖∇ℓ_i‖₂ over all trainable parameters, of the unweighted and unscaled loss.",
        ),
        Column(
            "grad_norm_stderr",
            pa.float32(),
            "as grad_norm",
            "Standard error of `grad_norm`, where that is estimated.",
        ),
        Column(
            "output_grad_norm",
            pa.float32(),
            "nats per unit of output",
            "‖∂ℓ_i/∂z_i‖₂ at the network's output z_i, of the unweighted and unscaled loss: the "
            "last-layer bound Ĝ. Equals `el2n` for softmax cross-entropy on logits.",
        ),
    ),
    ("epoch", "sample_id", "occurrence"),
)

SCALARS = Table(
    "scalars",
    "One row per measured value that belongs to the network and not to a sample.",
    (
        _STEP,
        _SCALAR_EPOCH,
        Column("name", pa.string(), "", "What was measured, such as fisher_trace.", False),
        Column(
            "block",
            pa.string(),
            "",
            "Module, data set or group that the value is for; `total` for the whole.",
            False,
        ),
        Column("value", pa.float64(), "that of its name", "The value; missing if not finite."),
        Column("stderr", pa.float64(), "as value", "Standard error of the value."),
        Column("n", pa.int64(), "samples", "Number of samples that the value rests on."),
        Column("estimator", pa.string(), "", "How it was estimated: exact, mc, empirical, …"),
        Column("label_source", pa.string(), "", "Whose labels were used: model or data."),
        Column("mode", pa.string(), "", "Mode of the network at the measurement: train or eval."),
    ),
    ("step", "name"),
)

EVENTS = Table(
    "events",
    "What happened, and when.",
    (
        _STEP,
        _SCALAR_EPOCH,
        Column("name", pa.string(), "", "Kind of event, such as epoch_end or non_finite.", False),
        Column("subject", pa.string(), "", "What it is about: a column, probe, file or set."),
        Column("detail", pa.string(), "", "The rest, as text for a person."),
    ),
    ("step",),
)

ROSTER = Table(
    "roster",
    "One row per sample of the training set, written once.",
    (
        _SAMPLE_ID,
        Column("label", pa.int32(), _LABEL, "Label as trained."),
        Column("true_label", pa.int32(), _LABEL, "Label before corruption, where it is known."),
        Column("group", pa.int32(), "index", "Group for comparisons, such as a weight group."),
    ),
    ("sample_id",),
)

SCALAR_NAMES = {
    "accuracy": ("share", "Right predictions on the set that `block` names."),
    "fisher_trace": (
        "nats² per squared unit of parameter",
        "tr F with labels of the model, averaged over the probe set, in total and by block.",
    ),
    "fisher_share": ("share", "Share of a block in `fisher_trace`."),
    "scale_free_fisher_trace": ("nats²", "Σ_j w_j² F_jj, with labels of the model."),
    "weight_norm_sq": ("squared unit of parameter", "‖w‖² of the trainable parameters."),
    "fisher_draw_stderr": (
        "as fisher_trace",
        "The part of its standard error that more draws would remove; `n` counts the draws.",
    ),
    "empirical_fisher_trace": (
        "as fisher_trace",
        "The same sum at the data's labels; not an estimate of tr F.",
    ),
    "gradient_noise_scale": ("samples", "tr Σ / ‖G‖² of the loss's gradient, both unbiased."),
    "gradient_snr": ("1 per sample", "Its inverse; below 0 where noise hides the gradient."),
    "parameter_snr": ("1", "Mean over parameters of ḡ_j² / Var g_j."),
    "grad_norm": ("as samples.grad_norm", "Of a fixed set: mean, and `sample <id>` for each."),
    "weight_share": ("share", "Of a class in the importance weights since the last measurement."),
    "weighted_gradient_share": ("share", "Of a class in Σ w_i ‖∇ℓ_i‖ over the same batches."),
    "effective_sample_size": ("samples", "(Σ w_i)² / Σ w_i² over the same batches."),
    "predicted_frac": ("share", "Inputs of a set assigned to a class; `block` names both."),
    "label_precision": ("share", "Clean labels among those that agree with the prediction."),
    "label_recall": ("share", "Of the clean labels, those that agree with the prediction."),
}
"""Names that this toolkit's own probes and studies give to scalars, with unit and convention."""

TABLES = {table.name: table for table in (SAMPLES, SCALARS, EVENTS, ROSTER)}


def check_schema_version(version: object, where: str) -> None:
    """Refuse a trace that this version of the toolkit cannot read.

    Args:
        version: The `schema_version` found, expected as "major.minor".
        where: The file that it was found in, for the message.

    Raises:
        SchemaError: If the version is not of that form, or of another major.
    """
    major, dot, minor = version.partition(".") if isinstance(version, str) else ("", "", "")
    if not (dot and major.isdecimal() and minor.isdecimal() and len(str(version)) < 20):
        raise SchemaError(
            f"{where} has no readable schema_version (found {version!r}, expected something like "
            f'"{SCHEMA_VERSION}"). It was not written by this toolkit, or is damaged.'
        )
    if major != SCHEMA_VERSION.partition(".")[0]:
        raise SchemaError(
            f"{where} is of schema version {version}, and this is training-dynamics with schema "
            f"version {SCHEMA_VERSION}. Read it with a release whose schema version starts with "
            f"{major}."
        )
