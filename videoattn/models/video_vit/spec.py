"""The named video ViTs and their rules."""

from functools import partial
from typing import Any

from videoattn.models.spec import ModelSpec, decay_all
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.video_vit.names import VIDEO_VIT_FAMILIES, find_video_vit_family, from_ours
from videoattn.models.video_vit.settings import read_video_vit
from videoattn.models.video_vit.transformers_form import to_transformers
from videoattn.models.video_vit.weights import LEVELS, describe_video_vit, fit_video_vit
from videoattn.models.weights.adapter import WeightAdapter

ADAPTER = WeightAdapter(
    held="a video ViT",
    families=VIDEO_VIT_FAMILIES,
    find_family=find_video_vit_family,
    fit=fit_video_vit,
    arguments=describe_video_vit,
    from_ours=from_ours,
    to_transformers=to_transformers,
)
_VIDEOMAE = {"bias": "qv", "positions": "sincos_1d", "head": "mean"}
_VJEPA2 = {"positions": "rope_tiled", "head": "attentive"}
_VJEPA2_1 = {"positions": "rope_interleaved", "rotary_base": 16, "modality": True, "head": "attentive"}


def _size(embed_dim: int, depth: int, num_heads: int, mlp_dim: int | None = None) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_dim": mlp_dim or 4 * embed_dim}


_S, _B, _L, _H = _size(384, 12, 6), _size(768, 12, 12), _size(1024, 24, 16), _size(1280, 32, 16)
_GIANT, _GIGANTIC = _size(1408, 40, 22, 6144), _size(1664, 48, 26, 8192)

VIDEO_VIT_SIZES: dict[str, dict[str, Any]] = {
    "videomae_small": {**_S, **_VIDEOMAE},
    "videomae_base": {**_B, **_VIDEOMAE},
    "videomae_large": {**_L, **_VIDEOMAE},
    "videomae_huge": {**_H, **_VIDEOMAE},
    "vjepa2_large": {**_L, **_VJEPA2, "clip_size": (64, 256, 256)},
    "vjepa2_huge": {**_H, **_VJEPA2, "clip_size": (64, 256, 256)},
    "vjepa2_giant": {**_GIANT, **_VJEPA2, "clip_size": (64, 256, 256)},
    "vjepa2_giant_384": {**_GIANT, **_VJEPA2, "clip_size": (64, 384, 384)},
    "vjepa2_1_base": {**_B, **_VJEPA2_1, "levels": LEVELS[12], "clip_size": (64, 384, 384)},
    "vjepa2_1_large": {**_L, **_VJEPA2_1, "levels": LEVELS[24], "clip_size": (64, 384, 384)},
    "vjepa2_1_giant": {**_GIANT, **_VJEPA2_1, "levels": LEVELS[40], "clip_size": (64, 384, 384)},
    "vjepa2_1_gigantic": {**_GIGANTIC, **_VJEPA2_1, "levels": LEVELS[48], "clip_size": (64, 384, 384)},
}


def layer_of(model: VideoViT, name: str) -> int:
    """Return the number of layers above a parameter: 0 for the head with its norm or probe, the most for embeddings."""
    part, _, rest = name.partition(".")
    if part == "blocks":
        return len(model.blocks) - int(rest.partition(".")[0])
    return 0 if part in ("norms", "fc_norm", "pooler", "head") else len(model.blocks) + 1


VIDEO_VIT_SPECS = {
    name: ModelSpec(
        model=VideoViT,
        size=size,
        clip_size=size.get("clip_size", (16, 224, 224)),
        section="video_vit",
        arguments=partial(read_video_vit, size),
        aggregate="probabilities",
        no_weight_decay=decay_all,
        layer_of=layer_of,
        adapter=ADAPTER,
    )
    for name, size in VIDEO_VIT_SIZES.items()
}
