"""Attention over constant offsets on a GPU, forward: a program takes some queries of a head and reads rows in place.

Each query has few keys, so that products are formed row by row and not by tensor cores. Offsets are read from their
tensor: one compiled kernel serves all lengths, heads and patterns. Queries of the prefix have programs of their own,
launched first, whose lanes each walk through a share of all keys; where these are many, several programs for a query.

In the notation of docs/attention.md, with L_i the log-sum-exp of the logits s_ij of query i, which backward needs too:

    exclude       o_i = Σ_S exp(s_ij - L_i) v_j                                  L_i = log Σ_S exp(s_ij)
    zero_logit    o_i = b_i Σ_all v_j + Σ_S (exp(s_ij - L_i) - b_i) v_j          L_i = log (others + Σ_S exp(s_ij))
                  b_i = exp(-L_i)
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
from videoattn.kernels.triton.rows import key_token, read_row, read_rows, start_of, write_row, write_rows

LOWEST = tl.constexpr(-1e30)  # where a running maximum begins: finite, so that differences of maxima are numbers


@triton.jit
def share_work(items, alone_per_item, tiles):
    """Return this program's item and part, and whether the part is one prefix token, not a tile: those go first."""
    # programs 0, 1, ... are the parts of prefix tokens, item by item, and those behind them the tiles
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
    # walk w of a token begins at w * WALK; the last one may be shorter
    token, walk = part % prefix, part // prefix
    begin = walk * WALK
    return token, begin, tl.minimum(begin + WALK, tokens), (walk * items + item) * prefix + token


@triton.jit
def apply_offset(position, offset, sign: tl.constexpr, lengths, AXIAL: tl.constexpr):
    """Return the positions that an offset, or with sign -1 its inverse, leads to, and which are on the raster."""
    # an offset is (axis, step, delta); on one axis the step is the delta, and inside means on the axis
    target = position + sign * tl.load(offset + 2)
    if AXIAL:
        axis, step = tl.load(offset), sign * tl.load(offset + 1)
        # `lengths` is a tuple, which an axis that is known at run time alone can't index
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
    # starts[low] <= query < starts[high], until `steps` halvings have left one position between them
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
    # lanes beyond the last query read its entry of the tables, and write nothing
    if starts is not None:
        number = tl.minimum(number, num_queries - 1)
        token, position = prefix + tl.load(queries + number), position_of(number, starts, positions, steps)
    else:
        token, position = prefix + number, number
    return token.to(INDEX), position, ok


@triton.jit
def count_others(position, first_offset, count, lengths, all_keys, prefix, AXIAL: tl.constexpr):
    """Count the keys outside the pattern of the query at each position."""
    # all keys but the prefix and those whose offset stays on the raster; offsets lead to different keys
    others = position * 0 + (all_keys - prefix)
    for j in range(count):
        _, inside = apply_offset(position, first_offset + 3 * j, 1, lengths, AXIAL)
        others -= inside.to(tl.int32)
    return others


@triton.jit
def add_keys(
    top, total, mixed, query, key, value, ok, has_others, SCALE: tl.constexpr, ZERO_LOGIT: tl.constexpr
):  # fmt: skip
    """Add a key per lane to the running maximum, the sum of exponentials, and the values weighted by these.

    For m = `top`, Z = `total` and o = `mixed` before division: m' = max(m, s), Z' = Z exp(m - m') + exp(s - m'), and
    o' = o exp(m - m') + exp(s - m') v, or with `ZERO_LOGIT` + (exp(s - m') - exp(-m')) v.
    """
    # a lane whose key is not `ok` adds exp(-inf) = 0
    logit = tl.where(ok, tl.sum(query * key, 1) * SCALE, -float("inf"))
    new_top = tl.maximum(top, logit)
    shrink, weight = tl.exp(top - new_top), tl.exp(logit - new_top)
    total = total * shrink + weight
    if ZERO_LOGIT:  # `mixed` began with every value once, with the weight exp(0 - m) that `shrink` keeps up to date
        weight = tl.where(ok & has_others, weight - tl.exp(-new_top), weight)
    return new_top, total, mixed * shrink[:, None] + weight[:, None] * value


# Not specialised on: Triton would compile kernels again for sizes that are 1 or divisible by 16.
SIZES = ["items", "heads", "pattern_heads", "num_offsets", "prefix", "num_queries", "positions", "steps", "walks"]


@triton.jit(do_not_specialize=SIZES)
def attend_forward(
    q, k, v, out, logsumexp, part_out, part_logsumexp, value_sums, offsets, counts, starts, queries, keys,
    q_strides, k_strides, v_strides, out_strides, lengths,
    items, heads, pattern_heads, num_offsets, prefix, num_queries, positions, steps, walks,
    SCALE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    INDEX: tl.constexpr, AXIAL: tl.constexpr, ZERO_LOGIT: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    # tensors are [rows, heads, tokens, DIM] with strides by row, head and token; tables are those of `OffsetPlan`;
    # logsumexp is [items, prefix + num_queries], value_sums [items, DIM], Σ_j v_j of all keys, None with exclude;
    # part_out [walks, items, prefix, DIM] and part_logsumexp hold what the `walks` programs of a prefix token find
    item, part, alone = share_work(items, prefix * walks, tl.cdiv(num_queries, TILE))
    q_start, k_start = start_of(q, q_strides, item, heads), start_of(k, k_strides, item, heads)
    v_start = start_of(v, v_strides, item, heads)
    lane = tl.arange(0, TILE)
    top, total = tl.full([TILE], LOWEST, WIDE), tl.zeros([TILE], WIDE)
    mixed = tl.zeros([TILE, WIDTH], WIDE)
    if alone:  # a name has one shape in both branches
        this, begin, end, row = find_walk(part, item, items, prefix, prefix + positions, WALK)
        prefix_query = read_row(q_start, this, q_strides[2], DIM, WIDTH, WIDE)
        # each lane takes every TILE-th token of this walk, with a maximum and sums of its own
        for first in range(begin, end, TILE):
            at = (first + lane).to(INDEX)
            ok = at < end
            key = read_rows(k_start, at, k_strides[2], ok, DIM, WIDTH, WIDE)
            value = read_rows(v_start, at, v_strides[2], ok, DIM, WIDTH, WIDE)
            top, total, mixed = add_keys(top, total, mixed, prefix_query, key, value, ok, ok, SCALE, False)
        # the lanes' sums brought to their common maximum; a lane without a key has `total` 0
        most = tl.max(top, 0)
        shrink = tl.exp(top - most)
        whole = tl.sum(total * shrink, 0)
        out_start = start_of(out, out_strides, item, heads)
        logsumexp += item.to(tl.int64) * (prefix + num_queries)
        one_mixed = tl.sum(mixed * shrink[:, None], 0)[None, :] / whole
        # one program has seen all keys and is done; else `run_forward` adds up the parts
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
            # the other keys' logit 0 is the first maximum, with weight exp(0 - 0) = 1 for every value
            top = tl.where(has_others, 0.0, top)
            mixed = tl.where(has_others[:, None], read_row(value_sums, item, DIM, DIM, WIDTH, WIDE), mixed)
        # the prefix's keys are the same for all lanes: one row each
        for j in range(prefix):
            prefix_key = read_row(k_start, j, k_strides[2], DIM, WIDTH, WIDE)
            prefix_value = read_row(v_start, j, v_strides[2], DIM, WIDTH, WIDE)
            top, total, mixed = add_keys(
                top, total, mixed, query, prefix_key, prefix_value, exists, has_others, SCALE, ZERO_LOGIT
            )
        # by offset: lanes are neighbouring positions, so that their keys are neighbouring rows
        for j in range(count):
            target, inside = apply_offset(position, first_offset + 3 * j, 1, lengths, AXIAL)
            ok = exists & inside
            at = key_token(target, ok, keys, prefix, INDEX)
            key = read_rows(k_start, at, k_strides[2], ok, DIM, WIDTH, WIDE)
            value = read_rows(v_start, at, v_strides[2], ok, DIM, WIDTH, WIDE)
            top, total, mixed = add_keys(top, total, mixed, query, key, value, ok, has_others, SCALE, ZERO_LOGIT)
        if ZERO_LOGIT:
            total += tl.where(has_others, others * tl.exp(-top), 0.0)
        # lanes without a query have no key either: no division of 0 by 0
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
            # each part is normalised by its own Σ exp: weighted by their shares they give the whole
            out[:, :, :prefix] = (part_logsumexp.softmax(0)[..., None] * part_out).sum(0)
            logsumexp[:, :, :prefix] = part_logsumexp.logsumexp(0)
