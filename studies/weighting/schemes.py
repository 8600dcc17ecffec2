"""The schemes by name, as studies and the command line call them."""

from collections.abc import Callable

from studies.weighting.bootstrapping import bootstrapping
from studies.weighting.class_ratio import class_ratio
from studies.weighting.data_weighting import data_weighting
from studies.weighting.emphasis import derivative_manipulation, gce, mae, mse
from studies.weighting.importance import importance
from studies.weighting.incv import incv
from studies.weighting.random_gaussian import random_gaussian
from studies.weighting.reweight import reweight
from studies.weighting.scheme import Scheme, Setup
from studies.weighting.selfie import selfie
from studies.weighting.small_loss import co_teaching

SCHEMES: dict[str, Callable[[Setup], Scheme]] = {
    "uniform": lambda setup: Scheme(),
    "random": random_gaussian,
    "class-ratio": class_ratio,
    "mae": mae,
    "mse": mse,
    "gce": gce,
    "imae": lambda setup: derivative_manipulation(mode=1.0, variance=8.0),
    "dm": lambda setup: derivative_manipulation(mode=0.5, variance=8.0),
    "selfie": selfie,
    "bootstrap-hard": lambda setup: bootstrapping(setup, "hard"),
    "bootstrap-soft": lambda setup: bootstrapping(setup, "soft"),
    "bootstrap-hard-mixup": lambda setup: bootstrapping(setup, "hard", mixup=True),
    "bootstrap-soft-mixup": lambda setup: bootstrapping(setup, "soft", mixup=True),
    "co-teaching": co_teaching,
    "incv": incv,
    "importance": importance,
    "reweight": reweight,
    "data-weighting": data_weighting,
}
"""Cheap ones first; `uniform` is plain training, `random` the control that stands beside all."""
