"""Tile lengths and warps of the Triton kernels: how many tokens one program takes."""

from typing import Any, Literal, NamedTuple

import torch

Kernel = Literal["forward", "by_query", "by_key", "short", "blocks"]

# Numbers of a tile, tokens times padded head dimension, that the registers of 4 warps hold without spilling. Chosen
# from what the compiler reports for sm_90; none is timed yet (benchmarks/tune_triton.py times them on a GPU).
TILE_NUMBERS: dict[Kernel, int] = {"forward": 4096, "by_query": 2048, "by_key": 2048}
WARPS = 4
# Lanes of a tile of the kernel for short sequences, which holds whole sequences, and the widest head. Float32 has a
# smaller tile: tensor cores don't take it as it is, so that its products take registers.
SHORT_TILES = {torch.float32: (32, 64), torch.bfloat16: (64, 128), torch.float16: (64, 128)}
# For a block of 16: how many tokens it meets in one step, and by how many warps.
BLOCK_LAUNCHES = {torch.float32: (16, 4), torch.bfloat16: (32, 2), torch.float16: (32, 2)}

# Tokens that one program walks through for a token of the prefix, which attends to all.
WALK = 2048


class Launch(NamedTuple):
    """Launch of a kernel with `tile` tokens for each program; `options` are the compiler's."""

    tile: int
    warps: int = WARPS

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.warps, "enable_fp_fusion": True}  # multiply-adds in one rounding, which saves time


def launch_of(kernel: Kernel, dim: int, dtype: torch.dtype, length: int) -> Launch:
    """Return the launch for head dimension `dim` and `length` tokens; its `tile` is a power of two."""
    if kernel == "short":
        return Launch(SHORT_TILES[dtype][0], WARPS if dim <= 64 else 2 * WARPS)
    if kernel == "blocks":
        tile, warps = BLOCK_LAUNCHES[dtype]
        return Launch(tile, warps if dim <= 64 else 2 * warps)
    numbers = TILE_NUMBERS[kernel] // (2 if dtype is torch.float64 else 1)
    tile = min(numbers // power_of_two(dim), 128, power_of_two(length))
    return Launch(max(tile, 16))


def supports_short(dim: int, dtype: torch.dtype, length: int) -> bool:
    """Return whether sequences of `length` tokens fit the kernel for short sequences."""
    tile, widest = SHORT_TILES.get(dtype, (0, 0))
    return length <= tile and dim <= widest


def supports_blocks(block: int, dim: int, dtype: torch.dtype) -> bool:
    """Return whether blocks of `block` positions fit the kernels that multiply them on tensor cores."""
    return block == 16 and dim <= 128 and dtype in BLOCK_LAUNCHES


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not less than `number`."""
    return 1 << (number - 1).bit_length()
