"""Probes: hooks on a live training run that record how each sample is learned.

`Recorder` goes around the loop, `recorder.observe(...)` into it. Probes observe and never train.
"""

from probes.errors import UnsupportedModelError
from probes.fisher_estimate import FisherEstimate
from probes.fisher_trace import FisherTrace, fisher_trace
from probes.grad_norm import GradNorm
from probes.output_grad_norm import OutputGradNorm
from probes.probe import Event, Probe, Scalar, Vector
from probes.recorder import Recorder
from probes.sample_ids import stable_id, with_sample_ids
from probes.sample_loss import SampleLoss
from probes.schedule import Schedule, every
from probes.sequence_losses import sequence_losses
from probes.weight_effect import WeightEffect

__all__ = [
    # the recorder
    "Recorder",
    "sequence_losses",
    "stable_id",
    "with_sample_ids",
    # probes
    "FisherTrace",
    "GradNorm",
    "OutputGradNorm",
    "SampleLoss",
    "WeightEffect",
    # when they measure
    "Schedule",
    "every",
    # a checkpoint's Fisher trace
    "FisherEstimate",
    "fisher_trace",
    # writing a probe of one's own
    "Probe",
    "Event",
    "Scalar",
    "Vector",
    "UnsupportedModelError",
]
