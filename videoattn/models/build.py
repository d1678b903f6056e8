"""A model from a config: the one place where models meet settings."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from videoattn.config import Config
from videoattn.config.attention import OperatorSection
from videoattn.config.sections import MViT as MViTSection
from videoattn.config.types import Section
from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator
from videoattn.layers.skip import SkipSettings
from videoattn.models.baselines import BASELINES, PREFIX, Baseline
from videoattn.models.mvit.model import MVIT_AXES, MVIT_SIZES, MViT
from videoattn.models.mvit.plan import MViTShape
from videoattn.models.timesformer.model import AXES, TIMESFORMER_SIZES, TimeSformer
from videoattn.operators import OPERATORS, AttentionOperator, AttentionSite, DenseAttention

# "mvit" is what SlowFast calls MViT: no block pools or widens unless the settings say so.
_MVITS: dict[str, dict[str, Any]] = {"mvit": {}, **MVIT_SIZES}
MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(TimeSformer, **size) for name, size in TIMESFORMER_SIZES.items()},
    **{name: partial(MViT, **size) for name, size in _MVITS.items()},
    **{f"{PREFIX}{name}": partial(Baseline, name, clip_size=size) for name, (_, size) in BASELINES.items()},
}
# Keys that say nothing of a model or its data; those of a finished run may hold what would be refused now.
_OF_TRAINING = ("SOLVER.", "TRAIN.BATCH_SIZE", "TRAIN.CHECKPOINT_", "TRAIN.EVAL_PERIOD", "MIXUP.", "GLOBAL_BATCH_SIZE")
# Tokens of one clip, and those that attend to each other; 96 frames of 224 x 224 pixels have 18,816.
_MOST_TOKENS, _LONGEST_SEQUENCE = 2**20, 2**17


def bind_operators(sections: Sequence[OperatorSection], depth: int, key: str) -> BuildOperator:
    """The operators of one ATTENTION section bound to their options, as one callable that looks at a site's layer.

    Raises ValueError where LAYERS names blocks beyond `depth`; `key` names the section.
    """
    if len(sections) == 1 and not sections[0].layers:
        return partial(_build_operator, sections[0], key)
    chosen: dict[int, BuildOperator] = {}
    for section in sections:
        _check_layers(section.layers, depth, f"{key}: LAYERS of {section.name}")
        chosen |= dict.fromkeys(section.layers, partial(_build_operator, section, key))

    def build(site: AttentionSite) -> AttentionOperator:
        return chosen.get(site.layer, DenseAttention)(site)

    return build


def _build_operator(section: OperatorSection, key: str, site: AttentionSite) -> AttentionOperator:
    try:
        return OPERATORS[section.name](site, **section.options)
    except ValueError as error:
        raise ValueError(f"{key} (NAME {section.name}, block {site.layer}): {error}") from None


def _check_layers(layers: Sequence[int], depth: int, what: str) -> None:
    if layers and layers[-1] >= depth:
        raise ValueError(f"{what} expects blocks 0 to {depth - 1} of a model of depth {depth}, got {list(layers)}")


def attention_arguments(cfg: Config, axes: Sequence[Axis], attention_type: str, depth: int) -> dict[str, Any]:
    """`operators` and `skip` of a model. Raises ValueError where ATTENTION speaks of an axis that the model lacks."""
    settings = cfg.attention
    for axis in Axis:
        sections, skipped = getattr(settings, axis.value), getattr(settings.skip, axis.value)
        used = [section.name for section in sections if section.name != "dense"] + ["SKIP"] * bool(skipped)
        if axis not in axes and used:
            raise ValueError(
                f"ATTENTION.{axis.name} or ATTENTION.SKIP.{axis.name} asks for {', '.join(used)}, but a model of "
                f"ATTENTION_TYPE {attention_type} attends along {' and '.join(a.name for a in axes) or 'no axis'} alone"
            )
        _check_layers(skipped, depth, f"ATTENTION.SKIP.{axis.name}")
    operators = {axis: bind_operators(getattr(settings, axis.value), depth, f"ATTENTION.{axis.name}") for axis in axes}
    skip = {
        axis: SkipSettings(layers, settings.skip.phi, settings.skip.expansion)
        for axis in axes
        if (layers := getattr(settings.skip, axis.value))
    }
    return {"operators": operators, "skip": skip}


def model_arguments(cfg: Config) -> dict[str, Any]:
    """Keyword arguments for `MODELS[cfg.model.model_name]`. Raises ValueError naming the key at fault."""
    name = cfg.model.model_name
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1) or [other for other in MODELS if other.endswith(f"/{name}")]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"MODEL.MODEL_NAME expects one of {', '.join(MODELS)}, got {name!r}{hint}")
    if cfg.data.train_crop_size != cfg.data.test_crop_size:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE and DATA.TEST_CROP_SIZE must agree, since the model's positions are learned for one "
            f"size; got {cfg.data.train_crop_size} and {cfg.data.test_crop_size}"
        )
    if cfg.model.model_name.startswith(PREFIX):
        return _baseline_arguments(cfg)
    shared = {
        "clip_size": (cfg.data.num_frames, cfg.data.train_crop_size, cfg.data.train_crop_size),
        "num_classes": cfg.model.num_classes,
        "act_checkpoint": cfg.model.act_checkpoint,
    }
    return shared | (_mvit_arguments(cfg) if cfg.model.model_name in _MVITS else _timesformer_arguments(cfg))


def _baseline_arguments(cfg: Config) -> dict[str, Any]:
    attention_arguments(cfg, (), "of its own", 0)  # refuses whatever ATTENTION asks for
    if cfg.model.act_checkpoint:
        raise ValueError(f"MODEL.ACT_CHECKPOINT expects False for {cfg.model.model_name}, which has no such blocks")
    return {
        "clip_size": (cfg.data.num_frames, cfg.data.train_crop_size, cfg.data.train_crop_size),
        "num_classes": cfg.model.num_classes,
        "dropout": cfg.model.dropout_rate,
    }


def _timesformer_arguments(cfg: Config) -> dict[str, Any]:
    settings, crop = cfg.timesformer, cfg.data.train_crop_size
    sizes = _given(settings, ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"))
    size = {"patch_size": 16, **TIMESFORMER_SIZES[cfg.model.model_name], **sizes}
    patch, width, heads, depth = (size[name] for name in ("patch_size", "embed_dim", "num_heads", "depth"))
    if crop % patch:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE expects a multiple of TIMESFORMER.PATCH_SIZE, got {crop} and patches of {patch}"
        )
    if width % heads:
        raise ValueError(
            f"TIMESFORMER.EMBED_DIM expects a multiple of TIMESFORMER.NUM_HEADS, got {width} and {heads} heads"
        )
    _check_tokens(cfg, (1, patch, patch), settings.attention_type == "joint_space_time", "TIMESFORMER.PATCH_SIZE")
    return {
        **sizes,
        "attention_type": settings.attention_type,
        **attention_arguments(cfg, AXES[settings.attention_type], settings.attention_type, depth),
        "drop_path_rate": settings.drop_path_rate,
        "drop_path_unit": settings.drop_path_unit,
        "init": settings.init,
    }


def _check_tokens(cfg: Config, stride: Sequence[int], joint: bool, key: str) -> None:
    """Raise ValueError where clips have more tokens than any machine attends over; `key` names the `stride`."""
    frames, crop = cfg.data.num_frames, cfg.data.train_crop_size
    num_tokens, most = frames * crop**2 // math.prod(stride), _LONGEST_SEQUENCE if joint else _MOST_TOKENS
    if num_tokens > most:
        raise ValueError(
            f"DATA.NUM_FRAMES {frames}, DATA.TRAIN_CROP_SIZE {crop} and {key} {list(stride)} make {num_tokens} tokens "
            f"of a clip; ATTENTION_TYPE {'joint' if joint else 'divided'} expects at most {most}"
        )


def _given(settings: Section, names: Sequence[str]) -> dict[str, Any]:
    """The settings of these names that are given, by name."""
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def _mvit_arguments(cfg: Config) -> dict[str, Any]:
    settings, size = cfg.mvit, _MVITS[cfg.model.model_name]
    _check_tokens(cfg, settings.patch_stride or (2, 4, 4), settings.attention_type == "joint", "MVIT.PATCH_STRIDE")
    shape = mvit_shape(settings, size.get("shape", MViTShape()))
    plain = ("mlp_ratio", "qkv_bias", "patch_kernel", "patch_stride", "patch_padding", "rel_pos_spatial",
             "rel_pos_temporal", "rel_pos_zero_init", "residual_pooling")  # fmt: skip
    positions = size.get("positions", "none" if settings.use_abs_pos is False else "separable")
    if settings.use_abs_pos is not None:
        positions = "separable" if settings.use_abs_pos else "none"
    separable = settings.sep_pos_embed if settings.sep_pos_embed is not None else cfg.model.model_name != "mvit"
    if positions == "separable" and not separable:
        raise ValueError("MVIT.SEP_POS_EMBED expects True: one embedding per place and time together is not supported")
    return {
        "shape": shape,
        "attention_type": settings.attention_type,
        **attention_arguments(cfg, MVIT_AXES[settings.attention_type], settings.attention_type, shape.depth),
        **_given(settings, plain),
        "positions": positions,
        "class_token": settings.cls_embed_on is not False,
        "dropout": cfg.model.dropout_rate,
        "init": settings.init,
        **({} if settings.droppath_rate is None else {"drop_path_rate": settings.droppath_rate}),
    }


def mvit_shape(settings: MViTSection, base: MViTShape) -> MViTShape:
    """`base` with what MVIT.* says otherwise. Raises ValueError naming the key at fault."""
    changes = _given(settings, ("embed_dim", "num_heads", "depth", "pool_kv_stride_adaptive"))
    changes |= {
        name: {layer: factor for layer, factor in pairs}
        for name, pairs in _given(settings, ("dim_mul", "head_mul")).items()
    }
    changes |= {
        name: {layer: tuple(stride) for layer, *stride in strides}
        for name, strides in _given(settings, ("pool_q_stride", "pool_kv_stride")).items()
    }
    if settings.dim_mul_in_att is not None:
        changes["dim_mul_in_attention"] = settings.dim_mul_in_att
    if settings.pool_kvq_kernel is not None:
        changes["pool_kernel"] = settings.pool_kvq_kernel
    if settings.pool_kv_stride is not None:
        changes["pool_kv_stride_adaptive"] = settings.pool_kv_stride_adaptive
    try:
        return replace(base, **changes)
    except ValueError as error:
        raise ValueError(f"MVIT: {error}") from None


def build_model(cfg: Config) -> nn.Module:
    """The model that a config describes, freshly initialised, for clips of DATA.NUM_FRAMES x TRAIN_CROP_SIZE².

    Raises ValueError naming the key at fault. Weights are loaded by `videoattn.load_weights`.
    """
    arguments = model_arguments(cfg)
    try:
        return MODELS[cfg.model.model_name](**arguments)
    except ValueError as error:
        frames, crop = cfg.data.num_frames, cfg.data.train_crop_size
        raise ValueError(
            f"MODEL.MODEL_NAME {cfg.model.model_name} can't be built for clips of DATA.NUM_FRAMES {frames} and "
            f"DATA.TRAIN_CROP_SIZE {crop}: {error}"
        ) from None


def read_description(text: str) -> Config:
    """Return the settings of a model and its data from a config's YAML text, as checkpoints embed it.

    How the weights were trained is left out. Raises ValueError with all problems of the text.
    """
    from videoattn.config.load import parse_config

    return parse_config(text, "the embedded cfg", without=_OF_TRAINING)


def parse_description(text: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """Return the constructor and arguments of the model that a config's YAML text describes.

    Raises ValueError with all problems of the text.
    """
    cfg = read_description(text)
    arguments = model_arguments(cfg)  # knows whether there is such a model
    return MODELS[cfg.model.model_name], arguments
