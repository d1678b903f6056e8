"""A video ViT's arguments, read from a config."""

from collections.abc import Mapping
from typing import Any

from videoattn.config import Config
from videoattn.grid import Axis
from videoattn.models.settings import attention_arguments, check_tokens, given_settings

_SIZES = ("patch_size", "tubelet", "embed_dim", "depth", "num_heads", "mlp_dim", "bias", "positions", "head",
          "probe_depth", "probe_heads", "probe_levels", "norm_eps", "head_eps")  # fmt: skip


def read_video_vit(named_size: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Return the constructor's arguments besides clip size and classes, from a config and the model's named size.

    Raises ValueError naming the key at fault.
    """
    settings = cfg.video_vit
    sizes = given_settings(settings, _SIZES)
    size = {"patch_size": 16, "tubelet": 2, **named_size, **sizes}
    patch, width, heads, depth = (size[name] for name in ("patch_size", "embed_dim", "num_heads", "depth"))
    if width % heads:
        raise ValueError(f"VIDEO_VIT.EMBED_DIM expects a multiple of VIDEO_VIT.NUM_HEADS, got {width} and {heads}")
    if size["head"] != "attentive" and "probe_levels" in sizes:
        raise ValueError(f"VIDEO_VIT.PROBE_LEVELS expects VIDEO_VIT.HEAD attentive, got {size['head']}")
    check_tokens(cfg, (size["tubelet"], patch, patch), True, "VIDEO_VIT.TUBELET and PATCH_SIZE")
    if "embed_dim" in sizes and "mlp_dim" not in sizes:
        sizes["mlp_dim"] = 4 * width
    if depth != named_size["depth"]:
        sizes["levels"] = (depth - 1,)
    if size["head"] == "class_token":
        sizes["class_token"] = True
    return {
        **sizes,
        "num_segments": cfg.data.num_segments,
        **attention_arguments(cfg, (Axis.JOINT,), "joint", depth),
        "drop_path_rate": settings.drop_path_rate,
        "init": settings.init,
        "act_checkpoint": cfg.model.act_checkpoint,
    }
