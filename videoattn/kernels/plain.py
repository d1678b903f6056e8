"""Plain forms of attention operations, in torch's own: they define the kernels' results, and have every derivative."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.kernels.layout import split
from videoattn.kernels.transforms import without_autocast


def mix_by_softmax(
    tensors: Sequence[Tensor], keep: Tensor | None = None, zero_logit: bool = False
) -> tuple[Tensor, Tensor]:
    """Return mixed values [rows, groups·heads, Nq, d], and each query's log Σ exp of its logits.

    `tensors` are q, k and v, or one packed, as operations take them. Where `keep` [heads, Nq, Nk] is given, other pairs
    than those have weight 0, or with `zero_logit` logit 0.
    """
    q, k, v = split(tensors)
    wide = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q.device):
        logits = q.to(wide) @ k.to(wide).transpose(-2, -1) / math.sqrt(q.shape[-1])
        if keep is not None:
            other = 0.0 if zero_logit else -math.inf
            logits = logits.unflatten(1, (-1, keep.shape[0])).masked_fill(~keep, other).flatten(1, 2)
        return (logits.softmax(dim=-1) @ v.to(wide)).to(q.dtype), logits.logsumexp(dim=-1)


def offset_mask(
    offsets: Tensor, counts: Tensor, starts: Tensor | None, queries: Tensor | None, keys: Tensor | None,
    lengths: Sequence[int], prefix: int, block: int, start: int, stop: int,
) -> Tensor:  # fmt: skip
    """Return the mask of the patch queries from `start` to `stop`, [heads, stop - start, prefix + Nk], by a plan."""
    device, num_positions = offsets.device, math.prod(lengths)
    at = torch.arange(num_positions if queries is None else len(queries), device=device)
    if queries is not None and starts is not None:
        sorted_at = torch.searchsorted(starts, at.int(), right=True) - 1
        at = torch.empty_like(at).index_copy(0, queries.long(), sorted_at)
    at = at[start:stop, None]
    used = torch.arange(offsets.shape[1], device=device) < counts[:, None, None]
    axes, steps, deltas = offsets.long()[:, None].unbind(-1)  # [heads, 1, K] each
    if block > 1:
        num_places = -(-num_positions // block)
        there = at // block + deltas
        inside = (there >= 0) & (there < num_places) & used
    else:
        num_places = num_positions
        sizes = torch.tensor(lengths, device=device)
        strides = torch.tensor([math.prod(lengths[i + 1 :]) for i in range(len(lengths))], device=device)
        coordinates = at // strides[axes] % sizes[axes] + steps
        there, inside = at + deltas, (coordinates >= 0) & (coordinates < sizes[axes]) & used
    there = there.where(inside, num_places)
    mask = torch.zeros(*there.shape[:2], num_places + 1, dtype=torch.bool, device=device)
    seen = torch.ones((), dtype=torch.bool, device=device).expand_as(there)  # torch's tracing takes no `True`
    mask = mask.scatter(-1, there, seen)[..., :-1]
    mask = mask.repeat_interleave(block, dim=-1)[..., :num_positions] if block > 1 else mask
    mask = mask if keys is None else mask[..., keys.argsort()]
    return F.pad(mask, (prefix, 0), value=True)


def attend_by_offsets(
    tensors: Sequence[Tensor], offsets: Tensor, counts: Tensor, starts: Tensor | None, queries: Tensor | None,
    keys: Tensor | None, lengths: Sequence[int], prefix: int, block: int, zero_logit: bool, num_pairs: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what `videoattn.kernels.offsets.offset_attention` returns."""
    num_queries = tensors[0].shape[2] - prefix
    mask = offset_mask(offsets, counts, starts, queries, keys, lengths, prefix, block, 0, num_queries)
    return mix_by_softmax(tensors, F.pad(mask, (0, 0, prefix, 0), value=True), zero_logit)
