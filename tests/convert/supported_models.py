"""Small models of every supported type, and an operator with a parameter to replace their attention with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import videoattn
from tests.models.small_models import CLIP_SIZE
from videoattn.compat import import_timm
from videoattn.grid import TokenGrid
from videoattn.models import TimeSformer
from videoattn.operators import AttentionOperator, AttentionSite

import_timm()  # and with it torchvision, which transformers' models import
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

GRID = TokenGrid(4, 2, 3)  # of CLIP_SIZE in patches of 8
IMAGE, CLIP_IN_PAIRS = (3, 16, 24), (8, 3, 16, 24)
SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "num_labels": 5,
}  # fmt: skip


class GainedAttention(AttentionOperator):
    """Dense attention times a learned gain for each head: an operator with a parameter."""

    def __init__(self, site: AttentionSite, start: float = 1.0) -> None:
        super().__init__(site)
        self.gain = nn.Parameter(torch.full((site.num_heads,), start))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        gain = self.gain.repeat(q.shape[1] // self.site.num_heads)
        return nn.functional.scaled_dot_product_attention(q, k, v) * gain[:, None, None]


def timm_vit(**changes: Any) -> nn.Module:
    """With every token and norm that an image model may have; images of 16 x 24 make 2 x 3 patches."""
    from timm.models.vision_transformer import VisionTransformer

    options = {"reg_tokens": 2, "qk_norm": True, **changes}
    return VisionTransformer(
        img_size=(16, 24), patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, **options
    )


def timesformer(attention_type: str = "divided_space_time", **changes: Any) -> nn.Module:
    """Their model takes any height when its positions number h·w and `image_size` is the width."""
    options = {**SIZES, **changes}
    config = transformers.TimesformerConfig(
        image_size=24, patch_size=8, num_frames=4, attention_type=attention_type, **options
    )
    model = transformers.TimesformerForVideoClassification(config)
    model.timesformer.embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 1 + 2 * 3, 24))
    return model


def vivit(**changes: Any) -> nn.Module:
    """Older releases take square images alone; tubelets that are not make h and w differ."""
    options = {**SIZES, **changes}
    config = transformers.VivitConfig(image_size=24, num_frames=8, tubelet_size=[2, 8, 12], **options)
    return transformers.VivitForVideoClassification(config)


def videomae_config(**changes: Any) -> Any:
    options = {**SIZES, **changes}
    return transformers.VideoMAEConfig(image_size=[16, 24], num_frames=8, tubelet_size=2, patch_size=8, **options)


def videomae(**changes: Any) -> nn.Module:
    return transformers.VideoMAEForVideoClassification(videomae_config(**changes))


def vjepa2(**changes: Any) -> nn.Module:
    """Theirs is right on squares alone."""
    options = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
    config = transformers.VJEPA2Config(
        **options, crop_size=24, patch_size=8, frames_per_clip=8, mlp_ratio=4.0, num_pooler_layers=2,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, **changes,
    )  # fmt: skip
    return transformers.VJEPA2ForVideoClassification(config)


def ours(attention_type: str = "divided_space_time") -> nn.Module:
    return TimeSformer(
        CLIP_SIZE, 8, embed_dim=24, depth=2, num_heads=3, num_classes=5, attention_type=attention_type,
        drop_path_rate=0.0,
    )  # fmt: skip


TYPES = {"divided": ("space", "time"), "joint": ("joint",), "space": ("space",)}
NAMES = {"divided": "divided_space_time", "joint": "joint_space_time", "space": "space_only"}
# how each model is made, the axes along which it attends, and the shape of its inputs
Case = tuple[Callable[[], nn.Module], tuple[str, ...], tuple[int, ...]]
CASES: dict[str, Case] = {
    "timm": (timm_vit, ("space",), IMAGE),
    "vivit": (vivit, ("joint",), (8, 3, 24, 24)),
    "videomae": (videomae, ("joint",), CLIP_IN_PAIRS),
    "vjepa2": (vjepa2, ("joint",), (8, 3, 24, 24)),
    **{f"hf_{kind}": (partial(timesformer, NAMES[kind]), axes, (4, *IMAGE)) for kind, axes in TYPES.items()},
    **{f"ours_{kind}": (partial(ours, NAMES[kind]), axes, (3, *CLIP_SIZE)) for kind, axes in TYPES.items()},
}


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    result = model(inputs)
    return result if isinstance(result, Tensor) else result.logits


def replace(model: nn.Module, axes: tuple[str, ...], operator: Any, **options: Any) -> Any:
    return videoattn.replace_attention(model, **dict.fromkeys(axes, operator), verbose=False, **options)
