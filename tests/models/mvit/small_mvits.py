"""Small MViTs on grids whose t, h, w all differ, the same in torchvision, and with every tensor random."""

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from tests.models.small_models import randomize
from videoattn.compat import import_torchvision
from videoattn.grid import Axis
from videoattn.models import MViT, MViTShape
from videoattn.operators import OPERATORS

CLIP_SIZE = (6, 32, 40)
SQUARE = (6, 32, 32)
V1 = MViTShape(
    embed_dim=8, depth=4, num_heads=1, dim_mul={1: 2, 3: 2}, head_mul={1: 2, 3: 2},
    pool_q_stride={1: (1, 2, 2), 3: (1, 2, 2)}, pool_kv_stride_adaptive=(1, 4, 4), pool_kernel=(3, 3, 3),
)  # fmt: skip
V2 = replace(
    V1, dim_mul_in_attention=True, pool_q_stride={i: (1, 2, 2) if i in (1, 3) else (1, 1, 1) for i in range(4)}
)
SMALL: dict[str, dict[str, Any]] = {
    "v1": {"shape": V1},
    "v2": {
        "shape": V2, "positions": "none", "rel_pos_spatial": True, "rel_pos_temporal": True, "residual_pooling": True,
    },
    "v1, tall kernels": {"shape": replace(V1, pool_kernel=None)},
    "no class token": {"shape": V1, "class_token": False},
}  # fmt: skip


def small_mvit(kind: str = "v1", seed: int = 0, **changes: Any) -> MViT:
    shared = {"clip_size": CLIP_SIZE, "num_classes": 5, "drop_path_rate": 0.0}
    model = MViT(**{**shared, **SMALL[kind], **changes})
    randomize(model, seed)
    return model


def mvit_with(name: str, kind: str = "v1", axis: Axis = Axis.JOINT, **changes: Any) -> MViT:
    """One whose slots along `axis` hold an operator; where it refuses them, as test_support.py knows, the test ends."""
    try:
        return small_mvit(kind, operators={axis: OPERATORS[name]}, **changes)
    except ValueError as refusal:
        pytest.skip(str(refusal))


def torchvisions(model: MViT, seed: int = 7) -> nn.Module:
    """torchvision's MViT of the same shape, with random weights of its own."""
    import_torchvision()
    from torchvision.models.video import mvit

    v2 = model.shape.dim_mul_in_attention
    blocks = [
        mvit.MSBlockConfig(
            num_heads=plan.num_heads,
            input_channels=plan.dim,
            output_channels=plan.dim_out,
            kernel_q=[] if plan.pool_q.is_identity else list(plan.pool_q.kernel),
            kernel_kv=[] if plan.pool_kv.is_identity else list(plan.pool_kv.kernel),
            stride_q=[] if plan.pool_q.is_identity else list(plan.pool_q.stride),
            stride_kv=[] if plan.pool_kv.is_identity else list(plan.pool_kv.stride),
        )
        for plan in (block.plan for block in model.blocks)
    ]
    frames, height, width = model.clip_size
    theirs = mvit.MViT(
        spatial_size=(height, width), temporal_size=frames, block_setting=blocks, residual_pool=v2,
        residual_with_cls_embed=False, rel_pos_embed=v2, proj_after_attn=v2, num_classes=model.num_classes,
    )  # fmt: skip
    return randomize(theirs, seed)
