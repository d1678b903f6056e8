"""Focused linear attention and its depthwise convolution in one pass over q, k and v, by `focused_linear.cpp`.

`videoattn.operators.focused_linear` says what is computed, and `videoattn.kernels.focused_plain` is the plain form.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from videoattn.kernels.cpu.compiler import explain_absence, load_library
from videoattn.kernels.focused_plain import attend_plainly
from videoattn.kernels.layout import DTYPES, View, empty_like_projection, make_readable, make_views, split
from videoattn.kernels.transforms import (
    gradients_of,
    is_transformed,
    kernel_operation,
    refuses_tangents,
    register_derivative,
)

REMEDY = "call videoattn.kernels.focused.attend, or set IMPLEMENTATION: plain"
# Powers up to this one are formed by multiplying, where they are whole numbers.
WHOLE_POWERS = 16
# scale, by_frame, by_place, space, time, bias
Parameters = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def is_compiled() -> bool:
    """Return whether this machine can run the operation on its CPU."""
    return load_library("focused_linear") is not None


def attend(
    tensors: Sequence[Tensor], scale: Tensor, parameters: Sequence[Tensor | None], grid: Sequence[int], prefix: int,
    power: float,
) -> Tensor:  # fmt: skip
    """Return mixed values [rows, groups·heads, Nq, d] in the inputs' dtype, each token's heads side by side.

    `tensors` are q, k and v, [rows, groups·heads, n, d], or, where queries and keys are the same tokens, one packed
    [rows, groups·heads, n, 3, d]. They may be strided. Parameters are float32, for float64 tensors float64: `scale`
    [heads·d] after its softplus; the position embeddings by frame [frames, heads·d] and by place [places, heads·d], one
    of them or both, whose sum is added to the keys of frames·places patches; and of the convolution the kernels in
    space [d, 1, kh, kw] and along time [d, 1, kt, 1], and the bias [d], without which nothing is convolved. With it,
    the patches of both queries and keys stand on `grid` (t, h, w). Raises ValueError where these don't fit.
    """
    if is_transformed():
        return attend_plainly(tensors, scale, parameters, grid, prefix, power)
    out, _, _ = focused_linear(list(tensors), scale, *parameters, list(grid), prefix, power)
    return out


# ---- the operation: also returns the norms of q and k by token, as `focus.h` describes them, [sequences, n, 3]


@kernel_operation("videoattn::focused_linear", REMEDY, device_types="cpu")
def focused_linear(
    tensors: Sequence[Tensor], scale: Tensor, by_frame: Tensor | None, by_place: Tensor | None, space: Tensor | None,
    time: Tensor | None, bias: Tensor | None, grid: Sequence[int], prefix: int, power: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out, *norms = _empty_outputs(tensors, scale)
    views = split(make_readable(tensors))
    parameters = _contiguous((scale, by_frame, by_place, space, time, bias))
    problem = _describe(views, parameters, grid, prefix, power)
    _run("focused_linear_forward", problem, (*views, out), norms)
    return out, norms[0], norms[1]


@kernel_operation("videoattn::focused_linear_backward", REMEDY, device_types="cpu")
def focused_linear_backward(
    gradient: Tensor, q_norms: Tensor, k_norms: Tensor, tensors: Sequence[Tensor], scale: Tensor,
    by_frame: Tensor | None, by_place: Tensor | None, space: Tensor | None, time: Tensor | None, bias: Tensor | None,
    grid: Sequence[int], prefix: int, power: float,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of the tensors, and of the parameters that are given."""
    views = (*split(make_readable(tensors)), *make_readable([gradient]))
    parameters = _contiguous((scale, by_frame, by_place, space, time, bias))
    problem = _describe(views[:3], parameters, grid, prefix, power)
    by_tensors = [empty_like_projection(x, scale.dtype) for x in tensors]
    by_scale, by_space, by_time, by_bias = (
        None if x is None else torch.zeros_like(x) for x in (parameters[0], *parameters[3:])
    )
    shifts = scale.new_zeros(problem.frames_of_keys, problem.places, scale.shape[0])
    own = (by_scale, shifts, by_space, by_time, by_bias)
    _run("focused_linear_backward", problem, views, (q_norms, k_norms), split(by_tensors), own)
    by_frame, by_place = (None if x is None else shifts.sum(axis) for x, axis in ((by_frame, 1), (by_place, 0)))
    by_parameters = (by_scale, by_frame, by_place, by_space, by_time, by_bias)
    return [*(x.to(gradient.dtype) for x in by_tensors), *(x for x in by_parameters if x is not None)]


def _empty_outputs(tensors: Sequence[Tensor], scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, _ = split(tensors)
    sequences = q.shape[0] * (q.shape[1] * q.shape[-1] // scale.shape[0])
    norms = [scale.new_empty(sequences, x.shape[2], 3) for x in (q, k)]
    return empty_like_projection(q), norms[0], norms[1]


def _contiguous(parameters: Parameters) -> tuple[Any, ...]:
    return tuple(None if x is None else x.contiguous() for x in parameters)


@focused_linear.register_fake
@refuses_tangents("videoattn::focused_linear", REMEDY)
def _(tensors: Sequence[Tensor], scale: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_outputs(tensors, scale)


@focused_linear_backward.register_fake
@refuses_tangents("videoattn::focused_linear_backward", REMEDY)
def _(gradient: Tensor, q_norms: Any, k_norms: Any, tensors: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    parameters = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in arguments[:6] if x is not None]
    return [*(empty_like_projection(x) for x in tensors), *parameters]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    tensors, *parameters, grid, prefix, power = inputs
    ctx.num_tensors, ctx.options = len(tensors), (grid, prefix, power)
    ctx.save_for_backward(*output[1:], *tensors, *parameters)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Any, ...]:
    q_norms, k_norms, *rest = ctx.saved_tensors
    tensors, parameters = rest[: ctx.num_tensors], rest[ctx.num_tensors :]
    gradients = focused_linear_backward(gradient, q_norms, k_norms, tensors, *parameters, *ctx.options)
    by_parameters = iter(gradients[ctx.num_tensors :])
    return gradients[: ctx.num_tensors], *(None if x is None else next(by_parameters) for x in parameters), *(None,) * 3


focused_linear.register_autograd(_backward, setup_context=_save_for_backward)


def _plain_gradients(
    gradient: Tensor, q_norms: Tensor, k_norms: Tensor, tensors: Sequence[Tensor], scale: Tensor, *arguments: Any
) -> list[Tensor]:
    *parameters, grid, prefix, power = arguments
    given = [x for x in parameters if x is not None]

    def run(*inputs: Tensor) -> Tensor:
        scale, *rest = inputs[len(tensors) :]
        own = iter(rest)
        every = [None if x is None else next(own) for x in parameters]
        return attend_plainly(inputs[: len(tensors)], scale, every, grid, prefix, power)

    return gradients_of(run, [*tensors, scale, *given], gradient)


register_derivative(focused_linear_backward, _plain_gradients)


# Torch's counter takes a multiply-add for two operations. Backward: forward's again but for the products with the sums
# over keys, and each product twice more, which is rounded up to three times forward.


@register_flop_formula([torch.ops.videoattn.focused_linear])
def _count_forward(*arguments: Any, **_: Any) -> int:
    return 2 * multiply_adds(*arguments)


@register_flop_formula([torch.ops.videoattn.focused_linear_backward])
def _count_backward(gradient: Any, q_norms: Any, k_norms: Any, *arguments: Any, **_: Any) -> int:
    return 6 * multiply_adds(*arguments)


def multiply_adds(
    tensors: Sequence[Sequence[int]], scale: Any, by_frame: Any, by_place: Any, space: Sequence[int] | None,
    time: Sequence[int] | None, bias: Any, grid: Sequence[int], *_: Any,
) -> int:  # fmt: skip
    """Return the multiply-adds of the sums over keys, the products with them, and every tap of the convolution.

    Taps beyond the border count too. Takes shapes for the operation's tensors.
    """
    q, k = tensors[0], tensors[0 if len(tensors) == 1 else 1]
    taps = sum(math.prod(kernel[1:]) for kernel in (space, time) if kernel)
    return q[0] * q[1] * q[-1] * (q[-1] * (q[2] + k[2]) + q[2] + taps * math.prod(grid))


# ---- the compiled form


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "heads", "site_heads", "num_queries", "num_keys", "prefix", "dim",
                                              "whole", "frames_of_keys", "places", "frames", "height", "width",
                                              "taps_t", "taps_h", "taps_w")),
        ("power", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("scale", "by_frame", "by_place", "space", "time", "bias")),
        *((name, ctypes.c_int32) for name in ("type", "threads")),
    ]  # fmt: skip


class _Arguments(ctypes.Structure):
    _fields_ = [
        ("views", ctypes.POINTER(View)),
        *((name, ctypes.c_void_p) for name in ("queries", "keys")),
        ("gradients", ctypes.POINTER(View)),
        *((name, ctypes.c_void_p) for name in ("scale", "shifts", "space", "time", "bias")),
    ]


def _describe(
    views: Sequence[Tensor], parameters: Parameters, grid: Sequence[int], prefix: int, power: float
) -> _Problem:
    q, k, v = views
    scale, by_frame, by_place, space, time, bias = parameters
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"focused linear attention accepts q, k and v of one dtype of {', '.join(map(str, DTYPES))}, got "
            f"{q.dtype}, {k.dtype}, {v.dtype}"
        )
    wide, d = torch.promote_types(q.dtype, torch.float32), q.shape[-1]
    if any(x is not None and x.dtype != wide for x in parameters):
        raise ValueError(f"focused linear attention of {q.dtype} accepts parameters of {wide}")
    heads = scale.shape[0] // d
    fits = v.shape == k.shape and q.shape[:2] == k.shape[:2] and k.shape[-1] == d and scale.shape[0] == heads * d
    frames, places = (1 if table is None else table.shape[0] for table in (by_frame, by_place))
    fits = fits and q.shape[1] % heads == 0 and k.shape[2] == prefix + frames * places
    fits = fits and all(table is None or table.shape[1:] == scale.shape for table in (by_frame, by_place))
    if bias is not None:
        fits = fits and q.shape[2] == k.shape[2] == prefix + math.prod(grid) and bias.shape == (d,)
        fits = fits and all(kernel is None or kernel.shape[:2] == (d, 1) for kernel in (space, time))
    if not fits:
        raise ValueError(
            f"focused linear attention of {heads} heads on {'x'.join(map(str, grid))} patches and {prefix} prefix "
            f"tokens got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, embeddings of {frames} frames and "
            f"{places} places"
        )
    taps = (0 if time is None else time.shape[2], *((0, 0) if space is None else space.shape[2:]))
    whole = int(power) if power == int(power) and power <= WHOLE_POWERS else 0
    return _Problem(
        q.shape[0], q.shape[1], heads, q.shape[2], k.shape[2], prefix, d, whole, frames, places,
        *grid, *taps, power,
        *(None if x is None else x.data_ptr() for x in parameters), DTYPES[q.dtype], torch.get_num_threads(),
    )  # fmt: skip


def _run(
    name: str, problem: _Problem, views: Sequence[Tensor], norms: Sequence[Tensor], gradients: Sequence[Tensor] = (),
    by_parameters: Sequence[Tensor | None] = (None,) * 5,
) -> None:  # fmt: skip
    if problem.rows * problem.heads == 0:
        return
    library = load_library("focused_linear")
    if library is None:
        raise RuntimeError(
            f"focused linear attention has no kernel here ({explain_absence('focused_linear')}); use its plain form"
        )
    arguments = _Arguments(
        make_views(views), *(x.data_ptr() for x in norms), make_views(gradients),
        *(None if x is None else x.data_ptr() for x in by_parameters),
    )  # fmt: skip
    if getattr(library, name)(ctypes.byref(problem), ctypes.byref(arguments)):
        raise MemoryError(f"{name} of {tuple(views[0].shape)} ran out of memory")
