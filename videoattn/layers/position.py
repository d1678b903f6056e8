"""Position embeddings, learned or computed, and their resizing to other grids."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videoattn.grid import TokenGrid


class ComputedTable(nn.Module):
    """A table that is computed by `make(*arguments)` on the CPU, and not learned or saved.

    `forward()` returns it on the device and in the type of the module. It is computed anew when those change, so going
    through a type of fewer digits loses none.
    """

    table: Tensor

    def __init__(self, make: Callable[..., Tensor], *arguments: Any) -> None:
        super().__init__()
        self.make, self.arguments = make, arguments
        place = torch.empty(0)  # on the device and in the type of the caller's context
        self.register_buffer("table", self._compute(place), persistent=False)

    def _compute(self, like: Tensor) -> Tensor:
        made = self.make(*self.arguments)
        return made.to(like.device, like.dtype)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "ComputedTable":
        super()._apply(fn, recurse)
        self.table = self._compute(self.table)
        return self

    def remade(self, *arguments: Any) -> "ComputedTable":
        """Return a table of other arguments, on the same device and of the same type."""
        return ComputedTable(self.make, *arguments).to(self.table)

    def forward(self) -> Tensor:
        return self.table


def sincos_table(num_tokens: int, dim: int) -> Tensor:
    """Return the fixed table [1, n, C] of sines (even channels) and cosines over flattened tokens.

    Channel j of token p has the angle p / 10000^(2·(j // 2) / C). Values are rounded to float32, as in the code.
    Source: VideoMAE (Tong et al., 2022) and its released code.
    """
    places = torch.arange(num_tokens, dtype=torch.float64, device="cpu")[:, None]
    channels = torch.arange(dim, device="cpu")
    angles = places / 10000.0 ** (2 * (channels // 2).double() / dim)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos())[None].float()


def sincos_embeddings(grid: TokenGrid, dim: int) -> tuple[Tensor, Tensor]:
    """Space embeddings [1, h·w, C] and time embeddings [1, t, C] of sines and cosines, to start learning from.

    Rows, columns and frames have a third of the channels each, so that none hides another; along an axis the slowest
    wave passes a small part of a period and the fastest two. With amplitude 3, place and time weigh as much as a
    patch's contents, which attention by place and time needs from the start.
    """
    size = dim // 6 * 2

    def waves(length: int) -> Tensor:
        periods = torch.linspace(0, 2, size // 2 + 1)[1:]
        angle = 2 * math.pi / length * torch.arange(length)[:, None] * periods
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    space = torch.zeros(grid.h, grid.w, dim)
    space[..., :size] = waves(grid.h)[:, None]
    space[..., size : 2 * size] = waves(grid.w)[None]
    time = torch.zeros(1, grid.t, dim)
    time[..., 2 * size : 3 * size] = waves(grid.t)
    return 3 * space.reshape(1, -1, dim), 3 * time


def resize_space(embedding: Tensor, size: tuple[int, int], new_size: tuple[int, int], prefix: int = 1) -> Tensor:
    """Resize [1, prefix + h·w, C] to another (h, w) by bicubic interpolation in two dimensions; the prefix stays.

    Differs: TimeSformer's loader interpolates the flattened grid in one dimension, which moves rows apart.
    """
    if embedding.shape[1] != prefix + size[0] * size[1]:
        raise ValueError(
            f"an embedding of {tuple(embedding.shape)} does not hold {prefix} + {size[0]}x{size[1]} positions"
        )
    if size == new_size:
        return embedding
    patches = rearrange(embedding[:, prefix:], "one (h w) c -> one c h w", h=size[0])
    patches = F.interpolate(patches.float(), size=new_size, mode="bicubic", align_corners=False)
    patches = rearrange(patches.to(embedding.dtype), "one c h w -> one (h w) c")
    return torch.cat([embedding[:, :prefix], patches], dim=1)


def resize_grid(embedding: Tensor, grid: TokenGrid, new_grid: TokenGrid) -> Tensor:
    """Resize [1, prefix + t·h·w, C] to another grid: bicubic within frames, then linear along time; the prefix stays.

    Source: VideoMAE's loader, which resizes frames alone.
    """
    if embedding.shape[1] != grid.tokens:
        raise ValueError(f"an embedding of {tuple(embedding.shape)} does not hold the {grid.tokens} tokens of {grid}")
    if grid == new_grid:
        return embedding
    frames = embedding[0, grid.prefix :].unflatten(0, (grid.t, grid.h * grid.w))
    frames = resize_space(frames, (grid.h, grid.w), (new_grid.h, new_grid.w), prefix=0)
    patches = resize_time(frames.transpose(0, 1), new_grid.t).transpose(0, 1).flatten(0, 1)
    return torch.cat([embedding[:, : grid.prefix], patches[None]], dim=1)


def resize_time(embedding: Tensor, new_length: int) -> Tensor:
    """Resize [1, T, C] to another number of frames by linear interpolation."""
    if embedding.shape[1] == new_length:
        return embedding
    resized = F.interpolate(embedding.float().transpose(1, 2), size=new_length, mode="linear", align_corners=False)
    return resized.transpose(1, 2).to(embedding.dtype)
