"""Fibottention: each head attends only at its own generalised Fibonacci distances."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.grid import TokenGrid
from videoattn.operators.base import AttentionOperator, AttentionSite
from videoattn.operators.fibonacci_sets import HeadsPermutation, Variant, offset_sets, permute_heads

Semantics = Literal["exclude", "zero_logit"]
Order = Literal["thw", "hwt"]
Geometry = Literal["raster", "axial"]

# Masks up to this many elements are kept; larger ones are formed for a slice of the queries at a time.
MASK_ELEMENTS = 2**24


class FibonacciAttention(AttentionOperator):
    """Softmax attention over the pairs whose distance is in the head's offset set; prefix tokens take part everywhere.

    `semantics="exclude"` gives other keys weight 0; "zero_logit" leaves them logit 0, as the released code does.
    `keep_self` puts offset 0 into every set. `order` is the raster in which a site with several frames measures
    distance; `geometry="axial"` measures it along one of t, h, w at a time, with that axis's own offset sets.
    Where queries and keys have different grids, a query stands at the key cell under it.

    This is the plain form, a masked dense product: it defines the method and saves nothing. Raises ValueError where
    some query would have no key. Source: arXiv 2406.19391.
    """

    keep: Tensor | None

    def __init__(
        self,
        site: AttentionSite,
        variant: Variant = "modified",
        semantics: Semantics = "exclude",
        keep_self: bool = True,
        heads_permutation: HeadsPermutation = "per_layer",
        order: Order = "thw",
        geometry: Geometry = "raster",
    ) -> None:
        super().__init__(site)
        for name, value, allowed in (
            ("SEMANTICS", semantics, get_args(Semantics)),
            ("ORDER", order, get_args(Order)),
            ("GEOMETRY", geometry, get_args(Geometry)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} expects one of {', '.join(allowed)}, got {value!r}")
        self.semantics = semantics
        self.geometry = geometry
        kv = site.kv_grid
        lengths = [kv.t, kv.h, kv.w] if geometry == "axial" else [kv.patches]
        rows = permute_heads(site.num_heads, site.layer, heads_permutation)
        # offsets[axis][head]: distances along that axis; the raster is a single axis
        self.offsets = [
            [sets[row] for row in rows]
            for sets in (offset_sets(n, site.num_heads, variant, keep_self) for n in lengths)
        ]
        q_cells, k_cells = cells_under(site.q_grid, kv), cells_under(kv, kv)
        if geometry == "raster":
            q_cells, k_cells = raster_positions(q_cells, kv, order), raster_positions(k_cells, kv, order)
        keys_per_query = count_keys(q_cells, lengths, self.offsets)
        if kv.prefix == 0 and not keys_per_query.all():
            head, query = (int(i) for i in np.argwhere(keys_per_query == 0)[0])
            raise ValueError(
                f"fibonacci attention would leave query {query} of head {head} without a key on {site.q_grid} over "
                f"{kv}; set KEEP_SELF: true"
            )
        self.num_pairs = int(keys_per_query.sum()) + site.num_heads * (
            kv.prefix * site.q_grid.tokens + site.q_grid.prefix * kv.patches
        )
        for axis, (length, sets) in enumerate(zip(lengths, self.offsets, strict=True)):
            table = torch.zeros(site.num_heads, length, dtype=torch.bool)
            for head, offsets in enumerate(sets):
                table[head, offsets] = True
            self.register_buffer(f"table_{axis}", table, persistent=False)
        self.register_buffer("q_cells", torch.from_numpy(q_cells).to(table.device), persistent=False)
        self.register_buffer("k_cells", torch.from_numpy(k_cells).to(table.device), persistent=False)
        small = site.num_heads * site.q_grid.tokens * kv.tokens <= MASK_ELEMENTS
        self.register_buffer("keep", self._mask(0, site.q_grid.tokens) if small else None, persistent=False)

    def _mask(self, start: int, stop: int) -> Tensor:
        """[heads, stop - start, Nk], True where these queries (counted with the prefix) see a key."""
        prefix, k = self.site.q_grid.prefix, self.get_buffer("k_cells")
        q = self.get_buffer("q_cells")[max(start - prefix, 0) : max(stop - prefix, 0)]
        distance = [(q[:, None, axis] - k[None, :, axis]).abs() for axis in range(q.shape[1])]
        tables = [self.get_buffer(f"table_{axis}") for axis in range(q.shape[1])]
        if self.geometry == "raster":
            keep = tables[0][:, distance[0]]
        else:
            moved = torch.stack([d > 0 for d in distance])
            keep = (moved.sum(0) == 0) & torch.stack([table[:, 0] for table in tables]).any(0)[:, None, None]
            for axis, table in enumerate(tables):
                keep = keep | (table[:, distance[axis]] & (moved.sum(0) == 1) & moved[axis])
        num_prefix_rows = max(min(stop, prefix) - start, 0)
        return F.pad(keep, (prefix, 0, num_prefix_rows, 0), value=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.keep is not None:
            return self._attend(q, k, v, bias, self.keep)
        num_queries, step = q.shape[2], max(1, MASK_ELEMENTS // (self.site.num_heads * k.shape[2]))
        parts = []
        for start in range(0, num_queries, step):
            stop = min(start + step, num_queries)
            part_bias = bias[..., start:stop, :] if bias is not None and bias.shape[-2] > 1 else bias
            parts.append(self._attend(q[:, :, start:stop], k, v, part_bias, self._mask(start, stop)))
        return torch.cat(parts, dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor) -> Tensor:
        groups = q.shape[1] // self.site.num_heads
        if groups > 1:
            keep = keep.repeat(groups, 1, 1)
        if self.semantics == "exclude":
            mask = keep[None] if bias is None else bias.masked_fill(~keep, -math.inf)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        logits = q @ k.transpose(-2, -1) / math.sqrt(self.site.head_dim)
        if bias is not None:
            logits = logits + bias
        return logits.masked_fill(~keep, 0.0).softmax(dim=-1) @ v

    def macs(self) -> int:
        return 2 * self.site.head_dim * self.num_pairs


def cells_under(grid: TokenGrid, kv_grid: TokenGrid) -> np.ndarray:
    """The (t, h, w) cell of `kv_grid` under each patch token of `grid`, int64 [N, 3]."""
    axes = [np.arange(n) * n_k // n for n, n_k in ((grid.t, kv_grid.t), (grid.h, kv_grid.h), (grid.w, kv_grid.w))]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def raster_positions(cells: np.ndarray, grid: TokenGrid, order: Order) -> np.ndarray:
    """Position of each cell when the grid is read in `order` (last letter fastest), int64 [N, 1]."""
    t, h, w = cells.T
    index: np.ndarray = (t * grid.h + h) * grid.w + w if order == "thw" else (h * grid.w + w) * grid.t + t
    return index[:, None]


def count_keys(q_cells: np.ndarray, lengths: Sequence[int], offsets: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """Patch keys that each patch query attends to, int64 [heads, Nq]."""
    counts = []
    for head in range(len(offsets[0])):
        count = np.full(len(q_cells), int(any(0 in axis[head] for axis in offsets)))
        for cell, length, sets in zip(q_cells.T, lengths, offsets, strict=True):
            for s in sets[head]:
                if s > 0:
                    count += (cell >= s).astype(np.int64) + (cell + s < length)
        counts.append(count)
    return np.stack(counts)
