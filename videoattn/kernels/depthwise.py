"""Depthwise 3-D convolution of token grids with channels last, several times faster on a CPU than torch's own form.

Where `videoattn.kernels.pool` can be compiled, that is used instead. Torch's own form is fast forward once channels lie
last in memory, but slow backward; there the gradient by the input is formed from small convolutions of the gradient by
the output, one per phase of the stride, and the gradient by the weights from 2-D convolutions, one per temporal tap.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from videoattn.kernels.pool import can_pool, pool_tokens, pooled_size
from videoattn.kernels.transforms import is_transformed, kernel_operation, refuses_tangents

REMEDY = "call the function depthwise_conv3d"


def depthwise_conv3d(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Convolve each channel of [B, t, h, w, C] with its own filter of `weight` [C, kt, kh, kw], padded by k // 2.

    Returns [B, t', h', w', C], contiguous. Both tensors need one dtype.
    """
    is_trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not is_trained or x.device.type != "cpu" or is_transformed():
        return _convolve(x, weight, stride)
    if not can_pool(x):
        return _depthwise_conv3d(x, weight, list(stride))
    grid = list(x.shape[1:4])
    filters = weight.to(torch.promote_types(x.dtype, torch.float32))
    (pooled,) = pool_tokens(x.flatten(1, 3)[:, :, None, None], [filters], list(stride), grid, 0)
    return pooled.squeeze(1).unflatten(1, pooled_size(grid, weight.shape[1:], stride))


def _convolve(x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    padding = [size // 2 for size in weight.shape[1:]]
    convolved: Tensor = F.conv3d(
        x.permute(0, 4, 1, 2, 3), weight.unsqueeze(1), stride=tuple(stride), padding=padding, groups=weight.shape[0]
    )
    return convolved.permute(0, 2, 3, 4, 1).contiguous()


@kernel_operation("videoattn::depthwise_conv3d", REMEDY)
def _depthwise_conv3d(x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    return _convolve(x, weight, stride)


@_depthwise_conv3d.register_fake
@refuses_tangents("videoattn::depthwise_conv3d", REMEDY)
def _(x: Tensor, weight: Tensor, stride: list[int]) -> Tensor:
    return x.new_empty(x.shape[0], *pooled_size(x.shape[1:4], weight.shape[1:], stride), x.shape[4])


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor, list[int]], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    gradient = gradient.contiguous()
    by_x = gradient_by_input(gradient, weight, x.shape, ctx.stride) if ctx.needs_input_grad[0] else None
    by_weight = gradient_by_weight(gradient, x, weight, ctx.stride) if ctx.needs_input_grad[1] else None
    return by_x, by_weight, None


_depthwise_conv3d.register_autograd(_backward, setup_context=_save_inputs)


@register_flop_formula([torch.ops.videoattn.depthwise_conv3d])
def _count(x: Sequence[int], weight: Sequence[int], stride: Any, *, out_shape: Sequence[int], **_: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def gradient_by_input(gradient: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return the gradient of the convolution's input, [B, t, h, w, C] = `size`, given that of its output."""
    volume = gradient.permute(0, 4, 1, 2, 3)
    met = all(s <= k for s, k in zip(stride, weight.shape[1:], strict=True))  # every input by some tap
    by_x = gradient.new_empty(size) if met else gradient.new_zeros(size)
    for phase in product(*(range(min(s, n)) for s, n in zip(stride, size[1:4], strict=True))):
        taps, pads = [], []
        for r, n, k, s, outputs in zip(phase, size[1:4], weight.shape[1:], stride, gradient.shape[1:4], strict=True):
            # inputs r, r + s, ... meet the taps first, first + s, ... and the outputs from `low` on
            first = (r + k // 2) % s
            shift, count = (r + k // 2 - first) // s, -(-(n - r) // s)
            length = len(range(first, k, s))
            taps.append(slice(first, None, s))
            pads.append((length - 1 - shift, count + shift - outputs))
        filters = weight[:, taps[0], taps[1], taps[2]].flip(1, 2, 3)
        if filters.numel() == 0:
            continue
        if filters.shape[2:] == (1, 1):  # a tap more, of zeros: ten times faster in torch's convolution
            filters, pads[2] = F.pad(filters, (0, 1)), (pads[2][0], pads[2][1] + 1)
        padded = F.pad(volume, [amount for pair in reversed(pads) for amount in pair])  # negative ones crop
        part = F.conv3d(padded, filters.unsqueeze(1), groups=weight.shape[0]).permute(0, 2, 3, 4, 1)
        by_x[:, phase[0] :: stride[0], phase[1] :: stride[1], phase[2] :: stride[2]] = part
    return by_x


def gradient_by_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Return the gradient of `weight` [C, kt, kh, kw], given that of the output, and the input [B, t, h, w, C]."""
    kernel, channels = list(weight.shape[2:]), weight.shape[0]
    plane = weight.new_zeros(channels, 1, *kernel)
    by_weight = []
    for outputs, inputs in _frames_of_taps(weight.shape[1], stride[0], x.shape[1], gradient.shape[1]):
        by_weight.append(
            torch.ops.aten.convolution_backward(
                gradient[:, outputs].flatten(0, 1).permute(0, 3, 1, 2), x[:, inputs].flatten(0, 1).permute(0, 3, 1, 2),
                plane, None, list(stride[1:]), [k // 2 for k in kernel], [1, 1], False, [0, 0], channels,
                [False, True, False],
            )[1]
            if outputs.start < outputs.stop
            else plane
        )  # fmt: skip
    return torch.cat(by_weight, dim=1)


def _frames_of_taps(kernel: int, stride: int, frames: int, outputs: int) -> Iterator[tuple[slice, slice]]:
    """Yield, for each temporal tap, the output frames that it contributes to and the input frames that it reads."""
    for tap in range(kernel):
        offset = tap - kernel // 2
        low = max(0, (stride - 1 - offset) // stride)
        high = min(outputs, (frames - 1 - offset) // stride + 1)
        yield slice(low, max(low, high)), slice(low * stride + offset, (high - 1) * stride + offset + 1, stride)
