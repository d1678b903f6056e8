"""The keys at constant offsets from each query: a head's few offsets in place of a table of pairs."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from videoattn.kernels.offsets import offset_attention
from videoattn.kernels.plain import attend_by_offsets, offset_mask
from videoattn.kernels.transforms import is_transformed


class OffsetPlan(nn.Module):
    """The keys that each head's queries attend to, described by offsets instead of listed.

    Keys stand on a raster of `lengths` (one axis, or t, h, w), at the cells `k_cells` [Nk, axes], and queries at
    `q_cells` [Nq, axes]. A patch query attends to every key whose cell differs from its own along one axis by one of
    `distances[axis][head]`, up or down, and to the `prefix` tokens; queries of the prefix attend to all. With `block`
    above 1, on a single axis, distances are those between blocks of so many consecutive positions, and whole blocks
    attend to whole blocks. Tables are int32 and no part of a checkpoint; those that would say that token i stands at
    position i are None.
    """

    offsets: Tensor  # [heads, K, 3]: the axis, the step along it, and the change of position (of block) that it makes
    counts: Tensor  # [heads]: how many of these offsets are in use
    starts: Tensor | None  # [positions + 1]: the index in `queries` at which each position's queries begin
    queries: Tensor | None  # [Nq]: patch queries ordered by position
    keys: Tensor | None  # [positions]: the patch key at each position

    def __init__(
        self,
        q_cells: np.ndarray,
        k_cells: np.ndarray,
        lengths: Sequence[int],
        distances: Sequence[Sequence[Sequence[int]]],
        prefix: int,
        block: int = 1,
    ) -> None:
        super().__init__()
        if block > 1 and len(lengths) > 1:
            raise ValueError(f"blocks of {block} positions need a raster of one axis, got {len(lengths)}")
        self.lengths, self.prefix, self.block = tuple(lengths), prefix, block
        self.num_positions, self.num_queries = len(k_cells), len(q_cells)
        strides = np.array([math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))])
        rows = head_offsets(distances, lengths)  # of a single axis these are the same, whatever its length
        offsets = np.zeros((len(rows), max(map(len, rows)), 3), dtype=np.int64)
        for head, row in enumerate(rows):
            offsets[head, : len(row)] = row
        at, key_at = q_cells @ strides, np.argsort(k_cells @ strides)
        order = np.argsort(at, kind="stable")
        in_place = np.array_equal(at, np.arange(self.num_positions))
        self.one_query_each = np.array_equal(at[order], np.arange(self.num_positions))
        tables = {
            "offsets": offsets,
            "counts": np.array([len(row) for row in rows]),
            "starts": None if in_place else np.searchsorted(at[order], np.arange(self.num_positions + 1)),
            "queries": None if in_place else order,
            "keys": None if np.array_equal(key_at, np.arange(self.num_positions)) else key_at,
        }
        for name, table in tables.items():
            buffer = None
            if table is not None:  # on the device where the caller builds modules, be it the meta device
                buffer = torch.as_tensor(table.astype(np.int32))
            self.register_buffer(name, buffer, persistent=False)
        num_keys = count_keys(q_cells, rows, lengths, block) + prefix
        self.fewest_keys = int(num_keys.min())
        # head and patch query of one that has no key, if there is one
        self.keyless = tuple(map(int, np.argwhere(num_keys == 0)[0])) if self.fewest_keys == 0 else None
        prefix_pairs = len(rows) * prefix * (prefix + self.num_positions)
        self.num_pairs = int(num_keys.sum()) + prefix_pairs

    def attend(self, tensors: Sequence[Tensor], zero_logit: bool = False) -> Tensor:
        """Return mixed values [rows, groups·heads, prefix + Nq, d] in the inputs' dtype, a token's heads side by side.

        `tensors` are q, k and v, [rows, groups·heads, n, d], or, where queries and keys are the same tokens, one packed
        [rows, groups·heads, n, 3, d]. They may be strided. `zero_logit` leaves keys outside the pattern logit 0 instead
        of excluding them. Sums are formed in float32, of float64 in float64. Every query needs a key. On a GPU blocks
        are of 16 positions, each with one query; raises ValueError for others.
        """
        if self.block > 1 and not self.one_query_each and tensors[0].is_cuda:
            raise ValueError("on a GPU attention between blocks accepts queries and keys on one grid alone")
        run = attend_by_offsets if is_transformed() else offset_attention
        mixed, _ = run(
            list(tensors), self.offsets, self.counts, self.starts, self.queries, self.keys, list(self.lengths),
            self.prefix, self.block, zero_logit, self.num_pairs,
        )  # fmt: skip
        return mixed

    def mask(self, start: int, stop: int) -> Tensor:
        """Return the mask of the keys of patch queries from `start` to `stop`, [heads, stop - start, prefix + Nk]."""
        tables = (self.offsets, self.counts, self.starts, self.queries, self.keys)
        return offset_mask(*tables, self.lengths, self.prefix, self.block, start, stop)


def head_offsets(distances: Sequence[Sequence[Sequence[int]]], lengths: Sequence[int]) -> list[np.ndarray]:
    """Return each head's offsets, [K, 3]: axis, step along it and change of position, by which they are sorted."""
    strides = [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]
    rows = []
    for sets in zip(*distances, strict=True):
        steps = {(axis if s else 0, sign * s) for axis, own in enumerate(sets) for s in own for sign in (1, -1)}
        offsets = sorted(((axis, s, s * strides[axis]) for axis, s in steps), key=lambda offset: offset[2])
        rows.append(np.array(offsets, dtype=np.int64).reshape(-1, 3))
    return rows


def count_keys(
    q_cells: np.ndarray, offsets: Sequence[np.ndarray], lengths: Sequence[int], block: int = 1
) -> np.ndarray:
    """Return the number of patch keys of each patch query, int64 [heads, Nq]."""
    totals = []
    if block > 1:
        sizes = np.diff(np.append(np.arange(0, lengths[0], block), lengths[0]))  # of the blocks
        for row in offsets:
            there = q_cells // block + row[:, 2]
            inside = (there >= 0) & (there < len(sizes))
            totals.append((sizes[np.where(inside, there, 0)] * inside).sum(axis=1))
        return np.stack(totals)
    for row in offsets:
        axes, steps, _ = row.T
        coordinates = q_cells[:, axes] + steps
        totals.append(((coordinates >= 0) & (coordinates < np.array(lengths)[axes])).sum(axis=1))
    return np.stack(totals)
