"""Settings that every model with attention shares, read from a config; and the settings that a checkpoint carries."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from videoattn.config import Config
from videoattn.config.attention import OperatorSection
from videoattn.config.load import parse_config
from videoattn.config.types import Section
from videoattn.grid import Axis
from videoattn.layers.attention import BuildOperator
from videoattn.layers.skip import SkipSettings
from videoattn.operators import OPERATORS, AttentionOperator, AttentionSite, DenseAttention, keep_heads_dense

# Keys that say nothing of a model or its data; those of a finished run may hold what would be refused now.
_OF_TRAINING = ("SOLVER.", "TRAIN.BATCH_SIZE", "TRAIN.CHECKPOINT_", "TRAIN.EVAL_PERIOD", "MIXUP.", "GLOBAL_BATCH_SIZE")
# Tokens of one clip, and those that attend to each other; 96 frames of 224 x 224 pixels have 18,816.
_MOST_TOKENS, _LONGEST_SEQUENCE = 2**20, 2**17


def bind_operators(sections: Sequence[OperatorSection], depth: int, key: str) -> BuildOperator:
    """Return the operators of one ATTENTION section, bound to their options, as one callable of a site.

    Raises ValueError where LAYERS names blocks beyond `depth`; `key` names the section.
    """
    for section in sections:
        beyond = sorted({block for block, _ in section.dense_heads if block >= depth})
        _check_blocks(beyond, depth, f"{key}: DENSE_HEADS of {section.name}")
    if len(sections) == 1 and not sections[0].layers:
        return partial(_build_operator, sections[0], key)
    chosen: dict[int, BuildOperator] = {}
    for section in sections:
        _check_blocks(section.layers, depth, f"{key}: LAYERS of {section.name}")
        chosen |= dict.fromkeys(section.layers, partial(_build_operator, section, key))

    def build(site: AttentionSite) -> AttentionOperator:
        return chosen.get(site.block, DenseAttention)(site)

    return build


def _build_operator(section: OperatorSection, key: str, site: AttentionSite) -> AttentionOperator:
    try:
        build = partial(OPERATORS[section.name], **section.options)
        return keep_heads_dense(build, section.dense_heads)(site)
    except ValueError as error:
        keys = " (MVIT.REL_POS_SPATIAL False MVIT.REL_POS_TEMPORAL False)"
        where = keys if "relative positions" in str(error) else ""
        raise ValueError(f"{key} (NAME {section.name}, block {site.block}): {error}{where}") from None


def _check_blocks(blocks: Sequence[int], depth: int, what: str, first: int = 0) -> None:
    if blocks and blocks[-1] >= depth:
        some = f"expects blocks {first} to {depth - 1}" if depth > first else "expects no blocks"
        raise ValueError(f"{what} {some} of a model of depth {depth}, got {list(blocks)}")


def attention_arguments(cfg: Config, axes: Sequence[Axis], attention_type: str, depth: int) -> dict[str, Any]:
    """Return `operators` and `skip` of a model.

    Raises ValueError where ATTENTION names an axis that the model does not attend along.
    """
    settings = cfg.attention
    for axis in Axis:
        sections, skipped = getattr(settings, axis.value), getattr(settings.skip, axis.value)
        used = [section.name for section in sections if section.name != "dense" or section.layers]
        asked = [f"ATTENTION.{axis.name} asks for {', '.join(used)}"] if used else []
        asked += [f"ATTENTION.SKIP.{axis.name} asks for blocks without attention"] if skipped else []
        if axis not in axes and asked:
            attends = f"attends along {' and '.join(a.name for a in axes)} alone (ATTENTION_TYPE {attention_type})"
            raise ValueError(
                f"{' and '.join(asked)}, but {cfg.model.model_name} "
                + (attends if axes else "has no attention that can be replaced")
            )
        _check_blocks(skipped, depth, f"ATTENTION.SKIP.{axis.name}", first=1)
        for section in sections:
            if without := sorted({block for block, _ in section.dense_heads} & {*skipped}):
                raise ValueError(
                    f"ATTENTION.{axis.name}: DENSE_HEADS names heads of blocks {without}, which "
                    f"ATTENTION.SKIP.{axis.name} leaves without attention"
                )
            if section.name != "dense" and (both := sorted({*section.layers} & {*skipped})):
                raise ValueError(
                    f"ATTENTION.{axis.name}: LAYERS of {section.name} and ATTENTION.SKIP.{axis.name} both name blocks "
                    f"{both}, which can't attend and skip attention; leave them out of one"
                )
    operators = {axis: bind_operators(getattr(settings, axis.value), depth, f"ATTENTION.{axis.name}") for axis in axes}
    skip = {
        axis: SkipSettings(blocks, settings.skip.phi, settings.skip.expansion)
        for axis in axes
        if (blocks := getattr(settings.skip, axis.value))
    }
    return {"operators": operators, "skip": skip}


def check_tokens(cfg: Config, stride: Sequence[int], joint: bool, key: str) -> None:
    """Raise ValueError where clips have more tokens than any machine attends over; `key` names the `stride`."""
    frames, crop = cfg.data.num_frames, cfg.data.train_crop_size
    num_tokens, most = frames * crop**2 // math.prod(stride), _LONGEST_SEQUENCE if joint else _MOST_TOKENS
    if num_tokens > most:
        raise ValueError(
            f"DATA.NUM_FRAMES {frames}, DATA.TRAIN_CROP_SIZE {crop} and {key} {list(stride)} make {num_tokens} tokens "
            f"of a clip; ATTENTION_TYPE {'joint' if joint else 'divided'} expects at most {most}"
        )


def given_settings(settings: Section, names: Sequence[str]) -> dict[str, Any]:
    """Return the settings of these names that are given, by name."""
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def probe_arguments(cfg: Config, width: int | None = None) -> dict[str, Any]:
    """Return the arguments of a model for an attentive probe, none for a linear one.

    Raises ValueError where PROBE.HEADS do not divide the `width` of the tokens.
    """
    if cfg.probe.type == "linear":
        return {}
    if width is not None and width % cfg.probe.heads:
        raise ValueError(f"PROBE.HEADS expects a divisor of the model's width {width}, got {cfg.probe.heads}")
    return {"probe_depth": cfg.probe.depth, "probe_heads": cfg.probe.heads}


def refuse_attention_settings(cfg: Config) -> None:
    """Raise ValueError where ATTENTION, MODEL.ACT_CHECKPOINT, MODEL.FREEZE or PROBE asks for what our blocks have."""
    attention_arguments(cfg, (), "", 0)
    if cfg.model.freeze != "none" or cfg.probe.type != "linear":
        raise ValueError(
            f"MODEL.FREEZE expects none and PROBE.TYPE linear for {cfg.model.model_name}, whose tokens can't be probed"
        )
    if cfg.model.act_checkpoint:
        raise ValueError(f"MODEL.ACT_CHECKPOINT expects False for {cfg.model.model_name}, which has no such blocks")


def read_description(text: str, source: str = "the embedded cfg") -> Config:
    """Return the settings of a model and its data from a config's YAML text, as checkpoints embed it.

    How the weights were trained is left out. Raises ConfigError with all problems of the text, which `source` names.
    """
    return parse_config(text, source, without=_OF_TRAINING)
