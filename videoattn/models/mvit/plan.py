"""The plan of an MViT: one record for each block, worked out from a few numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from videoattn.grid import TokenGrid
from videoattn.layers.pooled_attention import UNPOOLED, Pooling, Size3

AttentionType = Literal["joint", "divided"]


@dataclass(frozen=True)
class MViTBlockPlan:
    """All that distinguishes a block: its place, its grid, its widths, its pooling and its switches.

    `dim` channels come in, `attention_dim` leave attention, `dim_out` leave the block; the MLP is `mlp_dim` wide.
    `table_lengths` holds the lengths of the tables of relative positions, by axis letter, that the block has.
    """

    block: int
    grid: TokenGrid
    dim: int
    attention_dim: int
    dim_out: int
    num_heads: int
    pool_q: Pooling
    pool_kv: Pooling
    table_lengths: Mapping[str, int]
    mlp_dim: int
    drop_path_rate: float
    qkv_bias: bool
    residual_pooling: bool

    @property
    def head_dim(self) -> int:
        return self.attention_dim // self.num_heads

    @property
    def grid_out(self) -> TokenGrid:
        return self.pool_q.apply_to(self.grid)


@dataclass(frozen=True)
class MViTShape:
    """The numbers that tell MViTs apart; mappings are from a block's index to what changes there.

    Width and heads grow by `dim_mul` and `head_mul`: in that block's attention if `dim_mul_in_attention` (MViTv2), else
    in the MLP of the block before (MViTv1). Queries of the blocks in `pool_q_stride` are pooled. Keys and values are
    pooled by `pool_kv_stride_adaptive` in block 0, which shrinks as queries are pooled, or by `pool_kv_stride`; both
    may be given where they mean the same. Without `pool_kernel`, a pooling's kernel is one more than its stride.
    """

    embed_dim: int = 96
    depth: int = 16
    num_heads: int = 1
    dim_mul: Mapping[int, float] = field(default_factory=dict)
    head_mul: Mapping[int, float] = field(default_factory=dict)
    dim_mul_in_attention: bool = False
    pool_q_stride: Mapping[int, Size3] = field(default_factory=dict)
    pool_kv_stride: Mapping[int, Size3] = field(default_factory=dict)
    pool_kv_stride_adaptive: Size3 | None = None
    pool_kernel: Size3 | None = None

    def __post_init__(self) -> None:
        for name in ("dim_mul", "head_mul", "pool_q_stride", "pool_kv_stride"):
            beyond = [block for block in getattr(self, name) if not 0 <= block < self.depth]
            if beyond:
                raise ValueError(
                    f"{name.upper()} expects blocks 0 to {self.depth - 1} of a model of DEPTH {self.depth}, "
                    f"got {beyond}"
                )
        meant = self.kv_strides()
        if self.pool_kv_stride and meant != dict(self.pool_kv_stride):
            block = min(b for b in range(self.depth) if meant.get(b) != self.pool_kv_stride.get(b))
            listed = self.pool_kv_stride.get(block)
            raise ValueError(
                f"POOL_KV_STRIDE and POOL_KV_STRIDE_ADAPTIVE contradict each other at block {block}: the list says "
                f"{list(listed) if listed else 'nothing'}, {list(self.pool_kv_stride_adaptive or ())} of block 0 means "
                f"{list(meant[block])} there; leave one of the two out"
            )

    def kv_strides(self) -> dict[int, Size3]:
        """Return the strides of keys and values by block; blocks that are left out do not pool them."""
        if self.pool_kv_stride_adaptive is None:
            return dict(self.pool_kv_stride)
        strides, stride = {}, self.pool_kv_stride_adaptive
        for block in range(self.depth):
            q_stride = self.pool_q_stride.get(block, (1, 1, 1))
            stride = _triple(max(k // q, 1) for k, q in zip(stride, q_stride, strict=True))
            strides[block] = stride
        return strides


def plan_blocks(
    shape: MViTShape, grid: TokenGrid, attention_type: AttentionType = "joint", *, rel_pos: str = "",
    mlp_ratio: float = 4.0, drop_path_rate: float = 0.0, qkv_bias: bool = True, residual_pooling: bool = False,
) -> list[MViTBlockPlan]:  # fmt: skip
    """Return the blocks of an MViT whose patch tokens lie on `grid`. Raises ValueError where a number doesn't fit.

    A divided model pools in space alone, by the same strides and with kernels of 1 along time. `rel_pos` has the
    letters of the axes with relative positions. Rates of drop path rise linearly from 0 to `drop_path_rate`.
    """
    plans: list[MViTBlockPlan] = []
    rates = torch.linspace(0, drop_path_rate, shape.depth, device="cpu").tolist()
    dim, num_heads = shape.embed_dim, shape.num_heads
    kv_strides = shape.kv_strides()
    nominal = (grid.t, grid.h, grid.w)  # sizes rounded down, which published tables of relative positions have
    for block in range(shape.depth):
        num_heads = _grow(num_heads, shape.head_mul.get(block, 1), "HEAD_MUL", block)
        widening = block if shape.dim_mul_in_attention else block + 1
        dim_out = _grow(dim, shape.dim_mul.get(widening, 1), "DIM_MUL", widening)
        attention_dim = dim_out if shape.dim_mul_in_attention else dim
        if attention_dim % num_heads:
            raise ValueError(
                f"block {block} has a width of {attention_dim}, which {num_heads} heads do not divide: see EMBED_DIM, "
                "DIM_MUL, NUM_HEADS and HEAD_MUL"
            )
        q_stride = shape.pool_q_stride.get(block)
        pool_q = _pooling(q_stride, shape.pool_kernel, attention_type, block)
        pool_kv = _pooling(kv_strides.get(block), shape.pool_kernel, attention_type, block)
        _, *sides = (
            max(n // s_q, n // s_kv) for n, s_q, s_kv in zip(nominal, pool_q.stride, pool_kv.stride, strict=True)
        )
        lengths = zip("thw", (2 * size - 1 for size in (nominal[0], *sides)), strict=True)
        plan = MViTBlockPlan(
            block, grid, dim, attention_dim, dim_out, num_heads, pool_q, pool_kv,
            table_lengths={letter: length for letter, length in lengths if letter in rel_pos},
            mlp_dim=int(attention_dim * mlp_ratio), drop_path_rate=rates[block], qkv_bias=qkv_bias,
            residual_pooling=residual_pooling,
        )  # fmt: skip
        plans.append(plan)
        grid, dim = plan.grid_out, dim_out
        nominal = _triple(n // s for n, s in zip(nominal, pool_q.stride, strict=True))
    return plans


def _grow(number: int, factor: float, key: str, block: int) -> int:
    grown = number * factor
    if grown != int(grown) or grown < 1:
        raise ValueError(f"{key} {factor} at block {block} does not make a whole number of {number}")
    return int(grown)


def _pooling(stride: Size3 | None, kernel: Size3 | None, attention_type: AttentionType, block: int) -> Pooling:
    if stride is None:
        return UNPOOLED
    kernel = kernel or _triple(s + 1 if s > 1 else 1 for s in stride)
    if attention_type == "divided":
        if stride[0] > 1:
            raise ValueError(f"a divided MViT pools in space alone, got stride {stride} in block {block}")
        kernel = (1, *kernel[1:])
    return Pooling(kernel, stride)


def _triple(sizes: Iterable[int]) -> Size3:
    t, h, w = sizes
    return t, h, w
