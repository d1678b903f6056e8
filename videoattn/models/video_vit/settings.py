"""A video ViT's arguments, read from a config."""

from collections.abc import Mapping
from typing import Any

from videoattn.config import Config
from videoattn.grid import Axis
from videoattn.models.settings import attention_arguments, check_tokens, given_settings, probe_arguments

_SIZES = ("patch_size", "tubelet", "embed_dim", "depth", "num_heads", "mlp_dim", "bias", "positions", "head",
          "probe_depth", "probe_heads", "probe_levels", "norm_eps", "head_eps")  # fmt: skip


def read_video_vit(named_size: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Return the constructor's arguments besides clip size and classes, from a config and the model's named size.

    Raises ValueError naming the key at fault.
    """
    settings = cfg.video_vit
    sizes = given_settings(settings, _SIZES)
    probe = _probe_arguments(cfg, sizes, named_size)
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
    sizes |= probe
    return {
        **sizes,
        "num_segments": cfg.data.num_segments,
        **attention_arguments(cfg, (Axis.JOINT,), "joint", depth),
        "drop_path_rate": settings.drop_path_rate,
        "init": settings.init,
        "act_checkpoint": cfg.model.act_checkpoint,
    }


def _probe_arguments(cfg: Config, sizes: Mapping[str, Any], named_size: Mapping[str, Any]) -> dict[str, Any]:
    """Return the head of a model with a probe. Raises ValueError where the model's own settings contradict PROBE's."""
    settings, probe = cfg.video_vit, cfg.probe
    if probe.type == "attentive":
        given = [name for name in ("probe_depth", "probe_heads") if name in sizes]
        if settings.head not in (None, "attentive") or given:
            key = f"VIDEO_VIT.{(given or ['head'])[0].upper()}"
            raise ValueError(f"{key} can't stand beside PROBE.TYPE attentive, whose PROBE.DEPTH and PROBE.HEADS apply")
        width = sizes.get("embed_dim", named_size["embed_dim"])
        return {"head": "attentive", **probe_arguments(cfg, width)}
    if cfg.model.freeze == "none":
        return {}
    if settings.head == "attentive":
        raise ValueError("VIDEO_VIT.HEAD attentive with MODEL.FREEZE encoder expects PROBE.TYPE attentive, got linear")
    return {"head": "mean_tokens"} if settings.head is None and named_size["head"] == "attentive" else {}
