"""Stochastic depth of a residual branch."""

from typing import Literal

import torch
from torch import Tensor, nn

from videoattn.grid import Axis

DropUnit = Literal["call", "sample"]


class DropPath(nn.Module):
    """Zeroes whole units of a branch in training and scales the rest by 1 / (1 - rate).

    A unit is a clip, or with `axis` and unit "call" one sequence of the folded layout [B, F, M, C]: a frame
    along SPACE, a location's track along TIME, the clip along JOINT. Source: Huang et al., 2016; TimeSformer's
    released code drops sequences, because its batch axis holds them.
    """

    def __init__(self, rate: float, axis: Axis | None = None, unit: DropUnit = "sample") -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a drop rate lies in [0, 1), got {rate}")
        self.rate = rate
        self.axis = axis if unit == "call" else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        shape = [x.shape[0]] + [1] * (x.dim() - 1)
        if self.axis in (Axis.SPACE, Axis.TIME):
            kept = 1 if self.axis is Axis.SPACE else 2
            shape[kept] = x.shape[kept]
        keep = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"{self.rate:.3g}" + (f", axis={self.axis.value}" if self.axis else "")
