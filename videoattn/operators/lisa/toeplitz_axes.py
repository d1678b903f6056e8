"""Sums over relative positions on a grid, axis by axis: harmonics of h and w, a Toeplitz product along t.

The sums of `toeplitz.py`, for grids on which matrices of pairs are too large. All of it is products of small real
matrices, batched over what is contiguous, which on most machines run many times as fast as transforms of the same short
axes. Along h tokens are taken to h complex frequencies, odd multiples of π/2h, of which real numbers need no other;
along w to 2w - 1 frequencies, multiples of 2π/(2w - 1). In both, the relative positions from 1 - n to n - 1 are told
apart, so the product with a table's harmonics is exact after the way back. For each pair of frequencies a complex
Toeplitz matrix over t mixes the frames.  Tokens stand in the order h, w, t here, so that no step has to copy what the
one before has written.
"""

import math

import torch
from torch import Tensor

from videoattn.grid import TokenGrid
from videoattn.operators.lisa.toeplitz import unwrapped, windows


def table_harmonics(table: Tensor, grid: TokenGrid, wrap: bool, dtype: torch.dtype) -> Tensor:
    """Return [heads, h·(2w-1), 2, L, 2, 2t-1]: complex factors of frequency pairs as 2×2 matrices, t reversed."""
    table = unwrapped(table, grid, wrap).to(dtype).flip(2)
    of_h = _harmonics_of_reals(grid.h, 1 - grid.h, table)
    of_w = _harmonics_of_complex(grid.w, 1 - grid.w, table) / (grid.h * (2 * grid.w - 1))
    half = torch.matmul(of_h, table).unflatten(3, (grid.h, -1)).flatten(4)  # [heads, L, 2t-1, h, 2·(2w-1)]
    whole = torch.matmul(half, of_w.T).unflatten(4, (-1, 2)).permute(5, 0, 3, 4, 1, 2)
    re, im = whole.flatten(2, 3).unbind(0)  # [heads, h·(2w-1), L, 2t-1]
    return torch.stack([torch.stack([re, -im], 3), torch.stack([im, re], 3)], 2)


def frame_matrices(harmonics: Tensor) -> Tensor:
    """Map [..., 2, L, 2, 2t-1] to Toeplitz matrices [..., 2·t·L, 2·t] over frames."""
    t = (harmonics.shape[-1] + 1) // 2
    return windows(harmonics, -1, t, at=-4).flatten(-2).flatten(-4, -2)


def axes_sums(x: Tensor, matrices: Tensor, grid: TokenGrid) -> Tensor:
    """Map [h·w·t, columns] and `frame_matrices` of one head [h·(2w-1), 2·t·L, 2·t] to [h·w·t, L, columns]."""
    of_h, of_w = _harmonics_of_reals(grid.h, 0, x), _harmonics_of_complex(grid.w, 0, x)
    columns = x.shape[1]
    x = of_h @ x.reshape(grid.h, -1)  # h·2 × w·t·columns
    x = torch.matmul(of_w, x.reshape(grid.h, 2 * grid.w, -1))  # h × (2w-1)·2 × t·columns
    x = torch.bmm(matrices, x.reshape(len(matrices), 2 * grid.t, columns))  # h·(2w-1) × 2·t·L × columns
    x = torch.matmul(of_w.T, x.reshape(grid.h, 2 * (2 * grid.w - 1), -1))  # h × 2·w × t·L·columns
    x = of_h.T @ x.reshape(2 * grid.h, -1)  # h × w·t·L·columns
    return x.reshape(grid.h * grid.w * grid.t, matrices.shape[1] // (2 * grid.t), columns)


def by_columns(x: Tensor, grid: TokenGrid) -> Tensor:
    """Map [B, N, d] in the order t, h, w to [N, B, d] in the order h, w, t."""
    ordered: Tensor = x.unflatten(1, (grid.t, grid.h, grid.w)).permute(2, 3, 1, 0, 4).flatten(0, 2)
    return ordered


def by_rows(x: Tensor, grid: TokenGrid) -> Tensor:
    """Undo `by_columns`."""
    rows: Tensor = x.unflatten(0, (grid.h, grid.w, grid.t)).permute(3, 2, 0, 1, 4).flatten(1, 3)
    return rows


def _harmonics_of_reals(n: int, first: int, like: Tensor) -> Tensor:
    """Return [2·n, positions]: re and im at n odd frequencies, of tokens at positions first, first + 1, ... n - 1."""
    at = torch.arange(first, n, device=like.device, dtype=torch.float64)
    frequency = (torch.arange(n, device=like.device, dtype=torch.float64) + 0.5) * (math.pi / n)
    phase = frequency[:, None, None] * at
    return torch.cat([phase.cos(), -phase.sin()], 1).flatten(0, 1).to(like.dtype)


def _harmonics_of_complex(n: int, first: int, like: Tensor) -> Tensor:
    """Return [(2n-1)·2, 2·positions]: the same at 2n - 1 frequencies, of re and im at each position."""
    at = torch.arange(first, n, device=like.device, dtype=torch.float64)
    frequency = torch.arange(2 * n - 1, device=like.device, dtype=torch.float64) * (2 * math.pi / (2 * n - 1))
    phase = frequency[:, None] * at
    cos, sin = phase.cos(), phase.sin()
    return torch.stack([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 1).flatten(0, 1).to(like.dtype)


def axes_macs(num_channels: int, num_patterns: int, grid: TokenGrid) -> int:
    """Return the MACs of `axes_sums` for one row with heads·d channels."""
    t, h, w, m = grid.t, grid.h, grid.w, 2 * grid.w - 1
    transforms = 2 * h * h * w * t + h * 2 * m * 2 * w * t
    return num_channels * ((1 + num_patterns) * transforms + h * m * (2 * t * num_patterns) * (2 * t))
