"""Rows of tensors in a GPU's memory: where tokens lie, and how kernels read and write them.

Tensors are [rows, heads, tokens, DIM], contiguous along DIM, with any other strides, given in elements: so kernels read
the parts of a packed projection where it wrote them. An item is a head of a row, numbered row by row. A tile is
[TILE, WIDTH] numbers in registers, TILE tokens by WIDTH columns, the power of two from DIM on.
"""

import triton
import triton.language as tl


@triton.jit
def start_of(tensor, strides, item, heads):
    """Return the address at which the tokens of a head of a row begin."""
    # a batch may have more than 2**31 numbers, tokens of one head seldom: see `index_type`
    row, head = (item // heads).to(tl.int64), (item % heads).to(tl.int64)
    return tensor + row * strides[0] + head * strides[1]


@triton.jit
def addresses(start, tokens, stride, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Return addresses of the tokens' numbers [TILE, WIDTH], and which columns exist; `tokens` have the index type."""
    # a tile has a power of two columns; those beyond the head's dimension are masked
    columns = tl.arange(0, WIDTH)[None, :]
    return start + tokens[:, None] * stride + columns, columns < DIM


@triton.jit
def read_rows(start, tokens, stride, ok, DIM: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Read rows [TILE, WIDTH] in the computing type, zeros where not `ok`."""
    # padding columns become zeros too, so that products and sums over WIDTH columns are those over DIM
    at, columns = addresses(start, tokens, stride, DIM, WIDTH)
    if DIM == WIDTH:
        rows = tl.load(at, mask=ok[:, None], other=0.0)
    else:
        rows = tl.load(at, mask=ok[:, None] & columns, other=0.0)
    return rows.to(WIDE)


@triton.jit
def write_rows(start, tokens, stride, ok, rows, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Write rows [TILE, WIDTH] where `ok`, rounded to the tensor's type."""
    at, columns = addresses(start, tokens, stride, DIM, WIDTH)
    if DIM == WIDTH:
        tl.store(at, rows.to(start.dtype.element_ty), mask=ok[:, None])
    else:
        tl.store(at, rows.to(start.dtype.element_ty), mask=ok[:, None] & columns)


@triton.jit
def read_row(start, token, stride, DIM: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Read one row as [1, WIDTH]."""
    columns = tl.arange(0, WIDTH)
    row = tl.load(start + tl.cast(token, tl.int64) * stride + columns, mask=columns < DIM, other=0.0)
    return row.to(WIDE)[None, :]


@triton.jit
def write_row(start, token, stride, row, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Write one row [1, WIDTH]."""
    columns = tl.arange(0, WIDTH)[None, :]
    at = start + tl.cast(token, tl.int64) * stride + columns
    tl.store(at, row.to(start.dtype.element_ty), mask=columns < DIM)


@triton.jit
def key_token(position, ok, keys, prefix, INDEX: tl.constexpr):
    """Return the tokens at positions, by the plan's table where there is one; the prefix comes before all patches."""
    # None is known when compiling: without a table nothing is loaded
    if keys is not None:
        position = tl.load(keys + position, mask=ok, other=0)
    return (prefix + position).to(INDEX)
