"""Attention over constant offsets on a CPU: `offset_attention.cpp`, called by ctypes."""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from videoattn.kernels.cpu.compiler import explain_absence, load_library
from videoattn.kernels.layout import DTYPES, make_views

Tables = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "heads", "pattern_heads", "num_positions", "num_queries",
                                              "prefix", "dim", "num_offsets", "num_axes", "block")),
        ("lengths", ctypes.c_int64 * 3),
        ("strides", ctypes.c_int64 * 3),
        *((name, ctypes.c_void_p) for name in ("offsets", "counts", "starts", "queries", "keys")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("zero_logit", "type", "threads")),
    ]  # fmt: skip


def is_compiled() -> bool:
    """Return whether this machine can run the operation on its CPU."""
    return load_library("offset_attention") is not None


def run_forward(
    views: Sequence[Tensor], tables: Tables, lengths: Sequence[int], prefix: int, block: int, zero_logit: bool,
    out: Tensor, logsumexp: Tensor,
) -> None:  # fmt: skip
    """Write what `OffsetPlan.attend` returns to `out`, and each query's log Σ exp to `logsumexp`, [rows, heads, n]."""
    problem = _describe(views[0], tables, lengths, prefix, block, zero_logit)
    _run("offset_attention_forward", problem, (*views, out), logsumexp)


def run_backward(
    views: Sequence[Tensor], tables: Tables, lengths: Sequence[int], prefix: int, block: int, zero_logit: bool,
    out: Tensor, logsumexp: Tensor, gradient: Tensor, gradients: Sequence[Tensor],
) -> None:  # fmt: skip
    """Write the gradients of q, k and v, given that of `out`, to `gradients`."""
    problem = _describe(views[0], tables, lengths, prefix, block, zero_logit)
    _run("offset_attention_backward", problem, (*views, out, gradient, *gradients), logsumexp)


def _describe(q: Tensor, tables: Tables, lengths: Sequence[int], prefix: int, block: int, zero_logit: bool) -> _Problem:
    offsets, counts = tables[:2]
    strides = [math.prod(lengths[axis + 1 :]) for axis in range(len(lengths))]
    return _Problem(
        q.shape[0], q.shape[1], len(counts), math.prod(lengths), q.shape[2] - prefix, prefix, q.shape[3],
        offsets.shape[1], len(lengths), block, (ctypes.c_int64 * 3)(*lengths), (ctypes.c_int64 * 3)(*strides),
        *(None if table is None else table.data_ptr() for table in tables),
        1 / math.sqrt(q.shape[3]), zero_logit, DTYPES[q.dtype], torch.get_num_threads(),
    )  # fmt: skip


def _run(name: str, problem: _Problem, tensors: Sequence[Tensor], logsumexp: Tensor) -> None:
    if problem.rows == 0:
        return
    library = load_library("offset_attention")
    if library is None:
        raise RuntimeError(
            f"offset attention has no kernel here ({explain_absence('offset_attention')}); use another implementation"
        )
    failed = getattr(library, name)(ctypes.byref(problem), make_views(tensors), ctypes.c_void_p(logsumexp.data_ptr()))
    if failed:
        raise MemoryError(f"{name} of {tuple(tensors[0].shape)} ran out of memory")
