"""Positions of tokens in a clip: the (t, h, w) grid, its prefix tokens, and the sequences along an axis."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch
from torch import Tensor


class Axis(Enum):
    """The tokens that attend to each other: those of one frame, those of one location, or all of them."""

    SPACE = "space"
    TIME = "time"
    JOINT = "joint"


@dataclass(frozen=True)
class TokenGrid:
    """A token sequence: `prefix` class tokens, then t·h·w patch tokens with t slowest and w fastest."""

    t: int
    h: int
    w: int
    prefix: int = 0

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 1 or self.prefix < 0:
            raise ValueError(f"a grid needs t, h, w >= 1 and prefix >= 0, got {self}")

    @classmethod
    def of_clip(cls, clip_size: Sequence[int], patch: Sequence[int], prefix: int = 0) -> "TokenGrid":
        """Return the grid of a clip (T, H, W) in patches of as many frames, rows and columns.

        Raises ValueError naming the sizes that patches do not divide.
        """
        if len(clip_size) != 3 or not all(isinstance(n, int) and n >= 1 for n in clip_size):
            raise ValueError(f"clip_size expects (T, H, W), three whole numbers of at least 1, got {clip_size!r}")
        sizes = list(zip("THW", clip_size, patch, strict=True))
        if wrong := [f"{axis} expects a multiple of {step}" for axis, n, step in sizes if n % step]:
            raise ValueError(
                f"patches of {' x '.join(map(str, patch))} must divide the clip, got T x H x W = "
                f"{' x '.join(map(str, clip_size))}: {', '.join(wrong)}"
            )
        t, h, w = (n // step for _, n, step in sizes)
        return cls(t, h, w, prefix)

    @property
    def patches(self) -> int:
        return self.t * self.h * self.w

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches

    def along(self, axis: Axis) -> "TokenGrid":
        """Return the grid of one sequence along `axis`; along time there are no prefix tokens."""
        if axis is Axis.SPACE:
            return replace(self, t=1)
        if axis is Axis.TIME:
            return TokenGrid(self.t, 1, 1)
        return self

    def num_calls(self, axis: Axis) -> int:
        """Return the number of sequences along `axis` in one clip."""
        return {Axis.SPACE: self.t, Axis.TIME: self.h * self.w, Axis.JOINT: 1}[axis]

    def pooled(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> "TokenGrid":
        """Return the grid after a convolution with padding kernel // 2, which rounds up where division rounds down."""
        t, h, w = (
            (n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip((self.t, self.h, self.w), kernel, stride, strict=True)
        )
        return replace(self, t=t, h=h, w=w)


def cells_under(grid: TokenGrid, kv_grid: TokenGrid) -> np.ndarray:
    """Return the (t, h, w) cell of `kv_grid` under each patch token of `grid`, int64 [N, 3]."""
    axes = [np.arange(n) * n_k // n for n, n_k in ((grid.t, kv_grid.t), (grid.h, kv_grid.h), (grid.w, kv_grid.w))]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def fold(x: Tensor, grid: TokenGrid, axis: Axis) -> Tensor:
    """Arrange a stream [B, grid.tokens, ...] by frames: [B, F, M, ...].

    SPACE: F = t frames of M = prefix + h·w tokens, the prefix repeated for each frame. TIME: F = t and M = h·w, without
    the prefix. JOINT: F = 1 and M = all tokens. A view, except for SPACE with a prefix.
    """
    if axis is Axis.JOINT:
        return x.unsqueeze(1)
    patches: Tensor = x[:, grid.prefix :].unflatten(1, (grid.t, grid.h * grid.w))
    if axis is Axis.TIME or grid.prefix == 0:
        return patches
    prefix = x[:, : grid.prefix].unsqueeze(1).expand(-1, grid.t, *(-1,) * (x.dim() - 1))
    return torch.cat([prefix, patches], dim=2)


def unfold(x: Tensor, grid: TokenGrid, axis: Axis) -> Tensor:
    """Put [B, F, M, C] from `fold` back into a stream [B, grid.tokens, C].

    SPACE averages the prefix tokens over frames; TIME gives them zeros, so that a residual leaves them alone.
    """
    if axis is Axis.JOINT:
        return x.squeeze(1)
    if axis is Axis.TIME:
        patches = x.flatten(1, 2)
        return torch.cat([patches.new_zeros(x.shape[0], grid.prefix, x.shape[-1]), patches], dim=1)
    if grid.prefix == 0:
        return x.flatten(1, 2)
    return torch.cat([x[:, :, : grid.prefix].mean(dim=1), x[:, :, grid.prefix :].flatten(1, 2)], dim=1)


def split_calls(x: Tensor, axis: Axis) -> Tensor:
    """Arrange folded heads [B, F, M, heads, d] as sequences [rows, groups·heads, n, d], always as a view.

    SPACE and JOINT: one row per frame, n = M. TIME: one row per clip, n = F, and the M locations are groups of heads:
    a location's sequences lie next to each other in memory, so heads are where they fold without a copy.
    """
    if axis is Axis.TIME:
        return x.flatten(2, 3).transpose(1, 2)
    return x.flatten(0, 1).transpose(1, 2)


def merge_calls(x: Tensor, batch: int, num_heads: int, axis: Axis) -> Tensor:
    """Undo `split_calls` and join the heads: [rows, groups·heads, n, d] to [B, F, M, heads·d]."""
    x = x.transpose(1, 2)
    if axis is Axis.TIME:
        merged: Tensor = x.unflatten(2, (-1, num_heads)).flatten(3)
    else:
        merged = x.flatten(2).unflatten(0, (batch, -1))
    return merged
