"""Attention over constant offsets on a GPU, forward: a program takes some queries of a head and reads rows in place.

Each query has few keys, so that products are formed row by row and not by tensor cores. Offsets are read from their
tensor: one compiled kernel serves all lengths, heads and patterns. Queries of the prefix have programs of their own,
launched first, whose lanes each walk through a share of all keys; where these are many, several programs for a query.
"""

from collections.abc import Sequence

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
from videoattn.kernels.triton.launch import launch_of

LOWEST = tl.constexpr(-1e30)  # where a running maximum begins: finite, so that differences of maxima are numbers


@triton.jit
def share_work(items, alone_per_item, tiles):
    """Return this program's item and part, and whether the part is one prefix token, not a tile: those go first."""
    program = tl.program_id(0)
    alone = program < items * alone_per_item
    if alone:
        per_item = alone_per_item
    else:
        per_item = tiles
        program -= items * alone_per_item
    return program // per_item, program % per_item, alone


@triton.jit
def find_walk(part, item, items, prefix, tokens, WALK: tl.constexpr):
    """Return a prefix token's index, the tokens that this program walks through, and the row of its partial result."""
    token, walk = part % prefix, part // prefix
    begin = walk * WALK
    return token, begin, tl.minimum(begin + WALK, tokens), (walk * items + item) * prefix + token


@triton.jit
def start_of(tensor, strides, item, heads):
    """Return the address at which the tokens of a head of a row begin."""
    row, head = (item // heads).to(tl.int64), (item % heads).to(tl.int64)
    return tensor + row * strides[0] + head * strides[1]


@triton.jit
def addresses(start, tokens, stride, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Return addresses of the tokens' numbers [TILE, WIDTH], and which columns exist; `tokens` have the index type."""
    columns = tl.arange(0, WIDTH)[None, :]
    return start + tokens[:, None] * stride + columns, columns < DIM


@triton.jit
def read_rows(start, tokens, stride, ok, DIM: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Read rows [TILE, WIDTH] in the computing type, zeros where not `ok`."""
    at, columns = addresses(start, tokens, stride, DIM, WIDTH)
    if DIM == WIDTH:
        rows = tl.load(at, mask=ok[:, None], other=0.0)
    else:
        rows = tl.load(at, mask=ok[:, None] & columns, other=0.0)
    return rows.to(WIDE)


@triton.jit
def write_rows(start, tokens, stride, ok, rows, DIM: tl.constexpr, WIDTH: tl.constexpr):
    at, columns = addresses(start, tokens, stride, DIM, WIDTH)
    if DIM == WIDTH:
        tl.store(at, rows.to(start.dtype.element_ty), mask=ok[:, None])
    else:
        tl.store(at, rows.to(start.dtype.element_ty), mask=ok[:, None] & columns)


@triton.jit
def read_row(start, token, stride, DIM: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Read one row as [1, WIDTH]."""
    columns = tl.arange(0, WIDTH)
    row = tl.load(start + tl.cast(token, tl.int64) * stride + columns, mask=columns < DIM, other=0.0)
    return row.to(WIDE)[None, :]


@triton.jit
def write_row(start, token, stride, row, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Write one row [1, WIDTH]."""
    columns = tl.arange(0, WIDTH)[None, :]
    at = start + tl.cast(token, tl.int64) * stride + columns
    tl.store(at, row.to(start.dtype.element_ty), mask=columns < DIM)


@triton.jit
def apply_offset(position, offset, sign: tl.constexpr, lengths, AXIAL: tl.constexpr):
    """Return the positions that an offset, or with sign -1 its inverse, leads to, and which are on the raster."""
    target = position + sign * tl.load(offset + 2)
    if AXIAL:
        axis, step = tl.load(offset), sign * tl.load(offset + 1)
        plane = lengths[1] * lengths[2]
        inner = tl.where(axis == 1, position % plane // lengths[2], position % lengths[2])
        coordinate = tl.where(axis == 0, position // plane, inner) + step
        length = tl.where(axis == 0, lengths[0], tl.where(axis == 1, lengths[1], lengths[2]))
        inside = (coordinate >= 0) & (coordinate < length)
    else:
        inside = (target >= 0) & (target < lengths[0])
    return target, inside


@triton.jit
def position_of(query, starts, positions, steps):
    """Find the last position with starts[position] <= query by bisection: that of the `query`-th query."""
    low = query * 0
    high = low + positions
    for _ in range(steps):
        middle = (low + high) // 2
        after = tl.load(starts + middle) <= query
        low = tl.where(after, middle, low)
        high = tl.where(after, high, middle)
    return low


@triton.jit
def find_queries(
    tile, starts, queries, prefix, num_queries, positions, steps, TILE: tl.constexpr, INDEX: tl.constexpr
):  # fmt: skip
    """Return tokens and positions of a tile's queries, taken in the order of positions, and which of them exist."""
    number = tile * TILE + tl.arange(0, TILE)
    ok = number < num_queries
    if starts is not None:
        number = tl.minimum(number, num_queries - 1)
        token, position = prefix + tl.load(queries + number), position_of(number, starts, positions, steps)
    else:
        token, position = prefix + number, number
    return token.to(INDEX), position, ok


@triton.jit
def key_token(position, ok, keys, prefix, INDEX: tl.constexpr):
    if keys is not None:
        position = tl.load(keys + position, mask=ok, other=0)
    return (prefix + position).to(INDEX)


@triton.jit
def count_others(position, first_offset, count, lengths, all_keys, prefix, AXIAL: tl.constexpr):
    """Count the keys outside the pattern of the query at each position."""
    others = position * 0 + (all_keys - prefix)
    for j in range(count):
        _, inside = apply_offset(position, first_offset + 3 * j, 1, lengths, AXIAL)
        others -= inside.to(tl.int32)
    return others


@triton.jit
def add_keys(
    top, total, mixed, query, key, value, ok, has_others, SCALE: tl.constexpr, ZERO_LOGIT: tl.constexpr
):  # fmt: skip
    """Add a key per lane to the running maximum, the sum of exponentials, and the values weighted by these."""
    logit = tl.where(ok, tl.sum(query * key, 1) * SCALE, -float("inf"))
    new_top = tl.maximum(top, logit)
    shrink, weight = tl.exp(top - new_top), tl.exp(logit - new_top)
    total = total * shrink + weight
    if ZERO_LOGIT:  # `mixed` began with every value once
        weight = tl.where(ok & has_others, weight - tl.exp(-new_top), weight)
    return new_top, total, mixed * shrink[:, None] + weight[:, None] * value


SIZES = ["items", "heads", "pattern_heads", "num_offsets", "prefix", "num_queries", "positions", "steps", "walks"]


@triton.jit(do_not_specialize=SIZES)
def attend_forward(
    q, k, v, out, logsumexp, part_out, part_logsumexp, value_sums, offsets, counts, starts, queries, keys,
    q_strides, k_strides, v_strides, out_strides, lengths,
    items, heads, pattern_heads, num_offsets, prefix, num_queries, positions, steps, walks,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    INDEX: tl.constexpr, AXIAL: tl.constexpr, ZERO_LOGIT: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    item, part, alone = share_work(items, prefix * walks, tl.cdiv(num_queries, TILE))
    q_start, k_start = start_of(q, q_strides, item, heads), start_of(k, k_strides, item, heads)
    v_start = start_of(v, v_strides, item, heads)
    lane = tl.arange(0, TILE)
    top, total = tl.full([TILE], LOWEST, WIDE), tl.zeros([TILE], WIDE)
    mixed = tl.zeros([TILE, WIDTH], WIDE)
    if alone:  # a name has one shape in both branches
        this, begin, end, row = find_walk(part, item, items, prefix, prefix + positions, WALK)
        prefix_query = read_row(q_start, this, q_strides[2], DIM, WIDTH, WIDE)
        for first in range(begin, end, TILE):
            at = (first + lane).to(INDEX)
            ok = at < end
            key = read_rows(k_start, at, k_strides[2], ok, DIM, WIDTH, WIDE)
            value = read_rows(v_start, at, v_strides[2], ok, DIM, WIDTH, WIDE)
            top, total, mixed = add_keys(top, total, mixed, prefix_query, key, value, ok, ok, SCALE, False)
        most = tl.max(top, 0)
        shrink = tl.exp(top - most)
        whole = tl.sum(total * shrink, 0)
        out_start = start_of(out, out_strides, item, heads)
        logsumexp += item.to(tl.int64) * (prefix + num_queries)
        one_mixed = tl.sum(mixed * shrink[:, None], 0)[None, :] / whole
        if part_out is None:
            write_row(out_start, this, out_strides[2], one_mixed, DIM, WIDTH)
            tl.store(logsumexp + this, most + tl.log(whole))
        else:
            write_row(part_out, row, DIM, one_mixed, DIM, WIDTH)
            tl.store(part_logsumexp + row, most + tl.log(whole))
    else:
        token, position, exists = find_queries(
            part, starts, queries, prefix, num_queries, positions, steps, TILE, INDEX
        )
        query = read_rows(q_start, token, q_strides[2], exists, DIM, WIDTH, WIDE)
        pattern = item % pattern_heads  # heads are whole groups of the pattern's
        first_offset, count = offsets + pattern * num_offsets * 3, tl.load(counts + pattern)
        has_others = exists
        if ZERO_LOGIT:
            others = count_others(position, first_offset, count, lengths, prefix + positions, prefix, AXIAL)
            has_others = others > 0
            top = tl.where(has_others, 0.0, top)
            mixed = tl.where(has_others[:, None], read_row(value_sums, item, DIM, DIM, WIDTH, WIDE), mixed)
        for j in range(prefix):
            prefix_key = read_row(k_start, j, k_strides[2], DIM, WIDTH, WIDE)
            prefix_value = read_row(v_start, j, v_strides[2], DIM, WIDTH, WIDE)
            top, total, mixed = add_keys(
                top, total, mixed, query, prefix_key, prefix_value, exists, has_others, SCALE, ZERO_LOGIT
            )
        for j in range(count):
            target, inside = apply_offset(position, first_offset + 3 * j, 1, lengths, AXIAL)
            ok = exists & inside
            at = key_token(target, ok, keys, prefix, INDEX)
            key = read_rows(k_start, at, k_strides[2], ok, DIM, WIDTH, WIDE)
            value = read_rows(v_start, at, v_strides[2], ok, DIM, WIDTH, WIDE)
            top, total, mixed = add_keys(top, total, mixed, query, key, value, ok, has_others, SCALE, ZERO_LOGIT)
        if ZERO_LOGIT:
            total += tl.where(has_others, others * tl.exp(-top), 0.0)
        total = tl.where(exists, total, 1.0)
        out_start = start_of(out, out_strides, item, heads)
        logsumexp += item.to(tl.int64) * (prefix + num_queries)
        write_rows(out_start, token, out_strides[2], exists, mixed / total[:, None], DIM, WIDTH)
        tl.store(logsumexp + token, top + tl.log(total), mask=exists)


# ---- the launch


def run_forward(
    views: Sequence[Tensor], tables: Sequence[Tensor | None], lengths: Sequence[int], prefix: int, zero_logit: bool,
    out: Tensor, logsumexp: Tensor, prefix_only: bool = False,
) -> None:  # fmt: skip
    """Write what `OffsetPlan.attend` returns to `out`, and each query's log Σ exp to `logsumexp`, [rows, heads, n].

    With `prefix_only` those of the prefix's queries alone, for which offsets and `zero_logit` don't matter.
    """
    q, k, v = views
    if q.shape[0] == 0 or prefix_only and prefix == 0:
        return
    arguments = describe(views, tables, lengths, prefix)
    launch = launch_of("forward", q.shape[3], q.dtype, arguments["num_queries"])
    walks = walks_of(k.shape[2])
    part_logsumexp = partial_results(logsumexp, walks, prefix)
    part_out = partial_results(logsumexp, walks, prefix, q.shape[3])
    tiles = 0 if prefix_only else triton.cdiv(arguments["num_queries"], launch.tile)
    with on_device_of(q):
        attend_forward[(arguments["items"] * (prefix * walks + tiles),)](
            **strides_of(q=q, k=k, v=v, out=out), **arguments, logsumexp=logsumexp,
            part_out=part_out, part_logsumexp=part_logsumexp, walks=walks, WALK=triton_launch.WALK,
            value_sums=v.sum(2, dtype=logsumexp.dtype) if zero_logit else None,
            steps=arguments["positions"].bit_length(), ZERO_LOGIT=zero_logit, INDEX=index_type(q, k, v, out),
            TILE=launch.tile, **launch.options,
        )  # fmt: skip
        if part_out is not None and part_logsumexp is not None:
            out[:, :, :prefix] = (part_logsumexp.softmax(0)[..., None] * part_out).sum(0)
            logsumexp[:, :, :prefix] = part_logsumexp.logsumexp(0)
