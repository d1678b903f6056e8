"""An MViT's arguments, read from a config."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from videoattn.config import Config
from videoattn.config.sections import MViT as MViTSection
from videoattn.models.mvit.model import MVIT_AXES
from videoattn.models.mvit.plan import MViTShape
from videoattn.models.settings import attention_arguments, check_tokens, given_settings, probe_arguments


def read_mvit(size: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Return the constructor's arguments besides clip size and classes, from a config and the model's named size.

    Raises ValueError naming the key at fault.
    """
    settings = cfg.mvit
    check_tokens(cfg, settings.patch_stride or (2, 4, 4), settings.attention_type == "joint", "MVIT.PATCH_STRIDE")
    shape = mvit_shape(settings, size.get("shape", MViTShape()))
    plain = ("mlp_ratio", "qkv_bias", "patch_kernel", "patch_stride", "patch_padding", "rel_pos_spatial",
             "rel_pos_temporal", "rel_pos_zero_init", "residual_pooling")  # fmt: skip
    positions = size.get("positions", "none" if settings.use_abs_pos is False else "separable")
    if settings.use_abs_pos is not None:
        positions = "separable" if settings.use_abs_pos else "none"
    # published sizes have them; SlowFast's default, which the plain "mvit" follows, is False
    separable = bool(size) if settings.sep_pos_embed is None else settings.sep_pos_embed
    if positions == "separable" and not separable:
        origin = "" if size else f"; {cfg.model.model_name} is SlowFast's default, whose own is False"
        raise ValueError(
            f"MVIT.SEP_POS_EMBED expects True: one embedding per place and time together is not supported{origin}"
        )
    return {
        "shape": shape,
        "attention_type": settings.attention_type,
        **attention_arguments(cfg, MVIT_AXES[settings.attention_type], settings.attention_type, shape.depth),
        **given_settings(settings, plain),
        "positions": positions,
        "class_token": settings.cls_embed_on is not False,
        "dropout": cfg.model.dropout_rate,
        "init": settings.init,
        "act_checkpoint": cfg.model.act_checkpoint,
        **probe_arguments(cfg),
        **({} if settings.droppath_rate is None else {"drop_path_rate": settings.droppath_rate}),
    }


def mvit_shape(settings: MViTSection, base: MViTShape) -> MViTShape:
    """Return `base` with what MVIT.* says otherwise. Raises ValueError naming the key at fault."""
    changes = given_settings(settings, ("embed_dim", "num_heads", "depth", "pool_kv_stride_adaptive"))
    changes |= {
        name: {block: factor for block, factor in pairs}
        for name, pairs in given_settings(settings, ("dim_mul", "head_mul")).items()
    }
    changes |= {
        name: {block: tuple(stride) for block, *stride in strides}
        for name, strides in given_settings(settings, ("pool_q_stride", "pool_kv_stride")).items()
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
