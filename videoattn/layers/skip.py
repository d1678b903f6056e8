"""SkipAt: blocks that reuse what the same slot computed one block earlier instead of attending.

Source: SkipAt (Venkataramanan et al., ICLR 2024), arXiv 2301.02240.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from videoattn.grid import Axis, TokenGrid, fold, merge_calls, split_calls
from videoattn.kernels.depthwise import depthwise_conv3d
from videoattn.layers.attention import BuildOperator, Carry, MultiheadAttention, QkvBias, TokenMixer

Phi = Literal["leff", "identity", "weights"]
KERNEL_SIZE = 5


@dataclass(frozen=True)
class SkipSettings:
    """The blocks (from 0) in which a slot skips attention, and its replacement: leff, identity, or reused weights."""

    blocks: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    phi: Phi = "leff"
    expansion: int = 2

    def __post_init__(self) -> None:
        if self.phi not in get_args(Phi):
            raise ValueError(f"PHI expects one of {', '.join(get_args(Phi))}, got {self.phi!r}")
        if self.expansion < 1:
            raise ValueError(f"EXPANSION expects 1 or more, got {self.expansion}")
        if any(block < 1 for block in self.blocks):
            raise ValueError(f"SKIP expects blocks from 1 on, since block 0 has no block before it; got {self.blocks}")

    def carry_of(self, block: int) -> Carry:
        """Return what the slot of block `block` carries to the next block."""
        if block + 1 not in self.blocks:
            return "nothing"
        return "weights" if self.phi == "weights" else "update"


class Leff(nn.Module):
    """Φ of SkipAt: a hidden layer with a depthwise convolution along the attended axes, then a gate per channel.

    Takes and returns [B, t, h, w, C]; the gate is formed from the mean over the tokens of each sequence.
    Differs: the paper's formula leaves out both GELUs, which its code has.
    """

    def __init__(self, dim: int, axis: Axis, expansion: int = 2) -> None:
        super().__init__()
        self.axis = axis
        k, hidden = KERNEL_SIZE, expansion * dim
        self.expand = nn.Linear(dim, hidden)
        self.conv: nn.Conv2d | nn.Conv3d
        if axis is Axis.JOINT:
            self.conv = nn.Conv3d(hidden, hidden, k, padding=k // 2, groups=hidden)
        else:
            kernel = (k, 1) if axis is Axis.TIME else (k, k)
            self.conv = nn.Conv2d(hidden, hidden, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=hidden)
        self.act = nn.GELU()
        self.reduce = nn.Linear(hidden, dim)
        self.gate = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(self.act(self._convolve(self.act(self.expand(x)))))
        attended = {Axis.SPACE: (2, 3), Axis.TIME: (1,), Axis.JOINT: (1, 2, 3)}[self.axis]
        mean = x.mean(dim=attended, keepdim=True)
        return x * self.gate(mean.flatten(0, 3).unsqueeze(1)).squeeze(1).view(mean.shape).sigmoid()

    def _convolve(self, x: Tensor) -> Tensor:
        batch, t, h, w, _ = x.shape
        if self.axis is Axis.JOINT:
            # several times as fast to train on a CPU as the module's own forward
            assert self.conv.bias is not None
            weight, bias = (y.to(x.dtype) for y in (self.conv.weight, self.conv.bias))
            return depthwise_conv3d(x, weight.squeeze(1), (1, 1, 1)) + bias
        images = x.reshape(batch, t, h * w, -1) if self.axis is Axis.TIME else x.flatten(0, 1)
        # channels come last in memory, as convolutions over them like it
        return self.conv(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(x.shape)


class SkipAttention(TokenMixer):
    """A mixer that reuses the update of the block before: patch rows pass through Φ, prefix rows stay as they are.

    `phi` is a module on [B, t, h, w, C], e.g. `Leff`, or None for the identity. Skipped blocks carry their own
    update on, so that several in a row form a chain.
    """

    def __init__(self, grid: TokenGrid, axis: Axis, phi: nn.Module | None, carry: Carry = "nothing") -> None:
        super().__init__(grid, axis, carry)
        self.phi = phi

    def place_on(self, grid: TokenGrid) -> None:
        self.grid = grid

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if carried is None:
            raise ValueError(f"a skipped block needs the update of the block before it along {self.axis.name}")
        update = carried
        if self.phi is not None:
            prefix = 0 if self.axis is Axis.TIME else self.grid.prefix
            patches = carried[:, :, prefix:]
            cells = patches.unflatten(2, (-1, self.grid.h, self.grid.w)).flatten(1, 2)  # t from F or from M
            made = self.phi(cells).view(patches.shape)
            update = torch.cat([carried[:, :, :prefix], made], dim=2) if prefix else made
        return update, update if self.carry == "update" else None


class ReusedWeights(TokenMixer):
    """New values mixed by the attention weights of the last block that computed some: no q, k and softmax."""

    def __init__(
        self, dim: int, num_heads: int, grid: TokenGrid, axis: Axis, carry: Carry = "nothing", bias: bool = True
    ) -> None:
        super().__init__(grid, axis, carry)
        self.num_heads = num_heads
        self.kv_grid = grid
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.v = nn.Linear(dim, dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def place_on(self, grid: TokenGrid) -> None:
        self.grid = self.kv_grid = grid

    def values(self, x: Tensor) -> Tensor:
        """Return the values [B, N, heads, d] to be mixed, on `kv_grid`."""
        return self.v(self.norm(x)).unflatten(2, (self.num_heads, -1))

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if carried is None:
            raise ValueError(f"a block that reuses weights needs those of the block before it along {self.axis.name}")
        mixed = carried @ split_calls(fold(self.values(x), self.kv_grid, self.axis), self.axis)
        update = self.proj(merge_calls(mixed, x.shape[0], self.num_heads, self.axis))
        return update, carried if self.carry == "weights" else None


def build_mixer(
    dim: int, num_heads: int, grid: TokenGrid, axis: Axis, block: int, operator: BuildOperator,
    skip: Mapping[Axis, SkipSettings], bias: QkvBias = "all", rotate: nn.Module | None = None,
) -> TokenMixer:  # fmt: skip
    """Build the mixer along `axis` of block `block`: attention with `operator`, or its replacement from `skip`."""
    settings = skip.get(axis, SkipSettings(()))
    carry = settings.carry_of(block)
    if block not in settings.blocks:
        return MultiheadAttention(dim, num_heads, grid, axis, block, operator, bias, carry, rotate)
    if settings.phi == "weights":
        return ReusedWeights(dim, num_heads, grid, axis, carry, bias=bias != "none")
    phi = Leff(dim, axis, settings.expansion) if settings.phi == "leff" else None
    return SkipAttention(grid, axis, phi, carry)
