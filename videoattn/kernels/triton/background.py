"""Gradients that values get from logits 0 outside the pattern on a GPU: a query adds the same to every value."""

import triton
import triton.language as tl
from torch import Tensor

from videoattn.kernels.triton.arguments import describe_rows, index_type, on_device_of, strides_of
from videoattn.kernels.triton.launch import launch_of
from videoattn.kernels.triton.rows import read_rows, start_of

CHUNK = 1024  # tokens that one program of `sum_gradients` sums


@triton.jit
def sum_gradients(
    gradient, backgrounds, sums, gradient_strides, items, heads, tokens,
    DIM: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr, INDEX: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Sum one chunk of a head's gradients by the output, weighted by `backgrounds`, to [chunks, items, DIM]."""
    # gradient is [rows, heads, tokens, DIM], backgrounds [items, tokens]
    item, chunk = tl.program_id(0) % items, tl.program_id(0) // items
    start = start_of(gradient, gradient_strides, item, heads)
    # Σ_i b_i g_i over the chunk's tokens, lane by lane and then across lanes
    total = tl.zeros([TILE, WIDTH], WIDE)
    for first in range(chunk * CHUNK, tl.minimum(tokens, (chunk + 1) * CHUNK), TILE):
        token = (first + tl.arange(0, TILE)).to(INDEX)
        ok = token < tokens
        weight = tl.load(backgrounds + item.to(tl.int64) * tokens + token, mask=ok, other=0.0)
        total += weight[:, None] * read_rows(start, token, gradient_strides[2], ok, DIM, WIDTH, WIDE)
    columns = tl.arange(0, WIDTH)
    at = sums + tl.program_id(0).to(tl.int64) * DIM + columns
    tl.store(at, tl.sum(total, 0), mask=columns < DIM)


def background_of(gradient: Tensor, backgrounds: Tensor | None) -> Tensor | None:
    """Return the part that logits 0 outside the pattern add to every value's gradient, [items, d].

    None where keys outside the pattern are excluded. `gradient` is that of the output, [rows, heads, n, d], and
    `backgrounds` [rows, heads, n] the weight of such a logit for each query.
    """
    if backgrounds is None:
        return None
    rows, heads, tokens, dim = gradient.shape
    launch = launch_of("by_query", dim, gradient.dtype, tokens)
    chunks = triton.cdiv(tokens, CHUNK)
    sums = backgrounds.new_empty(chunks, rows * heads, dim)
    numbers = {name: value for name, value in describe_rows(gradient).items() if name != "SCALE"}
    with on_device_of(gradient):
        sum_gradients[(chunks * rows * heads,)](
            **strides_of(gradient=gradient), backgrounds=backgrounds, sums=sums, items=rows * heads, heads=heads,
            tokens=tokens, CHUNK=CHUNK, INDEX=index_type(gradient), **numbers, TILE=launch.tile, **launch.options,
        )  # fmt: skip
        # chunk by chunk, in the same order every time
        return sums.sum(0)
