"""Dense attention within many short sequences on a GPU, such as one per location along time.

Torch's fused attention pads each sequence to a tile of its own; `triton/short.py` puts several into one tile.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from videoattn.kernels.layout import empty_gradients, empty_outputs, make_readable, split
from videoattn.kernels.plain import mix_by_softmax
from videoattn.kernels.transforms import (
    gradients_of,
    is_transformed,
    kernel_operation,
    refuses_tangents,
    register_derivative,
)
from videoattn.kernels.triton.launch import supports_short

REMEDY = "call torch's scaled_dot_product_attention"


def fits(q: Tensor, k: Tensor | None = None, v: Tensor | None = None) -> bool:
    """Return whether `short_attention` accepts these tensors; `q` alone is a packed tensor.

    It needs a GPU and few tokens, of q as many as of k and v, and has no formulas for transforms.
    """
    if not q.is_cuda or is_transformed() or not supports_short(q.shape[-1], q.dtype, q.shape[2]):
        return False
    return all(x is None or (x.shape == q.shape and x.dtype == q.dtype) for x in (k, v))


@kernel_operation("videoattn::short_attention", REMEDY, device_types=("cuda", "cpu"))
def short_attention(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mixed values [rows, groups·heads, n, d], and each query's log Σ exp of its logits.

    `tensors` are q, k and v, [rows, groups·heads, n, d], or one packed [rows, groups·heads, n, 3, d] that `fits`.
    On a CPU only Triton's interpreter runs it.
    """
    from videoattn.kernels.triton import short as triton_short

    out, logsumexp = empty_outputs(tensors)
    triton_short.run_forward(split(make_readable(tensors)), out, logsumexp)
    return out, logsumexp


@kernel_operation("videoattn::short_attention_backward", REMEDY, device_types=("cuda", "cpu"))
def short_attention_backward(gradient: Tensor, logsumexp: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    from videoattn.kernels.triton import short as triton_short

    gradients = empty_gradients(tensors)
    (gradient,) = make_readable([gradient])
    triton_short.run_backward(split(make_readable(tensors)), logsumexp, gradient, split(gradients))
    return gradients


@short_attention.register_fake
@refuses_tangents("videoattn::short_attention", REMEDY)
def _(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return empty_outputs(tensors)


@short_attention_backward.register_fake
@refuses_tangents("videoattn::short_attention_backward", REMEDY)
def _(gradient: Tensor, logsumexp: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    return empty_gradients(tensors)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> list[Tensor]:
    *tensors, logsumexp = ctx.saved_tensors
    return short_attention_backward(gradient, logsumexp, tensors)


short_attention.register_autograd(_backward, setup_context=_save_for_backward)


def _plain_gradients(gradient: Tensor, logsumexp: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    return gradients_of(lambda *given: mix_by_softmax(given)[0], tensors, gradient)


register_derivative(short_attention_backward, _plain_gradients)


# Torch's counter takes a multiply-add for two operations. Backward: the logits anew, and four products more.


@register_flop_formula([torch.ops.videoattn.short_attention])
def _count_forward(tensors: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    return 2 * multiply_adds(tensors[0], tensors[0][2])


@register_flop_formula([torch.ops.videoattn.short_attention_backward])
def _count_backward(gradient: Sequence[int], *_: Any, **__: Any) -> int:
    return 5 * multiply_adds(gradient, gradient[2])


def multiply_adds(q_shape: Sequence[int], num_keys: int) -> int:
    """Return the multiply-adds of q·k and weights·v over every pair of tokens."""
    return 2 * math.prod(q_shape[:3]) * q_shape[-1] * num_keys
