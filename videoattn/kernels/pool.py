"""Depthwise convolution of tokens on a grid that copies class tokens: MViT's pooling, by `pool_tokens.cpp` on a CPU.

On other devices, and where nothing can be compiled, `videoattn.kernels.depthwise` convolves.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from videoattn.kernels.cpu.compiler import explain_absence, load_library
from videoattn.kernels.layout import DTYPES, make_readable, make_views
from videoattn.kernels.transforms import (
    constant_when_compiled,
    gradients_of,
    is_transformed,
    kernel_operation,
    refuses_tangents,
    register_derivative,
)

REMEDY = "call depthwise_conv3d"


def can_pool(x: Tensor) -> bool:
    """Return whether the operation accepts such a tensor on this machine.

    False in traces, which other machines may run, and in transforms, for which it has no formulas.
    """
    return x.device.type == "cpu" and x.dtype in DTYPES and _is_at_hand() and not is_transformed()


@constant_when_compiled
def _is_at_hand() -> bool:
    return torch._C._get_tracing_state() is None and load_library("pool_tokens") is not None


# ---- the operation. Strides are three for each tensor in turn, so that its signature holds plain numbers only.


@kernel_operation("videoattn::pool_tokens", REMEDY, device_types="cpu")
def pool_tokens(
    x: Tensor, filters: Sequence[Tensor], strides: Sequence[int], grid: Sequence[int], prefix: int
) -> list[Tensor]:
    """Pool each of the P tensors packed in `x` [B, N, heads, P, d] with its own filter, to [B, heads, N', d].

    N is `prefix` tokens, which are copied, and those of `grid` (t, h, w), which are convolved, padded by kernel // 2.
    Filters are [d, kt, kh, kw], float32, or float64 for such tokens; one of a single 1 copies. `x` is float32, bfloat16
    or float64 and may be strided. Raises ValueError where shapes or types don't fit.
    """
    outputs = _empty_outputs(x, filters, strides, grid, prefix)
    (tokens,) = make_readable([x])
    for i, (weight, out) in enumerate(zip(filters, outputs, strict=True)):
        problem = _describe(tokens, weight, strides[3 * i : 3 * i + 3], grid, prefix)
        _run("pool_tokens_forward", problem, (_arrange(tokens, i), out), _by_tap(weight))
    return outputs


@kernel_operation("videoattn::pool_tokens_backward", REMEDY, device_types="cpu")
def pool_tokens_backward(
    gradients: Sequence[Tensor], x: Tensor, filters: Sequence[Tensor], strides: Sequence[int], grid: Sequence[int],
    prefix: int, needs_x: bool, needs_filters: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of x, if needed, and of those filters that need one."""
    (tokens,) = make_readable([x])
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
    results = [] if by_x is None else [by_x]
    for i, (weight, gradient) in enumerate(zip(filters, make_readable(gradients), strict=True)):
        problem = _describe(tokens, weight, strides[3 * i : 3 * i + 3], grid, prefix)
        if by_x is not None:
            _run("pool_tokens_by_input", problem, (gradient, _arrange(by_x, i)), _by_tap(weight))
        if needs_filters[i]:
            by_weight = torch.zeros_like(_by_tap(weight))
            _run("pool_tokens_by_filter", problem, (gradient, _arrange(tokens, i)), by_weight)
            results.append(by_weight.t().contiguous().view(weight.shape))
    return results


def _arrange(x: Tensor, i: int) -> Tensor:
    return x[:, :, :, i].transpose(1, 2)


def _by_tap(weight: Tensor) -> Tensor:
    return weight.flatten(1).t().contiguous()


def pooled_size(grid: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> list[int]:
    """Return the size of a pooled grid (t, h, w)."""
    return [(n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(grid, kernel, stride, strict=True)]


def _empty_outputs(
    x: Tensor, filters: Sequence[Tensor], strides: Sequence[int], grid: Sequence[int], prefix: int
) -> list[Tensor]:
    batch, _, heads, _, d = x.shape
    tokens = [
        prefix + math.prod(pooled_size(grid, weight.shape[1:], strides[3 * i : 3 * i + 3]))
        for i, weight in enumerate(filters)
    ]
    return [x.new_empty(batch, heads, n, d) for n in tokens]


@pool_tokens.register_fake
@refuses_tangents("videoattn::pool_tokens", REMEDY)
def _(x: Tensor, filters: Sequence[Tensor], strides: Sequence[int], grid: Sequence[int], prefix: int) -> list[Tensor]:
    return _empty_outputs(x, filters, strides, grid, prefix)


@pool_tokens_backward.register_fake
@refuses_tangents("videoattn::pool_tokens_backward", REMEDY)
def _(
    gradients: Any, x: Tensor, filters: Sequence[Tensor], strides: Any, grid: Any, prefix: int, needs_x: bool,
    needs_filters: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    needed = [weight for weight, is_needed in zip(filters, needs_filters, strict=True) if is_needed]
    return [torch.empty_like(y, memory_format=torch.contiguous_format) for y in ([x] if needs_x else []) + needed]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, filters, *ctx.options = inputs
    ctx.save_for_backward(x, *filters)


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    x, *filters = ctx.saved_tensors
    needs_x, needs_filters = ctx.needs_input_grad[:2]
    formed = iter(pool_tokens_backward(gradients, x, filters, *ctx.options, needs_x, list(needs_filters)))
    by_x = next(formed) if needs_x else None
    return by_x, [next(formed) if needed else None for needed in needs_filters], None, None, None


pool_tokens.register_autograd(_backward, setup_context=_save_for_backward)


def _plain(
    x: Tensor, filters: Sequence[Tensor], strides: Sequence[int], grid: Sequence[int], prefix: int
) -> list[Tensor]:
    outputs = []
    for i, weight in enumerate(filters):
        tokens = x[:, :, :, i].permute(0, 2, 3, 1).to(weight.dtype)  # [B, heads, d, N]
        volumes = tokens[..., prefix:].flatten(0, 1).unflatten(-1, tuple(grid))
        padding, stride = [size // 2 for size in weight.shape[1:]], tuple(strides[3 * i : 3 * i + 3])
        pooled = F.conv3d(volumes, weight.unsqueeze(1), stride=stride, padding=padding, groups=len(weight))
        pooled = pooled.flatten(2).unflatten(0, tokens.shape[:2])
        outputs.append(torch.cat([tokens[..., :prefix], pooled], dim=-1).transpose(2, 3).to(x.dtype))
    return outputs


def _plain_gradients(
    gradients: Sequence[Tensor], x: Tensor, filters: Sequence[Tensor], strides: Sequence[int], grid: Sequence[int],
    prefix: int, needs_x: bool, needs_filters: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    found = gradients_of(lambda x, *filters: _plain(x, filters, strides, grid, prefix), [x, *filters], gradients)
    return [y for y, is_needed in zip(found, [needs_x, *needs_filters], strict=True) if is_needed]


register_derivative(pool_tokens_backward, _plain_gradients)


# Torch's counter takes a multiply-add for two operations. A filter of one tap copies.


@register_flop_formula([torch.ops.videoattn.pool_tokens])
def _count_forward(*arguments: Any, **_: Any) -> int:
    return 2 * multiply_adds(*arguments)


@register_flop_formula([torch.ops.videoattn.pool_tokens_backward])
def _count_backward(gradients: Any, *arguments: Any, **_: Any) -> int:
    return 4 * multiply_adds(*arguments)


def multiply_adds(
    x: Sequence[int], filters: Sequence[Sequence[int]], strides: Sequence[int], grid: Sequence[int], *_: Any
) -> int:
    """Return the multiply-adds of every tap of every pooled patch, at the border too.

    Takes shapes for the operation's tensors.
    """
    total = 0
    for i, weight in enumerate(filters):
        taps = math.prod(weight[1:])
        if taps > 1:
            total += x[0] * x[2] * x[4] * taps * math.prod(pooled_size(grid, weight[1:], strides[3 * i : 3 * i + 3]))
    return total


# ---- the compiled form


class _Axis(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("inputs", "outputs", "kernel", "stride")]


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "heads", "dim", "prefix")),
        ("axes", _Axis * 3),
        *((name, ctypes.c_int32) for name in ("type", "threads")),
    ]


def _describe(x: Tensor, weight: Tensor, stride: Sequence[int], grid: Sequence[int], prefix: int) -> _Problem:
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.dtype not in DTYPES or weight.dtype != wide:
        raise ValueError(
            f"pooling accepts tokens of {', '.join(map(str, DTYPES))} with filters of float32, or of float64 for such "
            f"tokens, got {x.dtype} and {weight.dtype}"
        )
    batch, tokens, heads, _, d = x.shape
    if tokens != prefix + math.prod(grid) or weight.dim() != 4 or weight.shape[0] != d:
        raise ValueError(
            f"pooling on {'x'.join(map(str, grid))} patches and {prefix} prefix tokens got tokens {list(x.shape)} and "
            f"filters {list(weight.shape)}"
        )
    kernel = weight.shape[1:]
    axes = [_Axis(*each) for each in zip(grid, pooled_size(grid, kernel, stride), kernel, stride, strict=True)]
    return _Problem(batch, heads, d, prefix, (_Axis * 3)(*axes), DTYPES[x.dtype], torch.get_num_threads())


def _run(name: str, problem: _Problem, tensors: Sequence[Tensor], filters: Tensor) -> None:
    if problem.rows == 0:
        return
    library = load_library("pool_tokens")
    if library is None:
        raise RuntimeError(f"pooling has no kernel here ({explain_absence('pool_tokens')}); use depthwise_conv3d")
    if getattr(library, name)(ctypes.byref(problem), make_views(tensors), ctypes.c_void_p(filters.data_ptr())):
        raise MemoryError(f"{name} of {tuple(tensors[0].shape)} ran out of memory")
