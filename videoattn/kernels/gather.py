"""Products and sums over the keys that a table lists for each query: sparse counterparts of q·kᵀ and weights·v.

Three operations, each the derivative of another, so that gradients also cost no more than the listed pairs. They rest
on torch's embedding bags, which read each row where it lies; on a CPU that is several times faster than copying the
gathered rows first. They take float32 and float64; tensors of less precision are converted before, as such sums need
float32 in any case.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from videoattn.kernels.transforms import is_transformed, kernel_operation, refuses_tangents

REMEDY = "call GatherPlan.products or GatherPlan.sums, or set IMPLEMENTATION: masked"


class GatherPlan(nn.Module):
    """The keys of each query of each head, as int32 tables that are not part of a checkpoint.

    `keys` [heads, Nq, K] lists a query's keys first, `counts` [heads, Nq] of them, and any keys in the unused slots
    behind. Weights are laid out in the same way, [..., heads, Nq, K]: those in unused slots must be zero where values
    are summed, and are arbitrary where products are returned.

    Memory: 4 bytes for each slot and for each pair, 14 MB for 12 heads over 6272 tokens with up to 24 keys a query.
    """

    keys: Tensor
    counts: Tensor
    slots: Tensor
    starts: Tensor

    def __init__(self, keys: np.ndarray, counts: np.ndarray, num_keys: int) -> None:
        super().__init__()
        self.num_keys = num_keys
        num_heads, _, num_slots = keys.shape
        used = np.flatnonzero(np.arange(num_slots) < counts[..., None])
        rows = (keys + num_keys * np.arange(num_heads)[:, None, None]).ravel()[used]  # head·Nk + key of each pair
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_heads * num_keys))])
        tables = {
            "keys": keys,
            "counts": counts[..., None],
            "slots": used[np.argsort(rows, kind="stable")],  # of all pairs, ordered by head and key
            "starts": starts,  # where the slots of each key begin, [heads·Nk + 1]
        }
        for name, table in tables.items():
            # on the device where the caller builds modules, be it the meta device
            buffer = torch.as_tensor(table.astype(np.int32))
            self.register_buffer(name, buffer, persistent=False)

    def unused(self) -> Tensor:
        """Return the mask of the slots that hold no pair, [heads, Nq, K]."""
        return torch.arange(self.keys.shape[-1], device=self.keys.device) >= self.counts

    def products(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the inner products of queries [..., heads, Nq, d] with their listed keys, [..., heads, Nq, K]."""
        run = _plain_products if is_transformed() else gather_products
        products = run(queries.flatten(0, -4), keys.flatten(0, -4), self.keys, self.slots, self.starts)
        return products.view(*queries.shape[:-1], self.keys.shape[-1])

    def sums(self, weights: Tensor, values: Tensor) -> Tensor:
        """Return each query's weighted sum of the values [..., heads, Nk, d] of its keys, [..., heads, Nq, d]."""
        run = _plain_sums if is_transformed() else gather_sums
        sums = run(weights.flatten(0, -4), values.flatten(0, -4), self.keys, self.slots, self.starts)
        return sums.view(*weights.shape[:-1], values.shape[-1])


def _table_rows(keys: Tensor, b: Tensor) -> Tensor:
    """Return the row of `b` that each slot holds, `b` seen as [sequences·heads·Nk, d]: [sequences·heads·Nq, K]."""
    if b.shape[0] * keys.numel() >= 2**31:
        raise ValueError(f"int32 can't number {b.shape[0]} sequences of {keys.numel()} slots; split the batch")
    first = torch.arange(b.shape[0] * b.shape[1], dtype=torch.int32, device=b.device) * b.shape[2]
    return (keys + first.view(*b.shape[:2], 1, 1)).view(-1, keys.shape[-1])


# The operations take the tables of a `GatherPlan`, a [sequences, heads, Nq, d] and b [sequences, heads, Nk, d].


@kernel_operation("videoattn::gather_products", REMEDY)
def gather_products(a: Tensor, b: Tensor, keys: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    """Return the inner products of rows of `a` and `b`, [sequences, heads, Nq, K]."""
    if len(a) == 0:  # embedding bags take no empty batch
        return a.new_empty(*a.shape[:3], keys.shape[-1])
    rows = _table_rows(keys, b)
    num_bags, num_slots = rows.shape
    bags = torch.arange(num_bags, dtype=torch.int32, device=a.device)
    # The derivative of a bag's sum by its weights is what is wanted; torch has no public name for it.
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        a.reshape(num_bags, a.shape[-1]), b.reshape(-1, b.shape[-1]), rows.view(-1), bags * num_slots,
        bags[:, None].expand(-1, num_slots).contiguous().view(-1), 0,
    )  # fmt: skip
    return products.view(*a.shape[:3], num_slots)


@kernel_operation("videoattn::gather_sums", REMEDY)
def gather_sums(weights: Tensor, b: Tensor, keys: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    """Return the weighted sums of rows of `b` for each query, [sequences, heads, Nq, d]."""
    if len(b) == 0:
        return b.new_empty(*weights.shape[:3], b.shape[-1])
    rows, table = _table_rows(keys, b), b.reshape(-1, b.shape[-1])
    sums = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights.reshape(rows.shape))
    return sums.view(*weights.shape[:3], b.shape[-1])


@kernel_operation("videoattn::gather_sums_by_key", REMEDY)
def gather_sums_by_key(weights: Tensor, a: Tensor, keys: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    """Return the weighted sums of rows of `a` for each key, [sequences, heads, Nk, d]."""
    num_sequences, num_heads, num_queries, dim = a.shape
    if num_sequences == 0:
        return a.new_empty(0, num_heads, (len(starts) - 1) // num_heads, dim)
    sequences = torch.arange(num_sequences, dtype=torch.int32, device=a.device)[:, None]
    rows = slots // keys.shape[-1] + sequences * (num_heads * num_queries)
    ends = F.pad((starts[:-1] + sequences * len(slots)).view(-1), (0, 1), value=num_sequences * len(slots))
    sums = F.embedding_bag(
        rows.view(-1), a.reshape(-1, dim), ends, mode="sum", include_last_offset=True,
        per_sample_weights=weights.reshape(num_sequences, -1).index_select(1, slots).view(-1),
    )  # fmt: skip
    return sums.view(num_sequences, num_heads, -1, dim)


@gather_products.register_fake
@refuses_tangents("videoattn::gather_products", REMEDY)
def _(a: Tensor, b: Tensor, keys: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:3], keys.shape[-1])


@gather_sums.register_fake
@refuses_tangents("videoattn::gather_sums", REMEDY)
def _(weights: Tensor, b: Tensor, keys: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    return b.new_empty(*weights.shape[:3], b.shape[-1])


@gather_sums_by_key.register_fake
@refuses_tangents("videoattn::gather_sums_by_key", REMEDY)
def _(weights: Tensor, a: Tensor, keys: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:2], (starts.shape[0] - 1) // a.shape[1], a.shape[-1])


def _save_inputs(ctx: Any, inputs: Sequence[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _products_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    a, b, *plan = ctx.saved_tensors
    by_a = gather_sums(gradient, b, *plan) if ctx.needs_input_grad[0] else None
    by_b = gather_sums_by_key(gradient, a, *plan) if ctx.needs_input_grad[1] else None
    return by_a, by_b, None, None, None


def _sums_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weights, b, *plan = ctx.saved_tensors
    gradient = gradient.contiguous()  # once for both
    by_weights = gather_products(gradient, b, *plan) if ctx.needs_input_grad[0] else None
    by_b = gather_sums_by_key(weights, gradient, *plan) if ctx.needs_input_grad[1] else None
    return by_weights, by_b, None, None, None


def _sums_by_key_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weights, a, *plan = ctx.saved_tensors
    gradient = gradient.contiguous()
    by_weights = gather_products(a, gradient, *plan) if ctx.needs_input_grad[0] else None
    by_a = gather_sums(weights, gradient, *plan) if ctx.needs_input_grad[1] else None
    return by_weights, by_a, None, None, None


gather_products.register_autograd(_products_backward, setup_context=_save_inputs)
gather_sums.register_autograd(_sums_backward, setup_context=_save_inputs)
gather_sums_by_key.register_autograd(_sums_by_key_backward, setup_context=_save_inputs)


# ---- their plain forms, which gather rows first


def _plain_products(a: Tensor, b: Tensor, keys: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    return (a.unsqueeze(-2) * _gather_rows(b, keys)).sum(-1)


def _plain_sums(weights: Tensor, b: Tensor, keys: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    return (weights.unsqueeze(-1) * _gather_rows(b, keys)).sum(-2)


def _gather_rows(b: Tensor, keys: Tensor) -> Tensor:
    """Return a copy of each slot's row, [sequences, heads, Nq, K, d]."""
    heads = torch.arange(keys.shape[0], device=keys.device)[:, None, None]
    return b[:, heads, keys.long()]


# Torch's counter takes a multiply-add for two operations. Unused slots are computed, and count.


@register_flop_formula([torch.ops.videoattn.gather_products, torch.ops.videoattn.gather_sums])
def _count_slots(first: Sequence[int], b: Sequence[int], keys: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * b[0] * math.prod(keys) * b[-1]


@register_flop_formula([torch.ops.videoattn.gather_sums_by_key])
def _count_pairs(weights: Sequence[int], a: Sequence[int], keys: Any, slots: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * a[0] * slots[0] * a[-1]
