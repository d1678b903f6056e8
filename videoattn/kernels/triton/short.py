"""Attention within many short sequences on a GPU: each program multiplies a tile of whole sequences, read in place.

Products of different sequences in a tile are excluded like those outside a pattern. A sequence has all its tokens in
one program, so that a single kernel forms all gradients. Along time this also saves copying sequences together.

A tile of TILE lanes holds TILE // length sequences one behind the other. Its products are TILE x TILE matrices, of
which the blocks on the diagonal are the sequences' own logits; all others are masked, as is what lies outside the
pattern. So few tokens are bound by memory, not by products, of which a tile for each sequence would waste more.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from videoattn.kernels.triton.arguments import describe_rows, on_device_of, strides_of
from videoattn.kernels.triton.launch import launch_of

SIZES = ["sequences", "length", "pattern_heads", "num_offsets"]


@triton.jit
def find_sequences(sequences, length, TILE: tl.constexpr):
    """Return each lane's row, its sequence within the row, its token within the sequence, and whether that exists."""
    # lanes that don't fill a sequence, and sequences beyond the last, stay unused
    lane = tl.arange(0, TILE)
    per_tile = TILE // length
    tiles = tl.cdiv(sequences, per_tile)
    sequence = tl.program_id(0) % tiles * per_tile + lane // length
    return tl.program_id(0) // tiles, sequence, lane % length, (lane < per_tile * length) & (sequence < sequences)


@triton.jit
def addresses(tensor, strides, row, sequence, token, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Return the addresses of the tokens' numbers [TILE, WIDTH], and which columns exist."""
    columns = tl.arange(0, WIDTH)[None, :]
    start = tensor + row.to(tl.int64) * strides[0]
    at = sequence.to(tl.int64) * strides[1] + token.to(tl.int64) * strides[2]
    return start + at[:, None] + columns, columns < DIM


@triton.jit
def read(tensor, strides, row, sequence, token, ok, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Read the tokens [TILE, WIDTH] in the type they have, zeros where not `ok`."""
    at, columns = addresses(tensor, strides, row, sequence, token, DIM, WIDTH)
    if DIM == WIDTH:
        tokens = tl.load(at, mask=ok[:, None], other=0.0)
    else:
        tokens = tl.load(at, mask=ok[:, None] & columns, other=0.0)
    return tokens


@triton.jit
def write(tensor, strides, row, sequence, token, ok, tokens, DIM: tl.constexpr, WIDTH: tl.constexpr):
    at, columns = addresses(tensor, strides, row, sequence, token, DIM, WIDTH)
    if DIM == WIDTH:
        tl.store(at, tokens.to(tensor.dtype.element_ty), mask=ok[:, None])
    else:
        tl.store(at, tokens.to(tensor.dtype.element_ty), mask=ok[:, None] & columns)


@triton.jit
def form_masks(sequence, token, ok, offsets, counts, length, pattern_heads, num_offsets, WORD: tl.constexpr):
    """Return masks [TILE, TILE]: the keys of the query's sequence, and those of them in its head's pattern."""
    same = (sequence[:, None] == sequence[None, :]) & ok[:, None] & ok[None, :]
    attended = same
    if offsets is not None:
        pattern = sequence % pattern_heads
        count = tl.load(counts + pattern)
        # each lane collects its keys as bits of a word, which shifts then spread to the lane's row of the mask
        seen = tl.zeros_like(token).to(WORD)  # a bit for each key
        for j in range(num_offsets):
            used = ok & (j < count)
            target = token + tl.load(offsets + (pattern * num_offsets + j) * 3 + 2, mask=used, other=0)
            inside = used & (target >= 0) & (target < length)
            # one that leads out of the sequence sets no bit
            bit = tl.full(token.shape, 1, WORD) << tl.where(inside, target, 0).to(WORD)
            seen |= tl.where(inside, bit, 0)
        attended = same & (((seen[:, None] >> token[None, :].to(WORD)) & 1) != 0)
    return same, attended


@triton.jit
def form_logits(query, key, same, attended, SCALE: tl.constexpr, ZERO_LOGIT: tl.constexpr):
    """Return logits [TILE, TILE], minus infinity where the key takes no part."""
    logits = tl.dot(query, tl.trans(key), input_precision="ieee") * SCALE
    if ZERO_LOGIT:
        logits = tl.where(same, tl.where(attended, logits, 0.0), -float("inf"))
    else:
        logits = tl.where(attended, logits, -float("inf"))
    return logits


@triton.jit(do_not_specialize=SIZES)
def attend_short(
    q, k, v, out, logsumexp, offsets, counts, q_strides, k_strides, v_strides, out_strides,
    sequences, length, pattern_heads, num_offsets,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, WORD: tl.constexpr,
    ZERO_LOGIT: tl.constexpr,
):  # fmt: skip
    # tensors are [rows, sequences, length, DIM] with strides by row, sequence and token; along time a sequence is one
    # head at one location, with the pattern of head sequence % pattern_heads; logsumexp is [rows, sequences, length]
    row, sequence, token, ok = find_sequences(sequences, length, TILE)
    query = read(q, q_strides, row, sequence, token, ok, DIM, WIDTH)
    key = read(k, k_strides, row, sequence, token, ok, DIM, WIDTH)
    value = read(v, v_strides, row, sequence, token, ok, DIM, WIDTH)
    same, attended = form_masks(sequence, token, ok, offsets, counts, length, pattern_heads, num_offsets, WORD)
    logits = form_logits(query, key, same, attended, SCALE, ZERO_LOGIT)
    # unused lanes have no logit: 0 and 1 keep infinity and NaN from their rows
    top = tl.where(ok, tl.max(logits, 1), 0.0)
    weights = tl.exp(logits - top[:, None])
    total = tl.where(ok, tl.sum(weights, 1), 1.0)
    mixed = tl.dot(weights.to(value.dtype), value, input_precision="ieee") / total[:, None]
    write(out, out_strides, row, sequence, token, ok, mixed, DIM, WIDTH)
    at = (row.to(tl.int64) * sequences + sequence) * length + token
    tl.store(logsumexp + at, top + tl.log(total), mask=ok)


@triton.jit(do_not_specialize=SIZES)
def short_gradients(
    q, k, v, gradient, grad_q, grad_k, grad_v, logsumexp, offsets, counts,
    q_strides, k_strides, v_strides, gradient_strides, grad_q_strides, grad_k_strides, grad_v_strides,
    sequences, length, pattern_heads, num_offsets,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, WORD: tl.constexpr,
    ZERO_LOGIT: tl.constexpr,
):  # fmt: skip
    row, sequence, token, ok = find_sequences(sequences, length, TILE)
    query = read(q, q_strides, row, sequence, token, ok, DIM, WIDTH)
    key = read(k, k_strides, row, sequence, token, ok, DIM, WIDTH)
    value = read(v, v_strides, row, sequence, token, ok, DIM, WIDTH)
    upstream = read(gradient, gradient_strides, row, sequence, token, ok, DIM, WIDTH)
    same, attended = form_masks(sequence, token, ok, offsets, counts, length, pattern_heads, num_offsets, WORD)
    logits = form_logits(query, key, same, attended, SCALE, ZERO_LOGIT)
    at = (row.to(tl.int64) * sequences + sequence) * length + token
    shift = tl.load(logsumexp + at, mask=ok, other=0.0)[:, None]
    # formulas as in triton/offsets_backward.py, with matrices for all pairs of the tile
    weights = tl.exp(tl.minimum(logits - shift, 0.0))  # not above 1, which rounding of large logits could make
    # D_i = Σ_j w_ij g_i·v_j from the tile itself: the output need not be read
    products = tl.dot(upstream, tl.trans(value), input_precision="ieee")
    slopes = weights * (products - tl.sum(weights * products, 1)[:, None])
    # a logit that zero_logit fixes at 0 has no gradient, but its weight counts in D and in the gradient of v
    slopes = (tl.where(attended, slopes, 0.0) * SCALE).to(query.dtype)
    by_value = tl.dot(tl.trans(weights.to(upstream.dtype)), upstream, input_precision="ieee")
    write(grad_v, grad_v_strides, row, sequence, token, ok, by_value, DIM, WIDTH)
    by_query = tl.dot(slopes, key, input_precision="ieee")
    write(grad_q, grad_q_strides, row, sequence, token, ok, by_query, DIM, WIDTH)
    by_key = tl.dot(tl.trans(slopes), query, input_precision="ieee")
    write(grad_k, grad_k_strides, row, sequence, token, ok, by_key, DIM, WIDTH)


# ---- the launch


def _describe(q: Tensor, offsets: Tensor | None, counts: Tensor | None, zero_logit: bool) -> dict[str, Any]:
    length, launch = q.shape[2], launch_of("short", q.shape[3], q.dtype, q.shape[2])
    numbers = {name: value for name, value in describe_rows(q).items() if name != "WIDE"}
    return {
        **numbers,
        "offsets": offsets,
        "counts": counts,
        "sequences": q.shape[1],
        "length": length,
        "pattern_heads": 1 if counts is None else len(counts),
        "num_offsets": 0 if offsets is None else offsets.shape[1],
        "WIDTH": max(numbers["WIDTH"], 16),  # the least that tensor cores take
        "TILE": launch.tile,
        "WORD": tl.uint32 if length <= 32 else tl.uint64,
        "ZERO_LOGIT": zero_logit,
        **launch.options,
    }


def _num_programs(q: Tensor, tile: int) -> int:
    return q.shape[0] * triton.cdiv(q.shape[1], tile // q.shape[2])


def run_forward(
    views: Sequence[Tensor], out: Tensor, logsumexp: Tensor, offsets: Tensor | None = None,
    counts: Tensor | None = None, zero_logit: bool = False,
) -> None:  # fmt: skip
    """Write mixed values to `out`, and each query's log Σ exp to `logsumexp`, [rows, groups·heads, n].

    `offsets` and `counts` are those of an `OffsetPlan` on one axis without a prefix; without them all pairs attend.
    """
    q, k, v = views
    if q.shape[0] == 0:
        return
    arguments = _describe(q, offsets, counts, zero_logit)
    with on_device_of(q):
        attend_short[(_num_programs(q, arguments["TILE"]),)](
            **strides_of(q=q, k=k, v=v, out=out), **arguments, logsumexp=logsumexp
        )


def run_backward(
    views: Sequence[Tensor], logsumexp: Tensor, gradient: Tensor, gradients: Sequence[Tensor],
    offsets: Tensor | None = None, counts: Tensor | None = None, zero_logit: bool = False,
) -> None:  # fmt: skip
    """Write the gradients of q, k and v, given that by the output, to `gradients`."""
    q, k, v = views
    if q.shape[0] == 0:
        return
    grad_q, grad_k, grad_v = gradients
    arguments = _describe(q, offsets, counts, zero_logit)
    with on_device_of(q):
        short_gradients[(_num_programs(q, arguments["TILE"]),)](
            **strides_of(q=q, k=k, v=v, gradient=gradient, grad_q=grad_q, grad_k=grad_k, grad_v=grad_v),
            **arguments, logsumexp=logsumexp,
        )  # fmt: skip
