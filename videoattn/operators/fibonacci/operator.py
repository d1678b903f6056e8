"""Fibottention: each head attends only at its own generalised Fibonacci distances."""

import functools
import logging
import math
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.grid import cells_under
from videoattn.kernels.cpu.compiler import explain_absence
from videoattn.kernels.gather import GatherPlan
from videoattn.kernels.offset_plan import OffsetPlan
from videoattn.kernels.offsets import has_kernel, multiply_adds
from videoattn.kernels.transforms import is_transformed, without_autocast
from videoattn.kernels.triton.launch import supports_blocks
from videoattn.operators.base import AttentionOperator, AttentionSite
from videoattn.operators.crossovers import GATHER_FROM_KEYS
from videoattn.operators.fibonacci.sets import (
    HeadsPermutation,
    Order,
    Variant,
    key_table,
    offset_sets,
    permute_heads,
    raster_positions,
)

logger = logging.getLogger(__name__)

Semantics = Literal["exclude", "zero_logit", "mean_logit"]
Geometry = Literal["raster", "axial", "block"]
Implementation = Literal["auto", "masked", "gather", "compiled"]

# Tokens of a block where the geometry is that of blocks: the least that tensor cores multiply at once.
BLOCK = 16
# Masks up to this many elements are kept; larger ones are formed for a slice of the queries at a time.
MASK_ELEMENTS = 2**24


class FibonacciAttention(AttentionOperator):
    """Softmax attention over the pairs whose distance is in the head's offset set; prefix tokens take part everywhere.

    `semantics="exclude"` gives other keys weight 0; "zero_logit" leaves them logit 0, as the released code does;
    "mean_logit" gives all of them the logit of the mean key, for weights that were trained with dense attention.
    `keep_self` puts offset 0 into every set. `order` is the raster in which a site with several frames measures
    distance; `geometry="axial"` measures it along one of t, h, w at a time, with that axis's own offset sets;
    "block" measures it between blocks of 16 consecutive tokens of the raster, and whole blocks attend to whole blocks.
    Where queries and keys have different grids, a query stands at the key cell under it.

    `implementation="masked"` is the plain form, a dense product that saves nothing. The others compute the same, and
    its gradients, from attending pairs alone: "compiled" by the kernel of `videoattn.kernels.offsets` for the device of
    the tensors, C++ on a CPU and Triton on a GPU; "gather" on a CPU, several times slower, which needs no compiler and
    also accepts a bias. "auto" chooses the fastest for the device and the number of keys. The kernel for
    blocks on a GPU needs queries and keys on one grid. Raises ValueError where some query would have no key. `forward`
    also accepts q, k and v packed in one tensor [rows, groups·heads, n, 3, d] as `q`. Source: arXiv 2406.19391.
    """

    forms_weights = True
    normalizes_weights = True
    accepts_packed = True
    keep: Tensor | None

    def __init__(
        self,
        site: AttentionSite,
        variant: Annotated[Variant, "how a head's sequence begins"] = "modified",
        semantics: Annotated[
            Semantics,
            "weight of other keys: none, that of a logit of 0 (as in the released code), or that of the mean key",
        ] = "exclude",
        keep_self: Annotated[bool, "let every token attend to itself"] = True,
        heads_permutation: Annotated[HeadsPermutation, "the assignment of sequences to heads"] = "per_layer",
        order: Annotated[Order, "raster in which joint attention measures distance"] = "thw",
        geometry: Annotated[
            Geometry, "distance in the raster, along t, h, w apart, or between blocks of 16 tokens of the raster"
        ] = "raster",
        implementation: Annotated[
            Implementation,
            "masked: a dense product; gather: only the attending pairs; compiled: these by a kernel, in C++ on a CPU "
            "and in Triton on a GPU; auto: the fastest",
        ] = "auto",
    ) -> None:
        super().__init__(site)
        self.variant, self.semantics, self.keep_self = variant, semantics, keep_self
        self.heads_permutation, self.order, self.geometry = heads_permutation, order, geometry
        self.implementation = implementation
        kv = site.kv_grid
        lengths = [kv.t, kv.h, kv.w] if geometry == "axial" else [kv.patches]
        block = BLOCK if geometry == "block" else 1
        rows = permute_heads(site.all_heads, site.block, heads_permutation)
        rows = [rows[head] for head in site.head_numbers]
        # offsets[axis][head]: distances along that axis; the raster is a single axis
        offsets = [
            [sets[row] for row in rows]
            for sets in (offset_sets(-(-n // block), site.all_heads, variant, keep_self) for n in lengths)
        ]
        q_cells, k_cells = cells_under(site.q_grid, kv), cells_under(kv, kv)
        if geometry != "axial":
            q_cells, k_cells = raster_positions(q_cells, kv, order), raster_positions(k_cells, kv, order)
        self.plan = OffsetPlan(q_cells, k_cells, lengths, offsets, kv.prefix, block)
        if not self.plan.num_keys.all():
            head, query = (int(i) for i in np.argwhere(self.plan.num_keys == 0)[0])
            raise ValueError(
                f"fibonacci attention would leave query {query} of head {head} without a key on {site.q_grid} over "
                f"{kv}; set KEEP_SELF: true"
            )
        if self.plan.num_keys.min() == kv.tokens:
            warn_of_full_pattern(geometry, str(kv))
        kinds = ("cpu", "cuda") if implementation in ("auto", "compiled") and not site.has_bias else ()
        supporting = ("cpu", "cuda") if block == 1 or site.q_grid == kv else ("cpu",)
        self.kernels = frozenset(kind for kind in kinds if has_kernel(kind) and kind in supporting)
        if implementation == "compiled" and not self.kernels:
            needed, why = "needs a C++ compiler, found by CXX or as c++, or Triton for a GPU", ""
            if site.has_bias:
                needed = "does not support a bias"
            elif explain_absence("offset_attention"):
                why = f" (on a CPU: {explain_absence('offset_attention')})"
            raise ValueError(f"IMPLEMENTATION: compiled {needed}; set IMPLEMENTATION: auto{why}")
        gathers = implementation == "gather" or (implementation == "auto" and "cpu" not in self.kernels)
        tables = key_table(q_cells, k_cells, lengths, offsets, kv.prefix, block) if gathers else None
        self.gather = GatherPlan(*tables, kv.tokens) if tables else None
        mask_elements = site.num_heads * site.q_grid.tokens * kv.tokens
        self.keeps_mask = implementation in ("auto", "masked") and mask_elements <= MASK_ELEMENTS
        self.register_buffer("keep", None, persistent=False)
        if "cpu" not in self.kernels:  # else it may never be needed
            self._whole_mask()

    def _mask(self, start: int, stop: int) -> Tensor:
        """Return [heads, stop - start, Nk], True where these queries (counted with the prefix) see a key."""
        prefix = self.site.q_grid.prefix
        num_prefix_rows = max(min(stop, prefix) - start, 0)
        patch_rows = self.plan.mask(max(start - prefix, 0), max(stop - prefix, 0))
        return F.pad(patch_rows, (0, 0, num_prefix_rows, 0), value=True)

    def _whole_mask(self) -> Tensor | None:
        """Return the mask of all queries, kept after the first time; None if it is too large to keep."""
        if self.keep is None and self.keeps_mask:
            with torch.inference_mode(False):  # it may serve in training later
                mask = self._mask(0, self.site.q_grid.tokens)
            if torch.compiler.is_compiling() or is_transformed() or type(mask) is not Tensor:  # of no use afterwards
                return mask
            self.keep = mask
        return self.keep

    def forward(
        self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        if self.semantics == "mean_logit":
            if k is None or v is None:
                q, k, v = q.unbind(3)
            k = centre_keys(k)
        chosen = self._choose(q, v, bias)
        if chosen == "compiled":
            if bias is not None:
                raise ValueError("IMPLEMENTATION: compiled does not support a bias; set IMPLEMENTATION: auto")
            tensors = [q] if k is None or v is None else [q, k, v]
            # kernels compute in float32; that of a CPU reads all but float16 as it is
            wide = [x.float() if x.dtype is torch.float16 and not x.is_cuda else x for x in tensors]
            return self.plan.attend(wide, self.semantics != "exclude").to(q.dtype)
        if k is None or v is None:
            q, k, v = q.unbind(3)
        if chosen == "gather" and self.gather is not None:
            return self._attend_pairs(self.gather, q, k, v, bias).to(q.dtype)
        keep = self._whole_mask()
        if keep is not None:
            return self._attend_masked(q, k, v, bias, keep).to(q.dtype)
        num_queries, step = q.shape[2], max(1, MASK_ELEMENTS // (self.site.num_heads * k.shape[2]))
        parts = []
        for start in range(0, num_queries, step):
            stop = min(start + step, num_queries)
            part_bias = None if bias is None else _rows_of(bias, start, stop)
            parts.append(self._attend_masked(q[:, :, start:stop], k, v, part_bias, self._mask(start, stop)))
        return torch.cat(parts, dim=2).to(q.dtype)

    def _choose(self, q: Tensor, v: Tensor | None, bias: Tensor | None) -> Implementation:
        if self.implementation != "auto":
            return self.implementation
        num_keys = self.site.kv_grid.tokens
        fits_kernel = bias is None and (v is None or v.shape[-1] == q.shape[-1])
        kind = "cpu" if q.device.type == "meta" else q.device.type
        if kind == "cuda" and self.plan.block > 1:
            fits_kernel = fits_kernel and supports_blocks(self.plan.block, q.shape[-1], q.dtype)
        if kind in self.kernels and fits_kernel:
            return "compiled"
        if kind == "cpu" and self.gather is not None and num_keys >= GATHER_FROM_KEYS:
            return "gather"
        return "masked"

    # ---- the plain form

    def _attend_masked(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, keep: Tensor) -> Tensor:
        if self.semantics != "exclude":
            weights = self._masked_weights(q, k, bias, keep)
            with without_autocast(q.device):
                mixed: Tensor = weights @ v.to(weights.dtype)
            return mixed
        if q.shape[1] > len(keep):
            keep = keep.repeat(q.shape[1] // len(keep), 1, 1)  # the fused product broadcasts no groups of heads
        mask = keep if bias is None else bias.masked_fill(~keep, -math.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _masked_weights(self, q: Tensor, k: Tensor, bias: Tensor | None, keep: Tensor) -> Tensor:
        """Compute weights [rows, groups·heads, Nq, Nk] in float32 or wider: logits of half precision would overflow."""
        wide = torch.promote_types(q.dtype, torch.float32)
        with without_autocast(q.device):
            logits = q.to(wide) @ k.to(wide).transpose(-2, -1) / math.sqrt(self.site.head_dim)
            if bias is not None:
                logits = logits + bias
            logits = logits.unflatten(1, (-1, self.site.num_heads))
            other = -math.inf if self.semantics == "exclude" else 0.0
            weights: Tensor = logits.masked_fill(~keep, other).softmax(dim=-1).flatten(1, 2)
        return weights

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
        keep = self._whole_mask()
        if keep is None:
            keep = self._mask(0, self.site.q_grid.tokens)
        k = centre_keys(k) if self.semantics == "mean_logit" else k
        return self._masked_weights(q, k, bias, keep).to(q.dtype)

    # ---- attending pairs alone

    def _attend_pairs(self, plan: GatherPlan, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        heads, prefix = self.site.num_heads, self.site.q_grid.prefix
        wide, scale = torch.promote_types(q.dtype, torch.float32), 1 / math.sqrt(self.site.head_dim)
        with without_autocast(q.device):
            # [rows, groups, heads, n, d], contiguous because single rows are read
            first, rest, keys, values = (
                x.unflatten(1, (-1, heads)).to(wide).contiguous()
                for x in (*q.split([prefix, q.shape[2] - prefix], dim=2), k, v)
            )
            logits = plan.products(rest, keys) * scale
            if bias is not None:
                bias = bias.reshape(*(1,) * (4 - bias.dim()), *bias.shape)
                bias = bias.unsqueeze(1) if bias.shape[1] == 1 else bias.unflatten(1, (-1, heads))
                logits = logits + self._bias_of_pairs(plan, _rows_of(bias, prefix, q.shape[2]))
            out = self._mix_pairs(plan, logits, values)
            if prefix > 0:  # these queries attend to everything
                logits = first @ keys.transpose(-2, -1) * scale
                if bias is not None:
                    logits = logits + _rows_of(bias, 0, prefix)
                out = torch.cat([logits.softmax(dim=-1) @ values, out], dim=-2)
        return out.flatten(1, 2)

    def _mix_pairs(self, plan: GatherPlan, logits: Tensor, values: Tensor) -> Tensor:
        unused = plan.unused()
        logits = logits.masked_fill(unused, -math.inf)
        if self.semantics == "exclude":
            return plan.sums(_softmax(logits), values)
        # The other keys share one weight: n of them with logit 0 count as one with logit log n.
        num_others = self.site.kv_grid.tokens - plan.counts
        others = num_others.to(logits.dtype).log().expand(*logits.shape[:-1], 1)
        weights = _softmax(torch.cat([logits, others], dim=-1))
        share = weights[..., -1:] / num_others.clamp(min=1)
        excess = (weights[..., :-1] - share).masked_fill(unused, 0.0)
        return plan.sums(excess, values) + share * values.sum(dim=-2, keepdim=True)

    def _bias_of_pairs(self, plan: GatherPlan, bias: Tensor) -> Tensor:
        """Return the entries at the attending pairs of a bias that broadcasts to [rows, groups, heads, Nq, Nk]."""
        keys = plan.keys.long()
        bias = bias.expand(*bias.shape[:2], *keys.shape[:2], self.site.kv_grid.tokens)
        return bias.gather(-1, keys.expand(*bias.shape[:2], -1, -1, -1))

    def macs(self) -> int:
        site = self.site
        q_shape = (1, site.num_heads, site.q_grid.tokens, site.head_dim)
        return multiply_adds(q_shape, (site.num_heads,), self.plan.num_pairs)


@functools.cache  # once for all blocks
def warn_of_full_pattern(geometry: Geometry, grid: str) -> None:
    logger.warning(
        "fibonacci attention (GEOMETRY: %s) on %s attends to all pairs of tokens: it is dense attention, and no faster",
        geometry, grid,
    )  # fmt: skip


def centre_keys(k: Tensor) -> Tensor:
    """Return keys [..., Nk, d] minus their mean over the tokens of a sequence.

    All logits of a query fall by that of the mean key, which changes no softmax. The logit of the mean key itself
    becomes 0, so that `mean_logit` on keys is `zero_logit` on centred keys, in every form and kernel.
    """
    wide = torch.promote_types(k.dtype, torch.float32)
    return (k - k.mean(dim=-2, keepdim=True, dtype=wide)).to(k.dtype)


def _rows_of(bias: Tensor, start: int, stop: int) -> Tensor:
    return bias[..., start:stop, :] if bias.shape[-2] > 1 else bias


def _softmax(logits: Tensor) -> Tensor:
    """Compute the softmax over the last dimension; on a CPU torch vectorises it only from 16 elements on."""
    if logits.shape[-1] >= 16:
        return logits.softmax(dim=-1)
    return logits.transpose(-2, -1).contiguous().softmax(dim=-2).transpose(-2, -1)
