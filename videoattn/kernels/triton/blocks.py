"""Attention between blocks of consecutive positions on a GPU, forward: a program multiplies whole blocks as matrices.

Each takes the queries of one block and walks through the keys that they share: those of the prefix, then the blocks
that the head's offsets lead to, some in each step. Queries of the prefix attend to all keys, which makes no difference
between blocks and single positions: the kernel of `triton/offsets.py` takes them.

The arithmetic is that of `triton/offsets.py`, with TILE keys for BLOCK queries at a time in place of one key for each:
online softmax over logits [BLOCK, TILE], both products on tensor cores. All queries of a block see the same keys, so
that only the edges are masked: the last block, and steps with fewer blocks than fit.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from videoattn.kernels.triton import offsets as triton_offsets
from videoattn.kernels.triton.arguments import describe, index_type, on_device_of, strides_of
from videoattn.kernels.triton.launch import launch_of, supports_blocks
from videoattn.kernels.triton.offsets import LOWEST
from videoattn.kernels.triton.rows import key_token, read_row, read_rows, start_of, write_rows

SIZES = ["heads", "pattern_heads", "num_offsets", "prefix", "positions"]


@triton.jit
def find_block(positions, table, prefix, BLOCK: tl.constexpr, INDEX: tl.constexpr):
    """Return this program's item and block, the tokens of that block by `table`, and which of them exist."""
    blocks = tl.cdiv(positions, BLOCK)
    item, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    position = block * BLOCK + tl.arange(0, BLOCK)
    exists = position < positions
    return item, block, key_token(position, exists, table, prefix, INDEX), exists


@triton.jit
def find_offsets(item, offsets, counts, pattern_heads, num_offsets):
    """Return the address of a head's first offset, and how many it has; heads are whole groups of the pattern's."""
    pattern = item % pattern_heads
    return offsets + pattern * num_offsets * 3, tl.load(counts + pattern)


@triton.jit
def count_steps(prefix, count, TILE: tl.constexpr, BLOCK: tl.constexpr):
    return tl.cdiv(prefix, TILE) + tl.cdiv(count, TILE // BLOCK)


@triton.jit
def find_partners(
    step, block, sign: tl.constexpr, first_offset, count, table, prefix, positions,
    TILE: tl.constexpr, BLOCK: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Return the tokens that a block meets in one step, [TILE], and which exist: of the prefix, or of some blocks.

    The blocks are those that the head's offsets, or with sign -1 their inverses, lead to.
    """
    lane, prefix_steps = tl.arange(0, TILE), tl.cdiv(prefix, TILE)
    # a step has TILE lanes: TILE tokens of the prefix, or the keys of TILE / BLOCK offsets' blocks
    of_prefix = step < prefix_steps
    offset = (step - prefix_steps) * (TILE // BLOCK) + lane // BLOCK
    used = (offset >= 0) & (offset < count)
    # a delta counts blocks here
    there = block + sign * tl.load(first_offset + 3 * offset + 2, mask=used, other=0)
    position = there * BLOCK + lane % BLOCK
    inside = used & (there >= 0) & (position < positions)
    token = key_token(position, inside, table, prefix, INDEX)
    of_first = (step * TILE + lane).to(INDEX)
    return tl.where(of_prefix, of_first, token), tl.where(of_prefix, of_first < prefix, inside)


@triton.jit
def count_outside(block, first_offset, count, positions, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Count the keys outside the pattern of a block's queries."""
    others = positions
    for first in range(0, count, TILE):
        offset = first + tl.arange(0, TILE)
        used = offset < count
        begin = (block + tl.load(first_offset + 3 * offset + 2, mask=used, other=0)) * BLOCK
        # the last block may be short
        inside = used & (begin >= 0) & (begin < positions)
        others -= tl.sum(tl.where(inside, tl.minimum(positions - begin, BLOCK), 0), 0)
    return others


@triton.jit(do_not_specialize=SIZES)
def attend_blocks(
    q, k, v, out, logsumexp, value_sums, offsets, counts, queries, keys,
    q_strides, k_strides, v_strides, out_strides,
    heads, pattern_heads, num_offsets, prefix, positions,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    INDEX: tl.constexpr, ZERO_LOGIT: tl.constexpr,
):  # fmt: skip
    # as in `attend_forward` of triton/offsets.py; a program has one block of queries, their numbers in registers
    item, block, token, exists = find_block(positions, queries, prefix, BLOCK, INDEX)
    k_start, v_start = start_of(k, k_strides, item, heads), start_of(v, v_strides, item, heads)
    # in the tensors' own type, which tensor cores multiply; sums are float32
    query = read_rows(start_of(q, q_strides, item, heads), token, q_strides[2], exists, DIM, WIDTH, q.dtype.element_ty)
    first_offset, count = find_offsets(item, offsets, counts, pattern_heads, num_offsets)
    top, total = tl.full([BLOCK], LOWEST, tl.float32), tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, WIDTH], tl.float32)
    if ZERO_LOGIT:  # `mixed` begins with every value once
        others = count_outside(block, first_offset, count, positions, TILE, BLOCK)
        top = tl.where(others > 0, 0.0, top)
        mixed += tl.where(others > 0, read_row(value_sums, item, DIM, DIM, WIDTH, tl.float32), 0.0)
    for step in range(count_steps(prefix, count, TILE, BLOCK)):
        at, ok = find_partners(step, block, 1, first_offset, count, keys, prefix, positions, TILE, BLOCK, INDEX)
        # keys and values of one step, [TILE, WIDTH], zeros where there is none
        key = read_rows(k_start, at, k_strides[2], ok, DIM, WIDTH, k.dtype.element_ty)
        value = read_rows(v_start, at, v_strides[2], ok, DIM, WIDTH, v.dtype.element_ty)
        # "ieee": float32 is multiplied as it is, not rounded to TF32
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * SCALE
        logits = tl.where(ok[None, :], logits, -float("inf"))
        # online softmax as in `add_keys`, by the largest logit of the step; a step without a key changes nothing
        new_top = tl.maximum(top, tl.max(logits, 1))
        shrink, weights = tl.exp(top - new_top), tl.exp(logits - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        if ZERO_LOGIT:
            weights = tl.where(ok[None, :] & (others > 0), weights - tl.exp(-new_top)[:, None], weights)
        # weights are at most 1 and rounded to the values' type for the product; `total` sums them unrounded
        mixed = tl.dot(weights.to(value.dtype), value, mixed * shrink[:, None], input_precision="ieee")
        top = new_top
    if ZERO_LOGIT:
        total += tl.where(others > 0, others * tl.exp(-top), 0.0)
    out_start = start_of(out, out_strides, item, heads)
    write_rows(out_start, token, out_strides[2], exists, mixed / total[:, None], DIM, WIDTH)
    logsumexp += item.to(tl.int64) * (prefix + positions)
    tl.store(logsumexp + token, top + tl.log(total), mask=exists)


# ---- the launch


def describe_blocks(
    views: Sequence[Tensor], tables: Sequence[Tensor | None], prefix: int, block: int
) -> tuple[int, dict[str, Any]]:
    """Return the number of programs of a kernel here, and the arguments that describe a problem, by name."""
    q = views[0]
    described = describe(views, tables, [q.shape[2] - prefix], prefix)
    names = ("offsets", "counts", "queries", "keys", *SIZES, "SCALE", "DIM")
    launch = launch_of("blocks", q.shape[3], q.dtype, q.shape[2])
    return described["items"] * triton.cdiv(described["positions"], block), {
        **{name: described[name] for name in names},
        "WIDTH": max(described["WIDTH"], 16),  # the least that tensor cores take
        "TILE": max(launch.tile, block),
        "BLOCK": block,
        **launch.options,
    }


def _check(q: Tensor, k: Tensor, block: int) -> None:
    if not supports_blocks(block, q.shape[3], q.dtype):
        raise ValueError(
            f"on a GPU attention between blocks accepts 16 positions, heads of up to 128 and no float64, got blocks of "
            f"{block}, heads of {q.shape[3]} and {q.dtype}; use another implementation"
        )
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            f"on a GPU attention between blocks accepts queries and keys on one grid alone, got {q.shape[2]} queries "
            f"and {k.shape[2]} keys; use another implementation"
        )


def run_forward(
    views: Sequence[Tensor], tables: Sequence[Tensor | None], prefix: int, block: int, zero_logit: bool, out: Tensor,
    logsumexp: Tensor,
) -> None:  # fmt: skip
    """Write what `OffsetPlan.attend` returns to `out`, and each query's log Σ exp to `logsumexp`, [rows, heads, n].

    Takes plans with blocks of 16 positions, each with one query; raises ValueError for others.
    """
    q, k, v = views
    _check(q, k, block)
    if q.shape[0] == 0:
        return
    programs, arguments = describe_blocks(views, tables, prefix, block)
    with on_device_of(q):
        attend_blocks[(programs,)](
            **strides_of(q=q, k=k, v=v, out=out), **arguments, logsumexp=logsumexp,
            value_sums=v.sum(2, dtype=logsumexp.dtype) if zero_logit else None,
            ZERO_LOGIT=zero_logit, INDEX=index_type(q, k, v, out),
        )  # fmt: skip
    lengths = [q.shape[2] - prefix]
    triton_offsets.run_forward(views, tables, lengths, prefix, False, out, logsumexp, prefix_only=True)
