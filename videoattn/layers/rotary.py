"""Rotary positions: queries and keys rotated by angles that grow with their frame, row and column."""

from typing import Literal

import torch
from torch import Tensor

from videoattn.grid import TokenGrid
from videoattn.kernels.transforms import is_transformed
from videoattn.layers.position import ComputedTable
from videoattn.layers.views import GridModule

Pairing = Literal["interleaved", "tiled"]


class RotaryPositions(GridModule):
    """Rotates q or k [..., n, d] of the sequences of a grid; prefix tokens are not rotated.

    A head's channels are [t | h | w | rest], D = 2·(d // 6) of them for each axis, and a token at position p along an
    axis rotates the channels (2f, 2f + 1) of that axis by p / 10000^(2f / D). With `pairing` "tiled", channel j is
    rotated by the angle of f = j mod (D/2) instead, so the two channels of a pair have different angles and q·k is no
    function of the difference of positions. The weights of V-JEPA 2 were trained so; those of V-JEPA 2.1 interleave.

    With `base`, rows and columns are scaled to the range of a base x base grid, first to first and last to last.
    Raises ValueError if d is odd or below 6. Source: RoFormer (Su et al., 2021), arXiv 2104.09864, and the released
    code of V-JEPA 2.
    """

    def __init__(self, grid: TokenGrid, head_dim: int, pairing: Pairing = "interleaved", base: int | None = None):
        super().__init__()
        if head_dim % 2 or head_dim < 6:
            raise ValueError(f"rotary positions expect an even head dimension of at least 6, got {head_dim}")
        self.interleaved = pairing == "interleaved"
        self.angles = ComputedTable(rotation_table, grid, head_dim, pairing, base)

    def place_on(self, grid: TokenGrid) -> None:
        _, *rest = self.angles.arguments
        self.angles = self.angles.remade(grid, *rest)

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = self.angles().unbind()
        if _can_be_complex(x):
            return self._rotate_complex(x, cos, sin)
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-second, first), dim=-1).flatten(-2)
        return (x * cos + turned * sin).type_as(x)

    def _rotate_complex(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate pairs as complex numbers: read and written once, several times as fast as the plain form.

        A pair z with the angles a and b becomes u·z + v·conj(z), with u = (e^ia + e^ib) / 2 and
        v = (cos a - cos b + i (sin b - sin a)) / 2, which is zero where they are equal.
        """
        cos_a, cos_b, sin_a, sin_b = cos[:, ::2], cos[:, 1::2], sin[:, ::2], sin[:, 1::2]
        z = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        if self.interleaved:
            rotated = z * torch.complex(cos_a.contiguous(), sin_a.contiguous())
        else:
            u = torch.complex((cos_a + cos_b) / 2, (sin_a + sin_b) / 2)
            v = torch.complex((cos_a - cos_b) / 2, (sin_b - sin_a) / 2)
            rotated = torch.addcmul(z * u, z.conj().resolve_conj(), v)
        return torch.view_as_real(rotated).flatten(-2)


def _can_be_complex(x: Tensor) -> bool:
    """Return whether pairs of channels can be read as complex numbers in place, and nothing traces or compiles.

    Compilers fuse the plain form, and what is exported has real numbers only.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or is_transformed():
        return False
    readable = x.stride(-1) == 1 and all(stride % 2 == 0 for stride in x.stride()[:-1]) and x.storage_offset() % 2 == 0
    return x.device.type != "meta" and x.dtype in (torch.float32, torch.float64) and readable


def rotation_table(grid: TokenGrid, head_dim: int, pairing: Pairing, base: int | None) -> Tensor:
    """Return cosines and sines [2, n, d] in float64."""
    size = head_dim // 6  # angles for each axis
    slowing = 10000.0 ** -(torch.arange(size, dtype=torch.float64, device="cpu") / size)
    positions = []
    for axis, length in enumerate((grid.t, grid.h, grid.w)):
        scale = (base - 1) / max(length - 1, 1) if base is not None and axis else 1.0
        positions.append(torch.arange(length, dtype=torch.float64, device="cpu") * scale)
    places = torch.stack(torch.meshgrid(*positions, indexing="ij"), dim=-1).flatten(0, 2)  # [patches, 3]
    angles = places[:, :, None] * slowing  # [patches, 3, size]
    angles = angles.repeat_interleave(2, dim=2) if pairing == "interleaved" else angles.repeat(1, 1, 2)
    table = torch.zeros(grid.tokens, head_dim, dtype=torch.float64, device="cpu")
    table[grid.prefix :, : 6 * size] = angles.flatten(1)
    return torch.stack([table.cos(), table.sin()])
