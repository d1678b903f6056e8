"""Models, their named sizes, and the builder that reads a config."""

from videoattn.models.build import MODELS, build_model
from videoattn.models.timesformer import (
    TIMESFORMER_SIZES,
    TimeSformer,
    timesformer_base,
    timesformer_base_hr,
    timesformer_base_l,
    timesformer_small,
    timesformer_tiny,
)

__all__ = [
    "MODELS",
    "TIMESFORMER_SIZES",
    "TimeSformer",
    "build_model",
    "timesformer_base",
    "timesformer_base_hr",
    "timesformer_base_l",
    "timesformer_small",
    "timesformer_tiny",
]
