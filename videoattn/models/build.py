"""Building a model from a config."""

from typing import Any

from torch import nn

from videoattn.config import Config
from videoattn.models.registry import find_spec
from videoattn.models.settings import read_description
from videoattn.models.spec import ModelSpec


def model_arguments(cfg: Config) -> dict[str, Any]:
    """Return keyword arguments for `MODELS[cfg.model.model_name]`. Raises ValueError naming the key at fault."""
    spec = find_spec(cfg.model.model_name)
    if cfg.data.train_crop_size != cfg.data.test_crop_size:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE and DATA.TEST_CROP_SIZE must agree, since the model's positions are learned for one "
            f"size; got {cfg.data.train_crop_size} and {cfg.data.test_crop_size}"
        )
    return {
        "clip_size": (cfg.data.num_frames, cfg.data.train_crop_size, cfg.data.train_crop_size),
        "num_classes": cfg.model.num_classes,
        **spec.arguments(cfg),
    }


def build_model(cfg: Config) -> nn.Module:
    """Return the model that a config describes, freshly initialised, for clips of DATA.NUM_FRAMES x TRAIN_CROP_SIZE².

    Raises ValueError naming the key at fault. Weights are loaded by `videoattn.load_weights`.
    """
    arguments = model_arguments(cfg)
    try:
        return find_spec(cfg.model.model_name).build(**arguments)
    except ValueError as error:
        frames, crop = cfg.data.num_frames, cfg.data.train_crop_size
        raise ValueError(
            f"MODEL.MODEL_NAME {cfg.model.model_name} (DATA.NUM_FRAMES {frames}, DATA.TRAIN_CROP_SIZE {crop}) can't be "
            f"built: {error}"
        ) from None


def parse_description(text: str, source: str = "the embedded cfg") -> tuple[ModelSpec, dict[str, Any]]:
    """Return the spec of the model that a config's YAML text describes, and arguments for it.

    Raises ValueError with all problems of the text, which `source` names.
    """
    cfg = read_description(text, source)
    arguments = model_arguments(cfg)  # knows whether there is such a model
    return find_spec(cfg.model.model_name), arguments
