"""Fibottention's pattern: the token distances of each head, and the keys at these distances on a grid.

Source: Fibottention (arXiv 2406.19391). For head i over N tokens, with golden ratio φ, f = floor(iφ), a = floor(fφ) and
b = floor(fφ²), the Wythoff variant is the sequence a, b, a+b, ... and the modified variant prepends i-1, f; both end
at a window that grows with the head from W_MIN to N // 3.
"""

import math
import random
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from videoattn.grid import TokenGrid
from videoattn.kernels.offset_plan import head_offsets

Variant = Literal["modified", "wythoff"]
HeadsPermutation = Literal["per_layer", "first_layer", "none"]
Order = Literal["thw", "hwt"]

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
W_MIN = 5


def head_windows(num_tokens: int, num_heads: int) -> list[int]:
    """Return the largest offset of each head, from W_MIN to N // 3 (published float arithmetic, truncated)."""
    w_max = num_tokens // 3
    if num_heads == 1:
        return [w_max]
    return [W_MIN + int((w_max - W_MIN) / (num_heads - 1) * i) for i in range(num_heads)]


def published_rows(num_tokens: int, num_heads: int, variant: Variant) -> list[list[int]]:
    """Return the rows of the published tables unchanged: a row's first term is kept even above its window."""
    rows = []
    for i, window in enumerate(head_windows(num_tokens, num_heads), start=1):
        f = math.floor(i * GOLDEN_RATIO)
        a, b = math.floor(f * GOLDEN_RATIO), math.floor(f * GOLDEN_RATIO**2)
        row = [i - 1, f] if variant == "modified" else [a, b]
        while row[-1] <= window:
            row.append(row[-1] + row[-2])
        rows.append(row[:-1])
    return rows


def offset_sets(num_tokens: int, num_heads: int, variant: Variant, keep_self: bool) -> list[list[int]]:
    """Return the sorted offsets in 0..N-1 of each row; each row has an offset above 0 if N > 1.

    On short axes some rows hold no offset in 1..N-1; they repeat the R rows that do, in turn (offset 1 if there are
    none: a single head over two tokens). Differs: the published code fails there.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"VARIANT expects one of {', '.join(get_args(Variant))}, got {variant!r}")
    rows = [{s for s in row if s < num_tokens} for row in published_rows(num_tokens, num_heads, variant)]
    usable = [row for row in rows if row - {0}]
    if num_tokens > 1:
        usable = usable or [{1}]
        rows = [row if row - {0} else usable[i % len(usable)] for i, row in enumerate(rows)]
    return [sorted(row | {0} if keep_self else row) for row in rows]


def permute_heads(num_heads: int, block: int, permutation: HeadsPermutation) -> list[int]:
    """Return the row of each head in `block`: shuffled per block, shuffled as in block 0, or row i for head i."""
    if permutation not in get_args(HeadsPermutation):
        expected = ", ".join(get_args(HeadsPermutation))
        raise ValueError(f"HEADS_PERMUTATION expects one of {expected}, got {permutation!r}")
    order = list(range(num_heads))
    if permutation != "none":
        random.Random(block if permutation == "per_layer" else 0).shuffle(order)
    return order


def raster_positions(cells: np.ndarray, grid: TokenGrid, order: Order) -> np.ndarray:
    """Return the position of each cell when the grid is read in `order` (last letter fastest), int64 [N, 1]."""
    t, h, w = cells.T
    index: np.ndarray = (t * grid.h + h) * grid.w + w if order == "thw" else (h * grid.w + w) * grid.t + t
    return index[:, None]


def key_table(
    q_cells: np.ndarray,
    k_cells: np.ndarray,
    lengths: Sequence[int],
    offsets: Sequence[Sequence[Sequence[int]]],
    prefix: int,
    block: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of each patch query, with the prefix: int64 [heads, Nq, K] and their numbers [heads, Nq].

    Cells [N, axes] are coordinates below `lengths`; a key attends that differs from the query along one axis by one of
    `offsets[axis][head]`, or, on a single axis, whose `block` of so many consecutive positions does from the query's.
    A row lists its keys in ascending order and then repeats the first.
    """
    num_keys = len(k_cells)
    token_at = np.argsort(np.ravel_multi_index(tuple(k_cells.T), tuple(lengths)))
    strides = np.array([math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))])
    here = (q_cells @ strides)[:, None]
    rows = []
    for own in head_offsets(offsets, lengths):
        axes, steps, deltas = own.T
        if block > 1:
            there = ((here // block + deltas)[..., None] * block + np.arange(block)).reshape(len(here), -1)
            inside = (there >= 0) & (there < num_keys)
        else:
            moved = q_cells[:, axes] + steps
            there, inside = here + deltas, (moved >= 0) & (moved < np.array(lengths)[axes])
        keys = token_at[np.where(inside, there, 0)]
        rows.append(np.sort(np.where(inside, keys, num_keys), axis=1))
    counts = np.stack([(keys < num_keys).sum(axis=1) for keys in rows])
    table = np.full((*counts.shape, prefix + counts.max()), prefix + num_keys)
    table[..., :prefix] = np.arange(prefix)
    for head, keys in enumerate(rows):
        width = min(keys.shape[1], counts.max())
        table[head, :, prefix : prefix + width] = prefix + keys[:, :width]
    return np.where(table < prefix + num_keys, table, table[..., :1]), counts + prefix
