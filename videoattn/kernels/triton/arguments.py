"""Arguments that the Triton kernels are launched with."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from videoattn.kernels.triton import launch as triton_launch
from videoattn.kernels.triton.launch import power_of_two


def describe(
    views: Sequence[Tensor], tables: Sequence[Tensor | None], lengths: Sequence[int], prefix: int
) -> dict[str, Any]:
    """Return the arguments that all kernels here take to describe a problem, by name."""
    q, offsets, counts, positions = views[0], tables[0], tables[1], math.prod(lengths)
    assert offsets is not None and counts is not None
    # axes of length 1 fill up to three, so that axial kernels have one form
    axes = [positions] if len(lengths) == 1 else [*lengths, *[1] * (3 - len(lengths))]
    return {
        **dict(zip(("offsets", "counts", "starts", "queries", "keys"), tables, strict=True)),
        "lengths": tuple(axes),
        "items": q.shape[0] * q.shape[1],
        "heads": q.shape[1],
        "pattern_heads": len(counts),
        "num_offsets": offsets.shape[1],
        "prefix": prefix,
        "num_queries": q.shape[2] - prefix,
        "positions": positions,
        "AXIAL": len(lengths) > 1,
        **describe_rows(q),
    }


def describe_rows(q: Tensor) -> dict[str, Any]:
    """Return the arguments that follow from a row's type and width; WIDE is the type of sums."""
    dim = q.shape[-1]
    wide = tl.float64 if q.dtype is torch.float64 else tl.float32
    return {"SCALE": 1 / math.sqrt(dim), "DIM": dim, "WIDTH": max(power_of_two(dim), 8), "WIDE": wide}


def strides_of(**views: Tensor) -> dict[str, Any]:
    """Return each tensor under its own name, and its strides by row, head and token, in elements."""
    # the last dimension is contiguous: `make_readable` has seen to it
    return {**views, **{f"{name}_strides": tuple(view.stride()[:3]) for name, view in views.items()}}


def index_type(*views: Tensor) -> Any:
    """Return the type of the distance in elements between tokens: 32 bits save instructions where they suffice."""
    return tl.int32 if max(view.shape[2] * view.stride(2) for view in views) < 2**31 else tl.int64


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one, on which kernels run."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def walks_of(tokens: int) -> int:
    """Return the number of programs that share the tokens to which one of the prefix attends."""
    return int(triton.cdiv(tokens, triton_launch.WALK))


def partial_results(like: Tensor, walks: int, prefix: int, *row: int) -> Tensor | None:
    """Return room for the results of the programs of a prefix token, [walks, rows, heads, prefix, *row].

    None where one program does it all, and writes the result itself.
    """
    return like.new_empty(walks, *like.shape[:2], prefix, *row) if walks > 1 and prefix > 0 else None
