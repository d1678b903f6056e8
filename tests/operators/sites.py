"""Sites on grids whose t, h and w all differ, and every way an operator can be set up on them."""

from typing import Any

import torch
from torch import Tensor

from videoattn.grid import Axis, TokenGrid
from videoattn.kernels.offsets import is_compiled
from videoattn.operators import AttentionSite

HEADS, D = 3, 8
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("dense", {}),
    ("fibonacci", {"implementation": "masked"}),
    ("fibonacci", {"implementation": "pairs"}),
    ("fibonacci", {"variant": "wythoff", "semantics": "zero_logit", "implementation": "pairs"}),
    ("fibonacci", {"geometry": "axial", "order": "hwt", "heads_permutation": "none", "semantics": "zero_logit"}),
    ("fibonacci", {"geometry": "block", "implementation": "pairs"}),
    ("lisa", {"method": "direct", "num_patterns": 2}),
    ("lisa", {"method": "axes", "num_patterns": 3}),
    ("lisa", {"method": "axes", "wrap": True}),
    ("lisa", {"method": "fft", "num_patterns": 3}),
    ("lisa", {"method": "fft", "wrap": True}),
    ("focused_linear", {}),
    ("focused_linear", {"power": 4.5, "kernel_size": 0}),
    ("focused_linear", {"implementation": "plain"}),
]
if is_compiled():
    SETTINGS += [
        ("fibonacci", {"implementation": "compiled"}),
        ("fibonacci", {"geometry": "axial", "semantics": "zero_logit", "implementation": "compiled"}),
        ("fibonacci", {"geometry": "block", "order": "hwt", "semantics": "zero_logit", "implementation": "compiled"}),
    ]
# axis, prefix tokens, whether keys have a coarser grid than queries
SITES = [(axis, prefix, unequal) for axis in Axis for prefix in (0, 1) for unequal in (False, True)]


def identify(name: str, options: dict[str, Any]) -> str:
    return "-".join([name, *(str(value) for value in options.values())])


def site(axis: Axis, prefix: int, unequal: bool = False, has_bias: bool = False) -> AttentionSite:
    grid = TokenGrid(4, 3, 5, prefix).along(axis)
    kv = TokenGrid(max(grid.t // 2, 1), (grid.h + 1) // 2, (grid.w + 1) // 2, grid.prefix) if unequal else grid
    return AttentionSite(grid, kv, HEADS, D, layer=1, has_bias=has_bias)


def qkv(
    at: AttentionSite, rows: int = 2, groups: int = 1, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = (at.q_grid.tokens, at.kv_grid.tokens, at.kv_grid.tokens)
    return [
        torch.randn(rows, groups * HEADS, n, D, dtype=torch.float64, generator=generator).to(dtype) for n in lengths
    ]
