"""The form in which kernels receive q, k and v: three tensors or one packed, with the strides of their rows."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

# Types of the tensors that kernels read, and the number that stands for each.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}


class View(ctypes.Structure):
    """[rows, heads, tokens, d], contiguous along d; strides in elements."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("row", "head", "token"))]


def make_views(tensors: Sequence[Tensor]) -> "ctypes.Array[View]":
    return (View * len(tensors))(*(View(x.data_ptr(), *x.stride()[:3]) for x in tensors))


def split(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return q, k and v, given these three or one packed tensor [rows, heads, n, 3, d]."""
    return tuple(tensors) if len(tensors) == 3 else tensors[0].unbind(3)


def make_readable(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def empty_like_projection(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor of the shape of `x` [rows, heads, n, ...], with each token's heads side by side.

    That is how a projection lays them out.
    """
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], *x.shape[3:], dtype=dtype or x.dtype).transpose(1, 2)


def empty_outputs(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return room for mixed values [rows, groups·heads, Nq, d], and for each query's log Σ exp, in float32 or wider."""
    q = tensors[0]
    out = empty_like_projection(q if q.dim() == 4 else q[:, :, :, 0])
    return out, q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def empty_gradients(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [empty_like_projection(x) for x in tensors]
