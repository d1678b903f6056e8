"""Models, their named sizes, and the builder that reads a config."""

from videoattn.models.build import build_model
from videoattn.models.mvit.model import (
    MVIT_SIZES,
    MViT,
    mvit_v1_b,
    mvit_v1_b_32x3,
    mvit_v1_b_32x3_depth16,
    mvit_v2_b,
    mvit_v2_l,
    mvit_v2_s,
)
from videoattn.models.mvit.plan import MViTShape
from videoattn.models.registry import MODELS
from videoattn.models.spec import ModelSpec
from videoattn.models.timesformer.model import (
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
    "MVIT_SIZES",
    "MViT",
    "MViTShape",
    "ModelSpec",
    "TIMESFORMER_SIZES",
    "TimeSformer",
    "build_model",
    "mvit_v1_b",
    "mvit_v1_b_32x3",
    "mvit_v1_b_32x3_depth16",
    "mvit_v2_b",
    "mvit_v2_l",
    "mvit_v2_s",
    "timesformer_base",
    "timesformer_base_hr",
    "timesformer_base_l",
    "timesformer_small",
    "timesformer_tiny",
]
