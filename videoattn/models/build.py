"""A model from a config: the one place where models meet settings."""

import difflib
import inspect
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from videoattn.config import Config, Operator
from videoattn.layers.mixer import BuildOperator
from videoattn.models.timesformer import AXES, TIMESFORMER_SIZES, TimeSformer
from videoattn.operators import OPERATORS

MODELS: dict[str, Callable[..., nn.Module]] = {
    name: partial(TimeSformer, **size) for name, size in TIMESFORMER_SIZES.items()
}


def build_operator(settings: Operator, key: str) -> BuildOperator:
    """The operator class of one ATTENTION section, bound to its options; `key` names the section in errors."""
    if settings.name not in OPERATORS:
        raise ValueError(f"{key}.NAME expects one of {', '.join(OPERATORS)}, got {settings.name!r}")
    operator = OPERATORS[settings.name]
    known = [name for name in inspect.signature(operator).parameters if name != "site"]
    for option in settings.options:
        if option not in known:
            nearest = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {nearest[0].upper()}?" if nearest else ""
            valid = ", ".join(name.upper() for name in known) or "none"
            raise ValueError(f"{key}.{option.upper()} is not an option of {settings.name} (options: {valid}){hint}")
    return partial(operator, **settings.options)


def model_arguments(cfg: Config) -> dict[str, Any]:
    """Keyword arguments for `MODELS[cfg.model.model_name]`. Raises ValueError naming the key at fault."""
    if cfg.model.model_name not in MODELS:
        raise ValueError(f"MODEL.MODEL_NAME expects one of {', '.join(MODELS)}, got {cfg.model.model_name!r}")
    if cfg.data.train_crop_size != cfg.data.test_crop_size:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE and DATA.TEST_CROP_SIZE must agree, since the model's positions are learned for one "
            f"size; got {cfg.data.train_crop_size} and {cfg.data.test_crop_size}"
        )
    settings = cfg.timesformer
    sizes: dict[str, Any] = {
        name: value
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
        if (value := getattr(settings, name)) is not None
    }
    operators = {
        axis: build_operator(getattr(cfg.attention, axis.value), f"ATTENTION.{axis.name}")
        for axis in AXES[settings.attention_type]
    }
    return {
        **sizes,
        "clip_size": (cfg.data.num_frames, cfg.data.train_crop_size, cfg.data.train_crop_size),
        "num_classes": cfg.model.num_classes,
        "attention_type": settings.attention_type,
        "operators": operators,
        "drop_path_rate": settings.drop_path_rate,
        "drop_path_unit": settings.drop_path_unit,
        "act_checkpoint": cfg.model.act_checkpoint,
        "init": settings.init,
    }


def build_model(cfg: Config) -> nn.Module:
    """The model that a config describes, freshly initialised, for clips of DATA.NUM_FRAMES x TRAIN_CROP_SIZE².

    Raises ValueError naming the key at fault. Weights are loaded by `videoattn.load_weights`.
    """
    arguments = model_arguments(cfg)
    return MODELS[cfg.model.model_name](**arguments)


def parse_description(text: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """The constructor and arguments of the model that a config's YAML text describes, as checkpoints embed it.

    Raises ValueError with all problems of the text.
    """
    from videoattn.config_file import load_config

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cfg.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            cfg = load_config(path)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "the embedded cfg")) from None
    arguments = model_arguments(cfg)
    return MODELS[cfg.model.model_name], arguments
