"""Attention between blocks on a GPU, backward: weights are formed anew from the logits and each query's log Σ exp.

One kernel goes by blocks of queries, for their gradients, another by blocks of keys, for those of keys and values. Each
sum has one program, which forms it in a fixed order, so that results are the same every time. The gradients of the
prefix, whose tokens meet all others, are formed by the kernels of `triton/offsets_backward.py`, which also has the
formulas.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from videoattn.kernels.triton import offsets_backward as triton_offsets_backward
from videoattn.kernels.triton.arguments import index_type, on_device_of, strides_of
from videoattn.kernels.triton.background import background_of
from videoattn.kernels.triton.blocks import (
    SIZES,
    count_outside,
    count_steps,
    describe_blocks,
    find_block,
    find_offsets,
    find_partners,
)
from videoattn.kernels.triton.rows import read_row, read_rows, start_of, write_rows


@triton.jit
def form_weights(logits, shift, ok):
    """Return weights, 0 where not `ok`; `shift` is each query's log Σ exp.

    They are kept from exceeding 1, which the rounding of large logits and sums could make them do.
    """
    return tl.where(ok, tl.exp(tl.minimum(logits - shift, 0.0)), 0.0)


@triton.jit(do_not_specialize=SIZES)
def block_query_gradients(
    q, k, v, out, gradient, grad_q, logsumexp, means, backgrounds, offsets, counts, queries, keys,
    q_strides, k_strides, v_strides, out_strides, gradient_strides, grad_q_strides,
    heads, pattern_heads, num_offsets, prefix, positions,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    # one block of queries and their gradients stay in registers; keys pass in steps, as forward
    item, block, token, exists = find_block(positions, queries, prefix, BLOCK, INDEX)
    k_start, v_start = start_of(k, k_strides, item, heads), start_of(v, v_strides, item, heads)
    q_start, out_start = start_of(q, q_strides, item, heads), start_of(out, out_strides, item, heads)
    gradient_start = start_of(gradient, gradient_strides, item, heads)
    first_token = item.to(tl.int64) * (prefix + positions)
    query = read_rows(q_start, token, q_strides[2], exists, DIM, WIDTH, q.dtype.element_ty)
    upstream = read_rows(gradient_start, token, gradient_strides[2], exists, DIM, WIDTH, q.dtype.element_ty)
    mixed = read_rows(out_start, token, out_strides[2], exists, DIM, WIDTH, tl.float32)
    # D_i
    mean = tl.sum(upstream.to(tl.float32) * mixed, 1)
    shift = tl.load(logsumexp + first_token + token, mask=exists, other=0.0)
    tl.store(means + first_token + token, mean, mask=exists)
    first_offset, count = find_offsets(item, offsets, counts, pattern_heads, num_offsets)
    if backgrounds is not None:
        others = count_outside(block, first_offset, count, positions, TILE, BLOCK)
        tl.store(backgrounds + first_token + token, tl.where(others > 0, tl.exp(-shift), 0.0), mask=exists)
    result = tl.zeros([BLOCK, WIDTH], tl.float32)
    for step in range(count_steps(prefix, count, TILE, BLOCK)):
        at, ok = find_partners(step, block, 1, first_offset, count, keys, prefix, positions, TILE, BLOCK, INDEX)
        key = read_rows(k_start, at, k_strides[2], ok, DIM, WIDTH, k.dtype.element_ty)
        value = read_rows(v_start, at, v_strides[2], ok, DIM, WIDTH, v.dtype.element_ty)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * SCALE
        weights = form_weights(logits, shift[:, None], ok[None, :])
        # [BLOCK, TILE], the gradient by q·k
        slopes = weights * (tl.dot(upstream, tl.trans(value), input_precision="ieee") - mean[:, None]) * SCALE
        result = tl.dot(slopes.to(key.dtype), key, result, input_precision="ieee")
    grad_q_start = start_of(grad_q, grad_q_strides, item, heads)
    write_rows(grad_q_start, token, grad_q_strides[2], exists, result, DIM, WIDTH)


@triton.jit(do_not_specialize=SIZES)
def block_key_gradients(
    q, k, v, gradient, grad_k, grad_v, logsumexp, means, backgrounds, base, offsets, counts, queries, keys,
    q_strides, k_strides, v_strides, gradient_strides, grad_k_strides, grad_v_strides,
    heads, pattern_heads, num_offsets, prefix, positions,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    # one block of keys and values, and their gradients; the queries of the blocks that see it pass in steps
    item, block, token, exists = find_block(positions, keys, prefix, BLOCK, INDEX)
    q_start, gradient_start = start_of(q, q_strides, item, heads), start_of(gradient, gradient_strides, item, heads)
    k_start, v_start = start_of(k, k_strides, item, heads), start_of(v, v_strides, item, heads)
    key = read_rows(k_start, token, k_strides[2], exists, DIM, WIDTH, k.dtype.element_ty)
    value = read_rows(v_start, token, v_strides[2], exists, DIM, WIDTH, v.dtype.element_ty)
    first_token = item.to(tl.int64) * (prefix + positions)
    first_offset, count = find_offsets(item, offsets, counts, pattern_heads, num_offsets)
    grad_key, grad_value = tl.zeros([BLOCK, WIDTH], tl.float32), tl.zeros([BLOCK, WIDTH], tl.float32)
    if base is not None:
        grad_value += read_row(base, item, DIM, DIM, WIDTH, tl.float32)
    for step in range(count_steps(prefix, count, TILE, BLOCK)):
        at, ok = find_partners(step, block, -1, first_offset, count, queries, prefix, positions, TILE, BLOCK, INDEX)
        query = read_rows(q_start, at, q_strides[2], ok, DIM, WIDTH, q.dtype.element_ty)
        upstream = read_rows(gradient_start, at, gradient_strides[2], ok, DIM, WIDTH, q.dtype.element_ty)
        shift = tl.load(logsumexp + first_token + at, mask=ok, other=0.0)
        mean = tl.load(means + first_token + at, mask=ok, other=0.0)
        # [BLOCK, TILE], keys by queries: sums over queries are then products with nothing transposed
        logits = tl.dot(key, tl.trans(query), input_precision="ieee") * SCALE
        weights = form_weights(logits, shift[None, :], ok[None, :])
        slopes = weights * (tl.dot(value, tl.trans(upstream), input_precision="ieee") - mean[None, :]) * SCALE
        # `base` gives b_i g_i to every key: it is taken off those in the pattern, whose weight is w_ij
        if backgrounds is not None:
            weights -= tl.load(backgrounds + first_token + at, mask=ok, other=0.0)[None, :]
        # slopes and weights are rounded to the tensors' type for tensor cores; sums are float32
        grad_key = tl.dot(slopes.to(query.dtype), query, grad_key, input_precision="ieee")
        grad_value = tl.dot(weights.to(upstream.dtype), upstream, grad_value, input_precision="ieee")
    grad_k_start = start_of(grad_k, grad_k_strides, item, heads)
    write_rows(grad_k_start, token, grad_k_strides[2], exists, grad_key, DIM, WIDTH)
    grad_v_start = start_of(grad_v, grad_v_strides, item, heads)
    write_rows(grad_v_start, token, grad_v_strides[2], exists, grad_value, DIM, WIDTH)


def run_backward(
    views: Sequence[Tensor], tables: Sequence[Tensor | None], prefix: int, block: int, zero_logit: bool, out: Tensor,
    logsumexp: Tensor, gradient: Tensor, gradients: Sequence[Tensor],
) -> None:  # fmt: skip
    """Write the gradients of q, k and v, given that of `out`, to `gradients`."""
    q, k, v = views
    if q.shape[0] == 0:
        return
    programs, arguments = describe_blocks(views, tables, prefix, block)
    saved = triton_offsets_backward.prepare(logsumexp, zero_logit)
    grad_q, grad_k, grad_v = gradients
    arguments["INDEX"] = index_type(*views, out, gradient, *gradients)
    about = (views, tables, [q.shape[2] - prefix], prefix)
    with on_device_of(q):
        block_query_gradients[(programs,)](
            **strides_of(q=q, k=k, v=v, out=out, gradient=gradient, grad_q=grad_q), **arguments, **saved._asdict()
        )
        triton_offsets_backward.run_query_gradients(*about, out, gradient, grad_q, saved, prefix_only=True)
        base = background_of(gradient, saved.backgrounds)
        block_key_gradients[(programs,)](
            **strides_of(q=q, k=k, v=v, gradient=gradient, grad_k=grad_k, grad_v=grad_v), **arguments,
            **saved._asdict(), base=base,
        )  # fmt: skip
        triton_offsets_backward.run_key_gradients(*about, gradient, grad_k, grad_v, saved, base, prefix_only=True)
