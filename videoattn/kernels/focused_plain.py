"""Focused linear attention in torch's own operations: the plain form of `videoattn.kernels.focused`.

It has every derivative, and computes in the parameters' type, float32 or float64.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.kernels.layout import split

EPS = 1e-6


def attend_plainly(
    tensors: Sequence[Tensor], scale: Tensor, parameters: Sequence[Tensor | None], grid: Sequence[int], prefix: int,
    power: float,
) -> Tensor:  # fmt: skip
    """Return what `videoattn.kernels.focused.attend` returns."""
    by_frame, by_place, space, time, bias = parameters
    q, k, v = (x.to(scale.dtype) for x in split(tensors))
    out = mix(q, k, v, scale, positions_of(by_frame, by_place), prefix, power)
    if bias is not None:
        out = out + convolve(v[:, :, prefix:], space, time, bias, grid, prefix)
    return out.to(tensors[0].dtype)


def positions_of(by_frame: Tensor | None, by_place: Tensor | None) -> Tensor:
    """Return the embedding of each patch key, [frames·places, heads·d]."""
    if by_frame is None or by_place is None:
        positions = by_place if by_frame is None else by_frame
        assert positions is not None
        return positions
    return (by_frame[:, None] + by_place).flatten(0, 1)


def mix(q: Tensor, k: Tensor, v: Tensor, scale: Tensor, positions: Tensor, prefix: int, power: float) -> Tensor:
    """Return values mixed without softmax, [rows, groups·heads, Nq, d]."""
    heads = (len(scale) // q.shape[-1], q.shape[-1])
    q, k, v = (x.unflatten(1, (-1, heads[0])) for x in (q, k, v))  # [rows, groups, heads, N, d]
    if prefix > 0:
        positions = F.pad(positions, (0, 0, prefix, 0))
    k = k + positions.unflatten(1, heads).transpose(0, 1)
    scale = scale.unflatten(0, heads).unsqueeze(1)
    q, k = (focus((x.relu() + EPS) / scale, power) for x in (q, k))
    total = q @ k.sum(dim=-2).unsqueeze(-1) + k.shape[-2] * EPS
    return (q @ (k.transpose(-2, -1) @ v) / total).flatten(1, 2)


def focus(x: Tensor, power: float) -> Tensor:
    """Return x^p / ‖x^p‖ · ‖x‖ for positive x [rows, groups, heads, N, d], the norms over heads and d together.

    The map commutes with a positive factor, so each token is divided by its largest channel first: no power overflows,
    and no norm is zero. For the same reason the factor needs no gradient.
    """
    largest = x.detach().amax(dim=(2, 4), keepdim=True)
    x = x / largest
    powered = x.pow(power)
    norms: list[Tensor] = [torch.linalg.vector_norm(y, dim=(2, 4), keepdim=True) for y in (x, powered)]
    return powered * (largest * norms[0] / norms[1])


def convolve(
    patches: Tensor, space: Tensor | None, time: Tensor | None, bias: Tensor, grid: Sequence[int], prefix: int
) -> Tensor:
    """Convolve patches [rows, groups·heads, t·h·w, d] depthwise, to [rows, groups·heads, prefix + t·h·w, d].

    The result is zero for prefix tokens. Works with tokens slowest and channels fastest, the layout in which depthwise
    convolution is fast.
    """
    rows, heads, num_patches, d = patches.shape
    t, h, w = grid
    x = patches.transpose(1, 2).flatten(2)
    if space is not None:
        x = _depthwise(x.reshape(rows * t, h, w, heads * d), space.repeat(heads, 1, 1, 1))
    if time is not None:
        x = _depthwise(x.reshape(rows, t, h * w * heads, d), time)
    x = x.reshape(rows, num_patches, heads, d) + bias
    return F.pad(x, (0, 0, 0, 0, prefix, 0)).transpose(1, 2) if prefix > 0 else x.transpose(1, 2)


def _depthwise(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve maps [B, height, width, C] with one kernel per channel [C, 1, kh, kw], zeros beyond the border."""
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=padding, groups=kernel.shape[0]).permute(0, 2, 3, 1)
