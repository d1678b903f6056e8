"""Implementations of attention on one packed tensor of q, k and v, which benchmarks/attention.py compares."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from videoattn.grid import Axis, TokenGrid
from videoattn.operators import AttentionSite, DenseAttention, FibonacciAttention
from videoattn.operators.fibonacci.operator import Implementation

HEADS, HEAD_DIM = 12, 64
Attend = Callable[[Tensor], Tensor]  # packed [rows, groups·heads, n, 3, d] to mixed [rows, groups·heads, n, d]


@dataclass(frozen=True)
class Contender:
    """`build(grid, device)` makes it ready; `longest` is the most tokens it is tried on, for time or memory.

    `trains` says whether it has a backward pass on a CPU; `ran` names the kernel of one that can't be watched.
    """

    build: Callable[[TokenGrid, torch.device], Attend]
    longest: int = 10**9
    trains: bool = True
    ran: str | None = None


def fibonacci(
    implementation: Implementation, variant: str = "wythoff", semantics: str = "exclude", geometry: str = "raster"
) -> Callable[[TokenGrid, torch.device], Attend]:
    def build(grid: TokenGrid, device: torch.device) -> Attend:
        operator = FibonacciAttention(
            AttentionSite(grid, grid, HEADS, HEAD_DIM, block=0),
            variant="modified" if variant == "modified" else "wythoff",
            keep_self=variant == "modified" or grid.tokens < 32,  # a short axis may leave a frame without a key
            semantics="zero_logit" if semantics == "zero_logit" else "exclude",
            geometry="block" if geometry == "block" else "raster",
            implementation=implementation,
        )
        return operator.to(device)

    return build


def dense(grid: TokenGrid, device: torch.device) -> Attend:
    operator = DenseAttention(AttentionSite(grid, grid, HEADS, HEAD_DIM, block=0))
    return lambda packed: operator(*packed.unbind(3))


def mask_of(grid: TokenGrid, device: torch.device) -> Tensor:
    operator = FibonacciAttention(
        AttentionSite(grid, grid, HEADS, HEAD_DIM, block=0), variant="wythoff", keep_self=False, implementation="masked"
    )
    return operator.plan.mask(0, grid.tokens).to(device)


def masked(grid: TokenGrid, device: torch.device) -> Attend:
    """Build fused attention with a boolean mask, the usual way."""
    mask = mask_of(grid, device)

    def attend(packed: Tensor) -> Tensor:
        q, k, v = packed.unbind(3)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return attend


def multiplied(grid: TokenGrid, device: torch.device) -> Attend:
    """Build the form of the released code: all logits, times a mask of zeros and ones."""
    mask = mask_of(grid, device).float()

    def attend(packed: Tensor) -> Tensor:
        q, k, v = packed.unbind(3)
        logits = q @ k.transpose(-2, -1) / math.sqrt(HEAD_DIM)
        return (logits * mask.to(logits.dtype)).softmax(dim=-1) @ v

    return attend


def flex(grid: TokenGrid, device: torch.device) -> Attend:
    """Compiled FlexAttention with a block mask of the pattern."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = mask_of(grid, device)
    blocks = create_block_mask(lambda b, h, q, k: mask[h, q, k], None, HEADS, grid.tokens, grid.tokens, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(packed: Tensor) -> Tensor:
        q, k, v = packed.unbind(3)
        mixed: Tensor = compiled(q, k, v, block_mask=blocks)
        return mixed

    return attend


def rearranged(grid: TokenGrid, device: torch.device) -> Attend:
    """Build temporal attention as usually written: each location's frames are copied together, and back."""

    def attend(packed: Tensor) -> Tensor:
        rows, calls, frames, _, dim = packed.shape
        by_call = packed.permute(3, 0, 1, 2, 4).reshape(3, rows * calls // HEADS, HEADS, frames, dim)
        mixed = F.scaled_dot_product_attention(*by_call.contiguous().unbind(0))
        return mixed.reshape(rows, calls, frames, dim).transpose(1, 2).contiguous().transpose(1, 2)

    return attend


JOINT: dict[str, Contender] = {
    "dense": Contender(dense),
    "masked": Contender(masked, longest=3136),
    "multiplied": Contender(multiplied, longest=1568),
    "flex": Contender(flex, longest=1568, trains=False, ran="flex_attention, compiled"),
    "gather": Contender(fibonacci("gather")),
    "compiled": Contender(fibonacci("compiled")),
    "compiled, zero_logit": Contender(fibonacci("compiled", semantics="zero_logit")),
    "compiled, modified": Contender(fibonacci("compiled", variant="modified")),
    "compiled, block": Contender(fibonacci("compiled", variant="modified", geometry="block")),
    "auto": Contender(fibonacci("auto")),
}
TIME: dict[str, Contender] = {
    "dense": Contender(rearranged),
    "in place": Contender(dense),
    "compiled": Contender(fibonacci("compiled", variant="modified")),
    "auto": Contender(fibonacci("auto", variant="modified")),
}
# tokens of one call: clips at once
LENGTHS = {196: 8, 392: 4, 784: 2, 1568: 1, 3136: 1, 6272: 1, 18816: 1}
FRAMES = {8: 4, 16: 2, 32: 2, 96: 1}
LOCATIONS = 196


def pack(axis: Axis, length: int, device: torch.device, dtype: torch.dtype) -> tuple[TokenGrid, Tensor]:
    """Return the grid of a sequence, and q, k, v as a view of a projection: [rows, groups·heads, n, 3, d]."""
    clips, groups = (FRAMES[length], LOCATIONS) if axis is Axis.TIME else (LENGTHS[length], 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(clips, length, groups * HEADS, 3, HEAD_DIM, generator=generator).to(device, dtype)
    return TokenGrid(length, 1, 1), x.transpose(1, 2).requires_grad_()
