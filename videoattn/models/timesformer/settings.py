"""A TimeSformer's arguments, read from a config."""

from collections.abc import Mapping
from typing import Any

from videoattn.config import Config
from videoattn.models.settings import attention_arguments, check_tokens, given_settings, probe_arguments
from videoattn.models.timesformer.model import AXES


def read_timesformer(named_size: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Return the constructor's arguments besides clip size and classes, from a config and the model's named size.

    Raises ValueError naming the key at fault.
    """
    settings, crop = cfg.timesformer, cfg.data.train_crop_size
    sizes = given_settings(settings, ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"))
    size = {"patch_size": 16, **named_size, **sizes}
    patch, width, heads, depth = (size[name] for name in ("patch_size", "embed_dim", "num_heads", "depth"))
    if crop % patch:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE expects a multiple of TIMESFORMER.PATCH_SIZE, got {crop} and patches of {patch}"
        )
    if width % heads:
        raise ValueError(
            f"TIMESFORMER.EMBED_DIM expects a multiple of TIMESFORMER.NUM_HEADS, got {width} and {heads} heads"
        )
    check_tokens(cfg, (1, patch, patch), settings.attention_type == "joint_space_time", "TIMESFORMER.PATCH_SIZE")
    return {
        **sizes,
        "attention_type": settings.attention_type,
        **attention_arguments(cfg, AXES[settings.attention_type], settings.attention_type, depth),
        "drop_path_rate": settings.drop_path_rate,
        "drop_path_unit": settings.drop_path_unit,
        "init": settings.init,
        "act_checkpoint": cfg.model.act_checkpoint,
        **probe_arguments(cfg, width),
    }
