"""Attention over constant offsets on a GPU, backward: weights are formed anew from logits and each log Σ exp.

One kernel walks over queries for their gradients, another over keys for those of keys and values. Each sum has one
program, which forms it in a fixed order, so that results are the same every time. The prefix has programs of its own.

With g_i the gradient by o_i, w_ij = exp(s_ij - L_i) and D_i = g_i·o_i, which is Σ_j w_ij g_i·v_j:

    slope_ij = w_ij (g_i·v_j - D_i)        dq_i = Σ_j slope_ij k_j / √d        dk_j = Σ_i slope_ij q_i / √d
    dv_j = Σ_i w_ij g_i, with zero_logit Σ_S (w_ij - b_i) g_i + Σ_all b_i g_i, where b_i = exp(-L_i)

In `query_gradients` i is fixed in a lane and j walks along the offsets, in `key_gradients` the other way round.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from videoattn.kernels.triton import launch as triton_launch
from videoattn.kernels.triton.arguments import (
    describe,
    index_type,
    on_device_of,
    partial_results,
    strides_of,
    walks_of,
)
from videoattn.kernels.triton.background import background_of
from videoattn.kernels.triton.launch import launch_of
from videoattn.kernels.triton.offsets import SIZES, apply_offset, count_others, find_queries, find_walk, share_work
from videoattn.kernels.triton.rows import key_token, read_row, read_rows, start_of, write_row, write_rows


@triton.jit
def logit_gradients(query, gradient, key, value, ok, shift, mean, SCALE: tl.constexpr):
    """Return per lane the weight of a pair, and the gradient by its logit.

    Arguments are [TILE or 1, WIDTH] and [TILE or 1]. `shift` is the query's log Σ exp and `mean` its
    weighted mean of the products of gradient and value. The rounding of large logits and sums must not make weights of
    more than 1.
    """
    weight = tl.where(ok, tl.exp(tl.minimum(tl.sum(query * key, 1) * SCALE - shift, 0.0)), 0.0)
    return weight, weight * (tl.sum(gradient * value, 1) - mean)


@triton.jit(do_not_specialize=SIZES)
def query_gradients(
    q, k, v, out, gradient, grad_q, part_q, logsumexp, means, backgrounds, offsets, counts, starts, queries, keys,
    q_strides, k_strides, v_strides, out_strides, gradient_strides, grad_q_strides, lengths,
    items, heads, pattern_heads, num_offsets, prefix, num_queries, positions, steps, walks,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    INDEX: tl.constexpr, AXIAL: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    # as in `attend_forward`, and: gradient is that of out; means (D) and backgrounds (b, None with exclude) are
    # [items, prefix + num_queries] and written here; part_q [walks, items, prefix, DIM]
    item, part, alone = share_work(items, prefix * walks, tl.cdiv(num_queries, TILE))
    q_start, k_start = start_of(q, q_strides, item, heads), start_of(k, k_strides, item, heads)
    v_start, out_start = start_of(v, v_strides, item, heads), start_of(out, out_strides, item, heads)
    gradient_start = start_of(gradient, gradient_strides, item, heads)
    grad_q_start = start_of(grad_q, grad_q_strides, item, heads)
    first_token = item.to(tl.int64) * (prefix + num_queries)
    lane = tl.arange(0, TILE)
    result = tl.zeros([TILE, WIDTH], WIDE)
    if alone:
        this, begin, end, row = find_walk(part, item, items, prefix, prefix + positions, WALK)
        one_query = read_row(q_start, this, q_strides[2], DIM, WIDTH, WIDE)
        one_gradient = read_row(gradient_start, this, gradient_strides[2], DIM, WIDTH, WIDE)
        # D of this query, which every program of it forms: means are stored for `key_gradients`
        one_mean = tl.sum(one_gradient * read_row(out_start, this, out_strides[2], DIM, WIDTH, WIDE))
        one_shift = tl.load(logsumexp + first_token + this)
        tl.store(means + first_token + this, one_mean)
        if backgrounds is not None:
            # it attends to all keys: none is in the background
            tl.store(backgrounds + first_token + this, one_mean * 0)
        for first in range(begin, end, TILE):
            at = (first + lane).to(INDEX)
            ok = at < end
            key = read_rows(k_start, at, k_strides[2], ok, DIM, WIDTH, WIDE)
            value = read_rows(v_start, at, v_strides[2], ok, DIM, WIDTH, WIDE)
            _, slope = logit_gradients(one_query, one_gradient, key, value, ok, one_shift, one_mean, SCALE)
            result += slope[:, None] * key
        # the lanes walked through different keys
        one_result = tl.sum(result, 0)[None, :] * SCALE
        if part_q is None:
            write_row(grad_q_start, this, grad_q_strides[2], one_result, DIM, WIDTH)
        else:
            write_row(part_q, row, DIM, one_result, DIM, WIDTH)
    else:
        token, position, exists = find_queries(
            part, starts, queries, prefix, num_queries, positions, steps, TILE, INDEX
        )
        upstream = read_rows(gradient_start, token, gradient_strides[2], exists, DIM, WIDTH, WIDE)
        # rows of g and o are read once; q and g stay in registers while keys pass
        mean = tl.sum(upstream * read_rows(out_start, token, out_strides[2], exists, DIM, WIDTH, WIDE), 1)
        query = read_rows(q_start, token, q_strides[2], exists, DIM, WIDTH, WIDE)
        shift = tl.load(logsumexp + first_token + token, mask=exists, other=0.0)
        tl.store(means + first_token + token, mean, mask=exists)
        pattern = item % pattern_heads
        first_offset, count = offsets + pattern * num_offsets * 3, tl.load(counts + pattern)
        if backgrounds is not None:
            others = count_others(position, first_offset, count, lengths, prefix + positions, prefix, AXIAL)
            # b, or 0 where no key is outside the pattern
            tl.store(backgrounds + first_token + token, tl.where(others > 0, tl.exp(-shift), 0.0), mask=exists)
        for j in range(prefix):
            prefix_key = read_row(k_start, j, k_strides[2], DIM, WIDTH, WIDE)
            prefix_value = read_row(v_start, j, v_strides[2], DIM, WIDTH, WIDE)
            _, slope = logit_gradients(query, upstream, prefix_key, prefix_value, exists, shift, mean, SCALE)
            result += slope[:, None] * prefix_key
        for j in range(count):
            target, inside = apply_offset(position, first_offset + 3 * j, 1, lengths, AXIAL)
            ok = exists & inside
            at = key_token(target, ok, keys, prefix, INDEX)
            key = read_rows(k_start, at, k_strides[2], ok, DIM, WIDTH, WIDE)
            value = read_rows(v_start, at, v_strides[2], ok, DIM, WIDTH, WIDE)
            _, slope = logit_gradients(query, upstream, key, value, ok, shift, mean, SCALE)
            result += slope[:, None] * key
        write_rows(grad_q_start, token, grad_q_strides[2], exists, result * SCALE, DIM, WIDTH)


@triton.jit
def add_query(
    grad_key, grad_value, key, value, q_start, gradient_start, q_stride, gradient_stride, token, ok,
    logsumexp, means, backgrounds,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add what a query per lane gives to the gradients of the lane's key (before the scale) and value."""
    query = read_rows(q_start, token, q_stride, ok, DIM, WIDTH, WIDE)
    upstream = read_rows(gradient_start, token, gradient_stride, ok, DIM, WIDTH, WIDE)
    shift = tl.load(logsumexp + token, mask=ok, other=0.0)
    mean = tl.load(means + token, mask=ok, other=0.0)
    # w_ij and slope_ij anew from the saved L_i and D_i: no more than two numbers of a query are kept
    weight, slope = logit_gradients(query, upstream, key, value, ok, shift, mean, SCALE)
    if backgrounds is not None:
        weight -= tl.load(backgrounds + token, mask=ok, other=0.0)
    return grad_key + slope[:, None] * query, grad_value + weight[:, None] * upstream


@triton.jit(do_not_specialize=SIZES)
def key_gradients(
    q, k, v, gradient, grad_k, grad_v, part_k, part_v, logsumexp, means, backgrounds, base,
    offsets, counts, starts, queries, keys,
    q_strides, k_strides, v_strides, gradient_strides, grad_k_strides, grad_v_strides, lengths,
    items, heads, pattern_heads, num_offsets, prefix, num_queries, positions, walks,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    INDEX: tl.constexpr, AXIAL: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    # as in `query_gradients`, whose means and backgrounds are read; base is Σ_all b_i g_i, [items, DIM]
    item, part, alone = share_work(items, prefix * walks, tl.cdiv(positions, TILE))
    q_start, k_start = start_of(q, q_strides, item, heads), start_of(k, k_strides, item, heads)
    v_start, gradient_start = start_of(v, v_strides, item, heads), start_of(gradient, gradient_strides, item, heads)
    grad_k_start = start_of(grad_k, grad_k_strides, item, heads)
    grad_v_start = start_of(grad_v, grad_v_strides, item, heads)
    first_token = item.to(tl.int64) * (prefix + num_queries)
    logsumexp, means = logsumexp + first_token, means + first_token
    lane = tl.arange(0, TILE)
    grad_key, grad_value = tl.zeros([TILE, WIDTH], WIDE), tl.zeros([TILE, WIDTH], WIDE)
    if backgrounds is not None:
        backgrounds += first_token
    if alone:
        this, begin, end, row = find_walk(part, item, items, prefix, prefix + num_queries, WALK)
        one_key = read_row(k_start, this, k_strides[2], DIM, WIDTH, WIDE)
        one_value = read_row(v_start, this, v_strides[2], DIM, WIDTH, WIDE)
        for first in range(begin, end, TILE):
            at = (first + lane).to(INDEX)
            grad_key, grad_value = add_query(
                grad_key, grad_value, one_key, one_value, q_start, gradient_start, q_strides[2], gradient_strides[2],
                at, at < end, logsumexp, means, backgrounds, SCALE, DIM, WIDTH, WIDE,
            )  # fmt: skip
        key_sum, value_sum = tl.sum(grad_key, 0)[None, :] * SCALE, tl.sum(grad_value, 0)[None, :]
        if base is not None:
            # the background is added once, by the first of the token's programs
            if begin == 0:
                value_sum += read_row(base, item, DIM, DIM, WIDTH, WIDE)
        if part_k is None:
            write_row(grad_k_start, this, grad_k_strides[2], key_sum, DIM, WIDTH)
            write_row(grad_v_start, this, grad_v_strides[2], value_sum, DIM, WIDTH)
        else:
            write_row(part_k, row, DIM, key_sum, DIM, WIDTH)
            write_row(part_v, row, DIM, value_sum, DIM, WIDTH)
    else:
        position = part * TILE + lane
        exists = position < positions
        token = key_token(position, exists, keys, prefix, INDEX)
        key = read_rows(k_start, token, k_strides[2], exists, DIM, WIDTH, WIDE)
        value = read_rows(v_start, token, v_strides[2], exists, DIM, WIDTH, WIDE)
        pattern = item % pattern_heads
        first_offset, count = offsets + pattern * num_offsets * 3, tl.load(counts + pattern)
        for j in range(prefix):
            grad_key, grad_value = add_query(
                grad_key, grad_value, key, value, q_start, gradient_start, q_strides[2], gradient_strides[2],
                (lane * 0 + j).to(INDEX), exists, logsumexp, means, backgrounds, SCALE, DIM, WIDTH, WIDE,
            )  # fmt: skip
        for j in range(count):
            # the position from which the offset leads here
            source, inside = apply_offset(position, first_offset + 3 * j, -1, lengths, AXIAL)
            ok = exists & inside
            if starts is None:
                grad_key, grad_value = add_query(
                    grad_key, grad_value, key, value, q_start, gradient_start, q_strides[2], gradient_strides[2],
                    (prefix + source).to(INDEX), ok, logsumexp, means, backgrounds, SCALE, DIM, WIDTH, WIDE,
                )  # fmt: skip
            else:
                # unequal grids: a position has any number of queries; as many steps as the fullest of the tile's has
                begin = tl.load(starts + source, mask=ok, other=0)
                end = tl.load(starts + source + 1, mask=ok, other=0)
                for i in range(tl.max(end - begin, 0)):
                    number = begin + i
                    some = number < end
                    at = (prefix + tl.load(queries + number, mask=some, other=0)).to(INDEX)
                    grad_key, grad_value = add_query(
                        grad_key, grad_value, key, value, q_start, gradient_start, q_strides[2], gradient_strides[2],
                        at, some, logsumexp, means, backgrounds, SCALE, DIM, WIDTH, WIDE,
                    )  # fmt: skip
        write_rows(grad_k_start, token, grad_k_strides[2], exists, grad_key * SCALE, DIM, WIDTH)
        if base is not None:
            grad_value += read_row(base, item, DIM, DIM, WIDTH, WIDE)
        write_rows(grad_v_start, token, grad_v_strides[2], exists, grad_value, DIM, WIDTH)


# ---- the launches


class Saved(NamedTuple):
    """Numbers of each query that gradients of keys need, [rows, heads, n]; `query_gradients` writes the last two."""

    logsumexp: Tensor
    means: Tensor  # of the products of gradient and value, by the weights
    backgrounds: Tensor | None  # the weight of each key outside the pattern, None where these are excluded


def prepare(logsumexp: Tensor, zero_logit: bool) -> Saved:
    """Return these numbers, with room for those yet to be computed."""
    means = torch.empty_like(logsumexp)
    return Saved(logsumexp, means, torch.empty_like(means) if zero_logit else None)


def run_backward(
    views: Sequence[Tensor], tables: Sequence[Tensor | None], lengths: Sequence[int], prefix: int, zero_logit: bool,
    out: Tensor, logsumexp: Tensor, gradient: Tensor, gradients: Sequence[Tensor],
) -> None:  # fmt: skip
    """Write the gradients of q, k and v, given that of `out`, to `gradients`."""
    q, k, v = views
    if q.shape[0] == 0:
        return
    saved = prepare(logsumexp, zero_logit)
    grad_q, grad_k, grad_v = gradients
    about = (views, tables, lengths, prefix)
    run_query_gradients(*about, out, gradient, grad_q, saved)
    base = background_of(gradient, saved.backgrounds)
    run_key_gradients(*about, gradient, grad_k, grad_v, saved, base)


def run_query_gradients(
    views: Sequence[Tensor], tables: Sequence[Tensor | None], lengths: Sequence[int], prefix: int, out: Tensor,
    gradient: Tensor, grad_q: Tensor, saved: Saved, prefix_only: bool = False,
) -> None:  # fmt: skip
    """Write `grad_q` and, of `saved`, means and backgrounds; with `prefix_only` those of the prefix's queries alone."""
    q, k, v = views
    if prefix_only and prefix == 0:
        return
    arguments = describe(views, tables, lengths, prefix)
    launch, walks = launch_of("by_query", q.shape[3], q.dtype, arguments["num_queries"]), walks_of(k.shape[2])
    part_q = partial_results(saved.logsumexp, walks, prefix, q.shape[3])
    tiles = 0 if prefix_only else triton.cdiv(arguments["num_queries"], launch.tile)
    with on_device_of(q):
        query_gradients[(arguments["items"] * (prefix * walks + tiles),)](
            **strides_of(q=q, k=k, v=v, out=out, gradient=gradient, grad_q=grad_q), **arguments, **saved._asdict(),
            part_q=part_q, walks=walks, WALK=triton_launch.WALK, INDEX=index_type(*views, out, gradient, grad_q),
            steps=arguments["positions"].bit_length(), TILE=launch.tile, **launch.options,
        )  # fmt: skip
        if part_q is not None:
            grad_q[:, :, :prefix] = part_q.sum(0)


def run_key_gradients(
    views: Sequence[Tensor], tables: Sequence[Tensor | None], lengths: Sequence[int], prefix: int, gradient: Tensor,
    grad_k: Tensor, grad_v: Tensor, saved: Saved, base: Tensor | None, prefix_only: bool = False,
) -> None:  # fmt: skip
    """Write the gradients of keys and values, which add `base`; with `prefix_only` those of the prefix alone."""
    q, k, v = views
    if prefix_only and prefix == 0:
        return
    arguments = describe(views, tables, lengths, prefix)
    launch, walks = launch_of("by_key", q.shape[3], q.dtype, arguments["positions"]), walks_of(q.shape[2])
    part_k, part_v = (partial_results(saved.logsumexp, walks, prefix, q.shape[3]) for _ in "kv")
    tiles = 0 if prefix_only else triton.cdiv(arguments["positions"], launch.tile)
    with on_device_of(q):
        key_gradients[(arguments["items"] * (prefix * walks + tiles),)](
            **strides_of(q=q, k=k, v=v, gradient=gradient, grad_k=grad_k, grad_v=grad_v), **arguments,
            **saved._asdict(), part_k=part_k, part_v=part_v, walks=walks, WALK=triton_launch.WALK, base=base,
            INDEX=index_type(*views, gradient, grad_k, grad_v), TILE=launch.tile, **launch.options,
        )  # fmt: skip
        for result, parts in ((grad_k, part_k), (grad_v, part_v)):
            if parts is not None:
                result[:, :, :prefix] = parts.sum(0)
