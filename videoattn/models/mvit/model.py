"""MViT: a video transformer whose blocks pool the token grid as they widen, attending jointly or divided.

Source: MViT (Fan et al., ICCV 2021), arXiv 2104.11227; MViTv2 (Li et al., CVPR 2022), arXiv 2112.01526; the blocks of
a divided model follow TimeSformer's.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid, unfold
from videoattn.layers.attention import BuildOperator
from videoattn.layers.blocks import check_clip, run_blocks
from videoattn.layers.drop_path import DropPath
from videoattn.layers.mlp import Mlp
from videoattn.layers.patch_embed import TubeletEmbed
from videoattn.layers.pooled_attention import Pooling, RelativePositions, Size3
from videoattn.layers.pooler import AttentivePooler
from videoattn.layers.position import sincos_embeddings
from videoattn.layers.skip import SkipSettings
from videoattn.models.mvit.mixers import build_pooled_mixer
from videoattn.models.mvit.plan import AttentionType, MViTBlockPlan, MViTShape, plan_blocks
from videoattn.operators import DenseAttention

Positions = Literal["separable", "none"]
Init = Literal["published", "from_scratch"]

MVIT_AXES: dict[str, tuple[Axis, ...]] = {"joint": (Axis.JOINT,), "divided": (Axis.TIME, Axis.SPACE)}


class PooledShortcut(nn.Module):
    """The residual path around pooling attention: a projection where attention widens, max-pooling where it pools."""

    def __init__(self, dim: int, dim_out: int, grid: TokenGrid, pooling: Pooling) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.stride = pooling.stride
        self.kernel = tuple(s + 1 if s > 1 else 1 for s in pooling.stride)

    def forward(self, x: Tensor, mixer: nn.Module) -> Tensor:
        """Map [B, N, C] to [B, N', C_out]; a projection is applied to the stream after the norm of `mixer`."""
        if self.proj is not None:
            x = self.proj(mixer.norm(x))  # type: ignore[operator]
        if self.stride == (1, 1, 1):
            return x
        grid = self.grid
        volume = x[:, grid.prefix :].unflatten(1, (grid.t, grid.h, grid.w)).permute(0, 4, 1, 2, 3)
        padding = [k // 2 for k in self.kernel]
        if self.kernel[0] == 1:  # frame by frame, which is many times faster on a CPU
            frames = volume.transpose(1, 2)
            pooled = F.max_pool2d(frames.flatten(0, 1), self.kernel[1:], self.stride[1:], padding[1:])
            patches = pooled.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2]).flatten(1, 3)
        else:
            pooled = F.max_pool3d(volume, self.kernel, self.stride, padding)
            patches = pooled.permute(0, 2, 3, 4, 1).flatten(1, 3)
        return torch.cat([x[:, : grid.prefix], patches], dim=1) if grid.prefix else patches


class MViTBlock(nn.Module):
    """Attention along time first where the model is divided, then pooling attention and an MLP, both pre-norm.

    The temporal update passes through one more projection, as in TimeSformer.
    """

    def __init__(
        self, plan: MViTBlockPlan, operators: Mapping[Axis, BuildOperator], skip: Mapping[Axis, SkipSettings],
        before: MViTBlockPlan | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.plan = plan
        self.axes = tuple(operators)
        self.mixers = nn.ModuleDict(
            {axis.value: build_pooled_mixer(plan, axis, operator, skip, before) for axis, operator in operators.items()}
        )
        if Axis.TIME in self.axes:
            self.temporal_fc = nn.Linear(plan.dim, plan.dim)
        self.shortcut = PooledShortcut(plan.dim, plan.attention_dim, plan.grid, plan.pool_q)
        self.norm_mlp = nn.LayerNorm(plan.attention_dim, eps=1e-6)
        self.mlp = Mlp(plan.attention_dim, plan.mlp_dim, plan.dim_out)
        self.widen = nn.Linear(plan.attention_dim, plan.dim_out) if plan.attention_dim != plan.dim_out else None
        self.drop_path = DropPath(plan.drop_path_rate)

    def forward(self, x: Tensor, carried: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the stream [B, N, C] and what the slots of the block before carried, by axis, to those of this block."""
        carried_next = {}
        for axis in self.axes:
            name = axis.value
            update, following = self.mixers[name](x, carried.get(name))
            if following is not None:
                carried_next[name] = following
            update = self.drop_path(update)
            if axis is Axis.TIME:
                x = x + unfold(self.temporal_fc(update), self.plan.grid, axis)
            else:
                x = self.shortcut(x, self.mixers[name]) + unfold(update, self.plan.grid_out, axis)
        normed = self.norm_mlp(x)
        return (x if self.widen is None else self.widen(normed)) + self.drop_path(self.mlp(normed)), carried_next


class MViT(nn.Module):
    """A multiscale video transformer for clips [B, 3, T, H, W] of exactly `clip_size`; returns logits [B, num_classes].

    `shape` says how blocks widen and pool. `operators` gives the attention operator along each axis of
    `attention_type`, as callables that accept an `AttentionSite`; axes left out are dense. `skip` names the blocks that
    skip attention along an axis (SkipAt). Without `class_token` the head sees the mean of all tokens. With
    `probe_depth`, the head classifies what an attentive probe of that many blocks and `probe_heads` heads pools from
    all tokens. Raises ValueError where strides do not divide the clip, or something cannot be built on its grid.

    `attention_type="divided"` attends along time, on the grid before pooling, then pools and attends within frames.
    Differs: biases start at 0, as in torchvision, and not at 0.02 as in SlowFast.
    """

    def __init__(
        self,
        clip_size: Size3 = (16, 224, 224),
        shape: MViTShape | None = None,
        num_classes: int = 400,
        attention_type: AttentionType = "joint",
        operators: Mapping[Axis, BuildOperator] | None = None,
        skip: Mapping[Axis, SkipSettings] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        patch_kernel: Size3 = (3, 7, 7),
        patch_stride: Size3 = (2, 4, 4),
        patch_padding: Size3 = (1, 3, 3),
        class_token: bool = True,
        positions: Positions = "separable",
        rel_pos_spatial: bool = False,
        rel_pos_temporal: bool = False,
        rel_pos_zero_init: bool = False,
        residual_pooling: bool = False,
        dropout: float = 0.5,
        drop_path_rate: float = 0.1,
        act_checkpoint: bool = False,
        init: Init = "published",
        probe_depth: int | None = None,
        probe_heads: int = 16,
    ) -> None:
        super().__init__()
        shape = shape or MViTShape()
        for name, value, choices in (
            ("init", init, get_args(Init)),
            ("attention_type", attention_type, tuple(MVIT_AXES)),
            ("positions", positions, get_args(Positions)),
        ):
            if value not in choices:
                raise ValueError(f"{name} expects one of {', '.join(choices)}, got {value!r}")
        self.clip_size = clip_size
        self.shape = shape
        self.num_classes = num_classes
        self.attention_type = attention_type
        self.act_checkpoint = act_checkpoint
        self.rel_pos_zero_init = rel_pos_zero_init
        self.patch_embed = TubeletEmbed(shape.embed_dim, clip_size, patch_kernel, patch_stride, patch_padding)
        self.grid = replace(self.patch_embed.grid, prefix=int(class_token))
        chosen = {axis: (operators or {}).get(axis, DenseAttention) for axis in MVIT_AXES[attention_type]}
        plans = plan_blocks(
            shape, self.grid, attention_type, rel_pos="t" * rel_pos_temporal + "hw" * rel_pos_spatial,
            mlp_ratio=mlp_ratio, drop_path_rate=drop_path_rate, qkv_bias=qkv_bias, residual_pooling=residual_pooling,
        )  # fmt: skip

        dim = shape.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        absolute = positions == "separable"
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, self.grid.h * self.grid.w, dim)) if absolute else None
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, self.grid.t, dim)) if absolute else None
        self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, dim)) if absolute and class_token else None
        before = [None, *plans[:-1]]
        self.blocks = nn.ModuleList(
            MViTBlock(plan, chosen, skip or {}, other) for plan, other in zip(plans, before, strict=True)
        )
        self.norm = nn.LayerNorm(plans[-1].dim_out, eps=1e-6)
        self.pooler = None if probe_depth is None else AttentivePooler(plans[-1].dim_out, probe_heads, probe_depth)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(plans[-1].dim_out, num_classes)
        self.reset_parameters(init)

    def reset_parameters(self, init: Init = "published") -> None:
        """Initialise all parameters.

        "published": normal weights of deviation 0.02; in a divided model every block's temporal_fc is zero, so that
        attention along time has no effect at the start. "from_scratch": Xavier weights, sines and cosines in the
        position embeddings, and no zeros in temporal_fc.
        """
        for name, parameter in self.named_parameters(recurse=False):
            if init == "published" or not name.startswith("pos_embed"):
                nn.init.trunc_normal_(parameter, std=0.02)
        if self.pooler is not None:
            nn.init.trunc_normal_(self.pooler.query, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if init == "from_scratch":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, RelativePositions):
                module.reset_parameters(zero=self.rel_pos_zero_init)
        for module in self.modules():  # after the loop above, which would fill them again
            if isinstance(module, MViTBlock) and Axis.TIME in module.axes and init == "published":
                nn.init.zeros_(module.temporal_fc.weight)
        if init == "from_scratch" and self.pos_embed_spatial is not None and self.pos_embed_temporal is not None:
            space, time = sincos_embeddings(self.grid, self.shape.embed_dim)
            with torch.no_grad():
                self.pos_embed_spatial.copy_(space)
                self.pos_embed_temporal.copy_(time)

    def embed(self, clip: Tensor) -> Tensor:
        """Map a clip [B, 3, T, H, W] to a token stream [B, N, C]."""
        x = self.patch_embed(clip)
        if self.pos_embed_spatial is not None and self.pos_embed_temporal is not None:
            x = x + (self.pos_embed_temporal[:, :, None] + self.pos_embed_spatial[:, None]).flatten(1, 2)
        if self.cls_token is None:
            return x
        cls_token = self.cls_token if self.pos_embed_class is None else self.cls_token + self.pos_embed_class
        return torch.cat([cls_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)

    def _run(self, clip: Tensor) -> Tensor:
        check_clip(clip, self.clip_size)
        return run_blocks(self.blocks, self.embed(clip), self.act_checkpoint and self.training)[-1]

    def forward_tokens(self, clip: Tensor) -> Tensor:
        """Return the normalised tokens [B, N, C] of the last, pooled grid, after the class token if there is one."""
        return self.norm(self._run(clip))

    def forward_features(self, clip: Tensor) -> Tensor:
        """Return the features [B, C] that the head classifies.

        They are the normalised class token, the mean of the normalised tokens, or what the probe pools from all tokens.
        """
        if self.pooler is not None:
            return self.pooler(self.forward_tokens(clip))
        if self.cls_token is None:
            return self.forward_tokens(clip).mean(dim=1)
        return self.norm(self._run(clip)[:, 0])

    def forward(self, clip: Tensor) -> Tensor:
        return self.head(self.dropout(self.forward_features(clip)))


def _strides(depth: int, blocks: tuple[int, ...]) -> dict[int, Size3]:
    """MViTv2's query strides: 2 in space in `blocks`, and 1, with a kernel all the same, elsewhere."""
    return {i: (1, 2, 2) if i in blocks else (1, 1, 1) for i in range(depth)}


def _mvit_v1(depth: int, blocks: tuple[int, ...], pool_kernel: Size3 | None, **arguments: Any) -> dict[str, Any]:
    doubling = dict.fromkeys(blocks, 2)
    shape = MViTShape(
        depth=depth, dim_mul=doubling, head_mul=doubling, pool_q_stride=dict.fromkeys(blocks, (1, 2, 2)),
        pool_kv_stride_adaptive=(1, 8, 8), pool_kernel=pool_kernel,
    )  # fmt: skip
    return {"shape": shape, **arguments}


def _mvit_v2(
    depth: int, blocks: tuple[int, ...], embed_dim: int = 96, num_heads: int = 1, **arguments: Any
) -> dict[str, Any]:
    doubling = dict.fromkeys(blocks, 2)
    shape = MViTShape(
        embed_dim=embed_dim, depth=depth, num_heads=num_heads, dim_mul=doubling, head_mul=doubling,
        dim_mul_in_attention=True, pool_q_stride=_strides(depth, blocks), pool_kv_stride_adaptive=(1, 8, 8),
        pool_kernel=(3, 3, 3),
    )  # fmt: skip
    relative = {"positions": "none", "rel_pos_spatial": True, "rel_pos_temporal": True, "residual_pooling": True}
    return {"shape": shape, **relative, **arguments}


# The published sizes. Two of them are called 32x3: SlowFast's of depth 24, and pytorchvideo's, which is 16x4 on longer
# clips.
MVIT_SIZES: dict[str, dict[str, Any]] = {
    "mvit_v1_b": _mvit_v1(16, (1, 3, 14), (3, 3, 3), drop_path_rate=0.2),
    "mvit_v1_b_32x3": _mvit_v1(24, (2, 5, 21), None, clip_size=(32, 224, 224), drop_path_rate=0.3),
    "mvit_v1_b_32x3_depth16": _mvit_v1(16, (1, 3, 14), (3, 3, 3), clip_size=(32, 224, 224), drop_path_rate=0.2),
    "mvit_v2_s": _mvit_v2(16, (1, 3, 14), drop_path_rate=0.2),
    "mvit_v2_b": _mvit_v2(24, (2, 5, 21), clip_size=(32, 224, 224), drop_path_rate=0.3),
    "mvit_v2_l": _mvit_v2(48, (2, 8, 44), 144, 2, clip_size=(40, 312, 312), drop_path_rate=0.75),
}

mvit_v1_b = partial(MViT, **MVIT_SIZES["mvit_v1_b"])
mvit_v1_b_32x3 = partial(MViT, **MVIT_SIZES["mvit_v1_b_32x3"])
mvit_v1_b_32x3_depth16 = partial(MViT, **MVIT_SIZES["mvit_v1_b_32x3_depth16"])
mvit_v2_s = partial(MViT, **MVIT_SIZES["mvit_v2_s"])
mvit_v2_b = partial(MViT, **MVIT_SIZES["mvit_v2_b"])
mvit_v2_l = partial(MViT, **MVIT_SIZES["mvit_v2_l"])
