"""Sums over relative positions on a grid, y_i = Σ_j table(i - j) x_j, exactly: as matrices of pairs or by FFT.

A table is [heads, L, ...] with one dimension for each of t, h, w: L functions per head. Along an axis of n tokens it
has 2n - 1 entries, relative position δ at index δ + n - 1. Where the axes `wrap` it has n entries, δ at index δ mod n:
the far end of an axis is next to its beginning. An axis of length 1 has a single entry either way.
`videoattn.operators.lisa.toeplitz_axes` forms the same sums axis by axis.
"""

import math

import torch
from torch import Tensor

from videoattn.grid import TokenGrid


def table_sizes(grid: TokenGrid, wrap: bool) -> list[int]:
    """Return the number of entries of a table along t, h, w."""
    return [n if wrap else 2 * n - 1 for n in (grid.t, grid.h, grid.w)]


def unwrapped(table: Tensor, grid: TokenGrid, wrap: bool) -> Tensor:
    """Return the table with 2n - 1 entries along each axis, whether it wraps or not."""
    for dim, n in enumerate((grid.t, grid.h, grid.w), start=2):
        if wrap and n > 1:
            table = torch.cat([table.narrow(dim, 1, n - 1), table], dim)
    return table


def toeplitz_matrices(table: Tensor, grid: TokenGrid, wrap: bool, dtype: torch.dtype) -> Tensor:
    """Return matrices [heads, N, L, N]: for each query i (first N) and function, the row table(i - j) over keys j.

    Rows are windows of the table, so neither the matrices nor their gradient need an index.
    """
    table = unwrapped(table, grid, wrap).flip(2, 3, 4)
    for dim, n in ((-1, grid.w), (-2, grid.h), (-3, grid.t)):
        table = windows(table, dim, n, at=1)
    # to the wanted type after the windows are taken: the gradient of an entry is a sum over up to N of them
    return table.to(dtype).flatten(5).flatten(1, 3)


def windows(table: Tensor, dim: int, n: int, at: int) -> Tensor:
    """Return the n entries of each of n queries' keys, queries in a new dimension `at`; the table is reversed."""
    return torch.stack([table.narrow(dim, n - 1 - i, n) for i in range(n)], at)


def table_spectrum(table: Tensor, grid: TokenGrid, wrap: bool, dtype: torch.dtype) -> Tensor:
    """Return the factors of spectra in `fourier_sums`: [heads, L, *transform lengths], the last one halved, complex."""
    _, entries, sizes = zip(*_long_axes(grid, wrap), strict=True)
    dims = tuple(range(-len(sizes), 0))
    spectrum: Tensor = torch.fft.rfftn(table.to(dtype).flatten(2).unflatten(2, entries), s=sizes, dim=dims)
    return spectrum


def fourier_sums(x: Tensor, spectrum: Tensor, grid: TokenGrid, wrap: bool) -> Tensor:
    """Map [B, heads, N, d] to [B, heads, N, L, d] in x's type, which is float32 or float64.

    Sequences are padded with zeros so far that nothing wraps around, unless it should. On the way back each axis is cut
    to its N as soon as it is transformed, which takes about half the time of one transform of all axes.
    """
    if x.shape[0] == 0:  # MKL transforms no empty batch
        return x.unsqueeze(3) * spectrum.real.flatten(2)[:, None, :, :1]
    lengths, entries, sizes = zip(*_long_axes(grid, wrap), strict=True)
    dims = tuple(range(-len(sizes), 0))
    x_spectrum = torch.fft.rfftn(x.transpose(-2, -1).unflatten(-1, lengths), s=sizes, dim=dims)
    y: Tensor = x_spectrum.unsqueeze(2) * spectrum.unsqueeze(2)
    for dim, n, m, size in zip(dims, lengths, entries, sizes, strict=True):
        y = torch.fft.irfft(y, n=size, dim=dim) if dim == -1 else torch.fft.ifft(y, dim=dim)
        y = y.narrow(dim, m - n, n)  # relative position 0 stands at index m - n
    return y.flatten(-len(sizes)).permute(0, 1, 4, 2, 3)


def table_macs(num_tables: int, grid: TokenGrid, wrap: bool) -> int:
    """Return the MACs of transforming real functions on the padded grid, as in `videoattn.profiling.operations`."""
    sizes = [size for _, _, size in _long_axes(grid, wrap)]
    return round(5 * num_tables * math.prod(sizes) * math.log2(math.prod(sizes)) / 4)


def fourier_macs(num_channels: int, num_patterns: int, grid: TokenGrid, wrap: bool) -> int:
    """Return the MACs of the transforms in `fourier_sums` for one row with heads·d channels, without the table's."""
    axes = _long_axes(grid, wrap)
    macs = table_macs(num_channels, grid, wrap)  # the same sizes
    *shape, last = (size for _, _, size in axes)
    for dim, size in enumerate(shape):
        points = num_channels * num_patterns * math.prod(shape) * (last // 2 + 1)
        macs += round(5 * points * math.log2(size) / 2)
        shape[dim] = axes[dim][0]
    return macs + round(5 * num_channels * num_patterns * math.prod(shape) * last * math.log2(last) / 4)


def _long_axes(grid: TokenGrid, wrap: bool) -> list[tuple[int, int, int]]:
    """Return tokens, table entries and transform length of each axis longer than 1, or of a single axis of 1.

    An axis that wraps is transformed as it is, others at a fast size of at least 2n - 1: a product of 2, 3, 5 and 7,
    along the last axis, where spectra are halved, an even one.
    """
    lengths = [n for n in (grid.t, grid.h, grid.w) if n > 1] or [1]
    if wrap:
        return [(n, n, n) for n in lengths]
    last = len(lengths) - 1
    return [(n, 2 * n - 1, _fast_size(2 * n - 1, even=i == last)) for i, n in enumerate(lengths)]


def _fast_size(size: int, even: bool) -> int:
    """Return the least product of 2, 3, 5 and 7 that is at least `size`, which may stay 1."""
    while size > 1:
        rest = size
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and not (even and size % 2):
            break
        size += 1
    return size
