"""Learned position embeddings and their resizing to other grids."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_space(embedding: Tensor, size: tuple[int, int], new_size: tuple[int, int], prefix: int = 1) -> Tensor:
    """Resize [1, prefix + h·w, C] to another (h, w) by bicubic interpolation in two dimensions; the prefix stays.

    Differs: TimeSformer's loader interpolates the flattened grid in one dimension, which moves rows apart.
    """
    if embedding.shape[1] != prefix + size[0] * size[1]:
        raise ValueError(f"an embedding of {tuple(embedding.shape)} does not hold {prefix} + {size[0]}x{size[1]} positions")
    if size == new_size:
        return embedding
    patches = embedding[:, prefix:].transpose(1, 2).unflatten(2, size)
    patches = F.interpolate(patches.float(), size=new_size, mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :prefix], patches.to(embedding.dtype).flatten(2).transpose(1, 2)], dim=1)


def resize_time(embedding: Tensor, new_length: int) -> Tensor:
    """Resize [1, T, C] to another number of frames by linear interpolation."""
    if embedding.shape[1] == new_length:
        return embedding
    resized = F.interpolate(embedding.float().transpose(1, 2), size=new_length, mode="linear", align_corners=False)
    return resized.transpose(1, 2).to(embedding.dtype)
