"""MViT's attention: queries, keys and values are pooled on the token grid before an operator mixes them.

Source: MViT (Fan et al., ICCV 2021), arXiv 2104.11227; MViTv2 (Li et al., CVPR 2022), arXiv 2112.01526.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid, fold, merge_calls, split_calls
from videoattn.kernels.depthwise import depthwise_conv3d
from videoattn.kernels.pool import can_pool, pool_tokens
from videoattn.layers.attention import BuildOperator, Carry, TokenMixer
from videoattn.layers.skip import ReusedWeights
from videoattn.operators import AttentionOperator, AttentionSite

Size3 = tuple[int, int, int]
UNIT: Size3 = (1, 1, 1)


@dataclass(frozen=True)
class Pooling:
    """A pooling convolution's kernel and stride, (t, h, w); of 1 everywhere, nothing is pooled."""

    kernel: Size3 = UNIT
    stride: Size3 = UNIT

    @property
    def is_identity(self) -> bool:
        return self.kernel == UNIT and self.stride == UNIT

    def apply_to(self, grid: TokenGrid) -> TokenGrid:
        """Return the grid that pooling makes of `grid`."""
        return grid.pooled(self.kernel, self.stride)


UNPOOLED = Pooling()


class TokenPool(nn.Module):
    """A depthwise convolution of patch tokens with filters that all heads share; class tokens pass by. Then a norm.

    Takes [B, N, heads, d] on `grid`, a view of any strides, and returns [B, N', heads, d]. `pool_packed` applies
    several at once, by their parameters, without calling them.
    """

    def __init__(self, head_dim: int, grid: TokenGrid, pooling: Pooling) -> None:
        super().__init__()
        self.grid = grid
        self.pooling = pooling
        self.weight = nn.Parameter(torch.empty(head_dim, 1, *pooling.kernel))
        self.norm = nn.LayerNorm(head_dim, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as torch's convolutions do."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return pool_packed(x.unsqueeze(3), [self], self.grid)[0]

    def convolve(self, x: Tensor) -> Tensor:
        """Apply all but the norm, in plain PyTorch."""
        grid = self.grid
        # with channels last in memory and one filter per channel of all heads, nothing is transposed
        volume = x[:, grid.prefix :].flatten(2).unflatten(1, (grid.t, grid.h, grid.w))
        filters = self.weight.squeeze(1).to(x.dtype).repeat(x.shape[2], 1, 1, 1)
        pooled = depthwise_conv3d(volume, filters, self.pooling.stride).flatten(1, 3).unflatten(2, x.shape[2:])
        return torch.cat([x[:, : grid.prefix], pooled], dim=1) if grid.prefix else pooled

    def normalize(self, x: Tensor) -> Tensor:
        """Apply the norm over channels, in the type of x: under autocast norms may give float32."""
        return self.norm(x).to(x.dtype)

    def extra_repr(self) -> str:
        return f"kernel={self.pooling.kernel}, stride={self.pooling.stride}"


def pool_packed(x: Tensor, pools: Sequence[TokenPool | None], grid: TokenGrid) -> list[Tensor]:
    """Pool each of the tensors packed in [B, N, heads, P, d] by its own of `pools`, to [B, N', heads, d]; None leaves.

    On a CPU one operation pools all, so that their gradient leaves in one piece.
    """
    if not any(pools) or not can_pool(x):
        parts = zip(x.unbind(3), pools, strict=True)
        return [part if pool is None else pool.normalize(pool.convolve(part)) for part, pool in parts]
    wide = torch.promote_types(x.dtype, torch.float32)
    one = x.new_ones((x.shape[-1], 1, 1, 1), dtype=wide)
    filters = [one if pool is None else pool.weight.squeeze(1).to(wide) for pool in pools]
    strides = [step for pool in pools for step in (UNIT if pool is None else pool.pooling.stride)]
    pooled = pool_tokens(x, filters, strides, [grid.t, grid.h, grid.w], grid.prefix)
    normed = [y if pool is None else pool.normalize(y) for y, pool in zip(pooled, pools, strict=True)]
    return [y.transpose(1, 2) for y in normed]  # after the norm, which would copy


def relative_rows(num_queries: int, num_keys: int) -> Tensor:
    """Return the row of a table of 2·max(Nq, Nk) - 1 relative positions for each pair on an axis, int64 [Nq, Nk]."""
    q_scale, k_scale = max(num_keys / num_queries, 1.0), max(num_queries / num_keys, 1.0)
    queries, keys = torch.arange(num_queries, device="cpu"), torch.arange(num_keys, device="cpu")
    return (queries[:, None] * q_scale - keys[None] * k_scale + (num_keys - 1) * k_scale).long()


def resize_table(table: Tensor, length: int) -> Tensor:
    """Interpolate a table of relative positions [L, d] linearly to another length."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.float().t()[None], size=length, mode="linear")[0].t().to(table.dtype)


class RelativePositions(nn.Module):
    """Decomposed relative positions (MViTv2, sec. 4.1): logits that queries give to distances along t, h and w.

    `lengths` gives each axis's table by its letter; a table whose length is not 2·max(Nq, Nk) - 1 is interpolated in
    every forward pass, as published. Takes queries [..., Nq, d] and returns the bias [..., Nq, Nk] of the logits.
    """

    def __init__(self, head_dim: int, q_grid: TokenGrid, kv_grid: TokenGrid, lengths: dict[str, int]) -> None:
        super().__init__()
        self.q_grid = q_grid
        self.kv_grid = kv_grid
        self.tables = nn.ParameterDict(
            {axis: nn.Parameter(torch.empty(length, head_dim)) for axis, length in lengths.items()}
        )
        for axis in lengths:
            rows = relative_rows(getattr(q_grid, axis), getattr(kv_grid, axis))
            self.register_buffer(f"rows_{axis}", rows.to(self.tables[axis].device), persistent=False)
        self.reset_parameters()

    def reset_parameters(self, zero: bool = False) -> None:
        for table in self.tables.values():
            if zero:
                nn.init.zeros_(table)
            else:
                nn.init.trunc_normal_(table, std=0.02)

    def forward(self, q: Tensor) -> Tensor:
        grid = self.q_grid
        lattice = q[..., grid.prefix :, :].unflatten(-2, (grid.t, grid.h, grid.w))
        bias: Tensor | None = None
        for axis, equation, shape in (
            ("t", "...thwc,tkc->...thwk", (-1, 1, 1)),
            ("h", "...thwc,hkc->...thwk", (1, -1, 1)),
            ("w", "...thwc,wkc->...thwk", (1, 1, -1)),
        ):
            if axis not in self.tables:
                continue
            rows: Tensor = getattr(self, f"rows_{axis}")
            table = resize_table(self.tables[axis], 2 * max(rows.shape) - 1)
            # index_select, as indexing has no deterministic derivative on every device
            positions = table.index_select(0, rows.flatten()).unflatten(0, rows.shape).to(q.dtype)
            part = torch.einsum(equation, lattice, positions).unflatten(-1, shape)
            bias = part if bias is None else bias + part
        assert bias is not None
        keys = self.kv_grid
        bias = bias.expand(*bias.shape[:-3], keys.t, keys.h, keys.w).flatten(-3).flatten(-4, -2)
        return F.pad(bias, (keys.prefix, 0, grid.prefix, 0)) if grid.prefix else bias


class PooledAttention(TokenMixer):
    """A mixer whose q, and k and v, are pooled on the grid; its update lies on `q_grid` and has `dim_out` channels.

    `relative` gives the lengths of tables of relative positions by axis letter, {} for none. With `residual_pooling`
    the pooled queries are added to what the operator returns, except class tokens'. Along TIME nothing can be pooled.
    """

    operator: AttentionOperator

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, grid: TokenGrid, axis: Axis, block: int, operator: BuildOperator,
        pool_q: Pooling = UNPOOLED, pool_kv: Pooling = UNPOOLED, relative: dict[str, int] | None = None,
        residual_pooling: bool = False, qkv_bias: bool = True, carry: Carry = "nothing",
    ) -> None:  # fmt: skip
        super().__init__(grid, axis, carry)
        if dim_out % num_heads:
            raise ValueError(f"the width must be a multiple of the number of heads, got {dim_out} and {num_heads}")
        if axis is not Axis.JOINT and max(pool_q.stride[0], pool_kv.stride[0], pool_q.kernel[0], pool_kv.kernel[0]) > 1:
            raise ValueError(f"attention along {axis.name} can't pool over time, got {pool_q} and {pool_kv}")
        head_dim = dim_out // num_heads
        self.num_heads = num_heads
        self.residual_pooling = residual_pooling
        self.q_grid, self.kv_grid = pool_q.apply_to(grid), pool_kv.apply_to(grid)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.pool_q = None if pool_q.is_identity else TokenPool(head_dim, grid, pool_q)
        self.pool_k, self.pool_v = (
            None if pool_kv.is_identity else TokenPool(head_dim, grid, pool_kv) for _ in range(2)
        )
        site = AttentionSite(
            self.q_grid.along(axis), self.kv_grid.along(axis), num_heads, head_dim, block, has_bias=bool(relative)
        )
        self.operator = operator(site)
        if carry == "weights" and not self.operator.forms_weights:
            raise ValueError(
                f"{type(self.operator).__name__} along {axis.name} forms no attention weights that block {block + 1} "
                "could reuse; choose another PHI or operator"
            )
        self.relative = RelativePositions(head_dim, site.q_grid, site.kv_grid, relative) if relative else None
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        qkv = self.qkv(self.norm(x)).unflatten(2, (self.num_heads, 3, -1))
        pooled = pool_packed(qkv, (self.pool_q, self.pool_k, self.pool_v), self.grid)
        grids = (self.q_grid, self.kv_grid, self.kv_grid)
        q, k, v = (split_calls(fold(y, grid, self.axis), self.axis) for y, grid in zip(pooled, grids, strict=True))
        bias = None if self.relative is None else self.relative(q)
        weights = self.operator.weights(q, k, bias) if self.carry == "weights" else None
        mixed = self.operator(q, k, v, bias) if weights is None else weights @ v
        if self.residual_pooling:
            mixed = add_residual(mixed, q, self.operator.site.q_grid.prefix)
        update = self.proj(merge_calls(mixed, x.shape[0], self.num_heads, self.axis))
        return update, update if self.carry == "update" else weights


class ReusedPooledWeights(ReusedWeights):
    """New values, pooled, mixed by the attention weights of the last block that computed some; no residual pooling."""

    def __init__(
        self, dim: int, num_heads: int, grid: TokenGrid, axis: Axis, pooling: Pooling, carry: Carry = "nothing"
    ) -> None:
        super().__init__(dim, num_heads, grid, axis, carry)
        self.kv_grid = pooling.apply_to(grid)
        self.pool_v = None if pooling.is_identity else TokenPool(dim // num_heads, grid, pooling)

    def values(self, x: Tensor) -> Tensor:
        v = super().values(x)
        return v if self.pool_v is None else self.pool_v(v)


def add_residual(mixed: Tensor, q: Tensor, prefix: int) -> Tensor:
    """Add pooled queries [rows, heads, Nq, d] to mixed values, except to the first `prefix` rows (residual pooling)."""
    if not prefix:
        return mixed + q
    return torch.cat([mixed[:, :, :prefix], mixed[:, :, prefix:] + q[:, :, prefix:]], dim=2)
