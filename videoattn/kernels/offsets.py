"""Softmax attention over keys at constant offsets, at the cost of the pairs that attend.

No table of pairs exists: a query's keys follow from its position and from the few offsets of its head, which
`offset_plan.py` lists. On a CPU the operation runs `cpu/offset_attention.cpp`, where `load_library` can build it, on a
GPU the kernels of `triton/offsets.py`, for many short sequences those of `triton/short.py`, and between blocks those
of `triton/blocks.py`.
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from videoattn.kernels.cpu import offsets as offsets_cpu
from videoattn.kernels.cpu.offsets import Tables
from videoattn.kernels.cpu.offsets import is_compiled as is_compiled
from videoattn.kernels.layout import DTYPES, empty_gradients, empty_outputs, make_readable, split
from videoattn.kernels.plain import attend_by_offsets
from videoattn.kernels.transforms import gradients_of, kernel_operation, refuses_tangents, register_derivative
from videoattn.kernels.triton.launch import supports_short

OLDEST_TRITON = (3, 3)  # the first whose kernels take tuples
_GPU_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Where torch wants a derivative that the kernels have no formula for.
REMEDY = "call OffsetPlan.attend, or set IMPLEMENTATION: masked"


# ---- the operation: `OffsetPlan.attend` given the plan's tables, which also returns log Σ exp of each query's logits


@kernel_operation("videoattn::offset_attention", REMEDY, device_types="cpu")
def offset_attention(
    tensors: Sequence[Tensor], offsets: Tensor, counts: Tensor, starts: Tensor | None, queries: Tensor | None,
    keys: Tensor | None, lengths: Sequence[int], prefix: int, block: int, zero_logit: bool, num_pairs: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, logsumexp = empty_outputs(tensors)
    views, tables = split(make_readable(tensors)), (offsets, counts, starts, queries, keys)
    _check(views, tables, lengths, prefix, tuple(DTYPES))
    offsets_cpu.run_forward(views, tables, lengths, prefix, block, zero_logit, out, logsumexp)
    return out, logsumexp


@kernel_operation("videoattn::offset_attention_backward", REMEDY, device_types="cpu")
def offset_attention_backward(
    gradient: Tensor, out: Tensor, logsumexp: Tensor, tensors: Sequence[Tensor], offsets: Tensor, counts: Tensor,
    starts: Tensor | None, queries: Tensor | None, keys: Tensor | None, lengths: Sequence[int], prefix: int,
    block: int, zero_logit: bool, num_pairs: int,
) -> list[Tensor]:  # fmt: skip
    gradients = empty_gradients(tensors)
    views, tables = split(make_readable(tensors)), (offsets, counts, starts, queries, keys)
    out, gradient = make_readable([out, gradient])
    offsets_cpu.run_backward(
        views, tables, lengths, prefix, block, zero_logit, out, logsumexp, gradient, split(gradients)
    )
    return gradients


@offset_attention.register_fake
@refuses_tangents("videoattn::offset_attention", REMEDY)
def _(tensors: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    return empty_outputs(tensors)


@offset_attention_backward.register_fake
@refuses_tangents("videoattn::offset_attention_backward", REMEDY)
def _(gradient: Tensor, out: Tensor, logsumexp: Tensor, tensors: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return empty_gradients(tensors)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, *ctx.plan = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    *tensors, out, logsumexp = ctx.saved_tensors
    gradients = offset_attention_backward(gradient, out, logsumexp, tensors, *ctx.plan)
    return gradients, *(None,) * 10


offset_attention.register_autograd(_backward, setup_context=_save_for_backward)


def _plain_gradients(
    gradient: Tensor, out: Tensor, logsumexp: Tensor, tensors: Sequence[Tensor], *plan: Any
) -> list[Tensor]:
    return gradients_of(lambda *given: attend_by_offsets(given, *plan)[0], tensors, gradient)


register_derivative(offset_attention_backward, _plain_gradients)


# Torch's counter takes a multiply-add for two operations. Backward: the logits anew, and four products more.


@register_flop_formula([torch.ops.videoattn.offset_attention])
def _count_forward(tensors: Sequence[Sequence[int]], *arguments: Any, **_: Any) -> int:
    return 2 * multiply_adds(tensors[0], arguments[1], arguments[9])


@register_flop_formula([torch.ops.videoattn.offset_attention_backward])
def _count_backward(gradient: Any, out: Sequence[int], logsumexp: Any, tensors: Any, *arguments: Any, **_: Any) -> int:
    return 5 * multiply_adds(out, arguments[1], arguments[9])


def multiply_adds(q_shape: Sequence[int], counts_shape: Sequence[int], num_pairs: int) -> int:
    """Return the multiply-adds of q·k and weights·v: `num_pairs` pairs in each row and group of heads."""
    return 2 * q_shape[0] * q_shape[1] // counts_shape[0] * num_pairs * q_shape[-1]


def _check(
    views: Sequence[Tensor], tables: Tables, lengths: Sequence[int], prefix: int, types: Sequence[torch.dtype]
) -> None:
    q, k, v = views
    if q.dtype not in types or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"offset attention accepts q, k and v of one dtype of {', '.join(map(str, types))}, got {q.dtype}, "
            f"{k.dtype}, {v.dtype}"
        )
    heads, num_positions = len(tables[1]), math.prod(lengths)
    fits = k.shape[2] == prefix + num_positions and v.shape == k.shape and q.shape[:2] == k.shape[:2]
    if not fits or q.shape[1] % heads or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"offset attention of {heads} heads over {num_positions} keys and {prefix} prefix tokens got "
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        )
    if any(x is not None and x.device != q.device for x in (k, v, *tables)):
        raise ValueError("offset attention needs q, k, v and the plan's tables on one device")


def has_kernel(device_type: str) -> bool:
    """Return whether this machine has a kernel for such a device: for "cpu" by a C++ compiler, for "cuda" by Triton.

    True for "cuda" does not mean that there is a GPU.
    """
    return has_triton() if device_type == "cuda" else device_type == "cpu" and is_compiled()


@functools.cache
def has_triton() -> bool:
    """Return whether a Triton that can compile the kernels is installed, without importing it."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:  # installed under another name, as for AMD's GPUs
        return True
    return tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_TRITON


# ---- on a GPU


def _supports_short(q: Tensor, tables: Tables, lengths: Sequence[int], prefix: int) -> bool:
    plain = len(lengths) == 1 and prefix == 0 and tables[2] is None and tables[4] is None
    return plain and supports_short(q.shape[3], q.dtype, q.shape[2])


@offset_attention.register_kernel("cuda")
@refuses_tangents("videoattn::offset_attention", REMEDY)
def attend_on_gpu(
    tensors: Sequence[Tensor], offsets: Tensor, counts: Tensor, starts: Tensor | None, queries: Tensor | None,
    keys: Tensor | None, lengths: Sequence[int], prefix: int, block: int, zero_logit: bool, num_pairs: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if not has_kernel("cuda"):
        oldest = ".".join(map(str, OLDEST_TRITON))
        raise RuntimeError(f"offset attention needs Triton {oldest} or newer on a GPU; use another implementation")
    out, logsumexp = empty_outputs(tensors)
    views, tables = split(make_readable(tensors)), (offsets, counts, starts, queries, keys)
    _check(views, tables, lengths, prefix, _GPU_TYPES)
    if block > 1:
        from videoattn.kernels.triton import blocks as triton_blocks

        triton_blocks.run_forward(views, tables, prefix, block, zero_logit, out, logsumexp)
    elif _supports_short(views[0], tables, lengths, prefix):
        from videoattn.kernels.triton import short as triton_short

        triton_short.run_forward(views, out, logsumexp, offsets, counts, zero_logit)
    else:
        from videoattn.kernels.triton import offsets as triton_offsets

        triton_offsets.run_forward(views, tables, lengths, prefix, zero_logit, out, logsumexp)
    return out, logsumexp


@offset_attention_backward.register_kernel("cuda")
@refuses_tangents("videoattn::offset_attention_backward", REMEDY)
def differentiate_on_gpu(
    gradient: Tensor, out: Tensor, logsumexp: Tensor, tensors: Sequence[Tensor], offsets: Tensor, counts: Tensor,
    starts: Tensor | None, queries: Tensor | None, keys: Tensor | None, lengths: Sequence[int], prefix: int,
    block: int, zero_logit: bool, num_pairs: int,
) -> list[Tensor]:  # fmt: skip
    gradients = empty_gradients(tensors)
    views, tables = split(make_readable(tensors)), (offsets, counts, starts, queries, keys)
    out, gradient = make_readable([out, gradient])
    if block > 1:
        from videoattn.kernels.triton import blocks_backward as triton_blocks_backward

        triton_blocks_backward.run_backward(
            views, tables, prefix, block, zero_logit, out, logsumexp, gradient, split(gradients)
        )
    elif _supports_short(views[0], tables, lengths, prefix):
        from videoattn.kernels.triton import short as triton_short

        triton_short.run_backward(views, logsumexp, gradient, split(gradients), offsets, counts, zero_logit)
    else:
        from videoattn.kernels.triton import offsets_backward as triton_offsets_backward

        triton_offsets_backward.run_backward(
            views, tables, lengths, prefix, zero_logit, out, logsumexp, gradient, split(gradients)
        )
    return gradients
