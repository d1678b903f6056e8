"""Fibottention's offset sets: at which token distances each head attends.

Source: Fibottention (arXiv 2406.19391). For head i over N tokens, with golden ratio φ, f = floor(iφ), a = floor(fφ) and
b = floor(fφ²), the Wythoff variant is the sequence a, b, a+b, ... and the modified variant prepends i-1, f; both end
at a window that grows with the head from W_MIN to N // 3.
"""

import math
import random
from typing import Literal, get_args

Variant = Literal["modified", "wythoff"]
HeadsPermutation = Literal["per_layer", "first_layer", "none"]

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
W_MIN = 5


def head_windows(num_tokens: int, num_heads: int) -> list[int]:
    """The largest offset of each head, from W_MIN to N // 3 (published float arithmetic, truncated)."""
    w_max = num_tokens // 3
    if num_heads == 1:
        return [w_max]
    return [W_MIN + int((w_max - W_MIN) / (num_heads - 1) * i) for i in range(num_heads)]


def published_rows(num_tokens: int, num_heads: int, variant: Variant) -> list[list[int]]:
    """Rows of the published tables, as they stand there: a row's first term is kept even above its window."""
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
    """Sorted offsets in 0..N-1 of each row, every one of them with an offset above 0 if N > 1.

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


def permute_heads(num_heads: int, layer: int, permutation: HeadsPermutation) -> list[int]:
    """Which row each head takes in `layer`: shuffled per layer, as in layer 0 everywhere, or row i for head i."""
    if permutation not in get_args(HeadsPermutation):
        expected = ", ".join(get_args(HeadsPermutation))
        raise ValueError(f"HEADS_PERMUTATION expects one of {expected}, got {permutation!r}")
    order = list(range(num_heads))
    if permutation != "none":
        random.Random(layer if permutation == "per_layer" else 0).shuffle(order)
    return order
