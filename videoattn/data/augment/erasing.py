"""Random erasing: boxes of a clip, the same in all of its frames, overwritten with noise or the mean colour."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

EraseMode = Literal["pixel", "const"]
_AREA = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)


class RandomErasing:
    """Random erasing of one to `count` boxes, which share out the area, of a clip, with probability `prob`.

    A clip is [T, 3, H, W]. Boxes are filled with noise ("pixel") or the mean colour ("const"); `mean` and `std` are in
    0..1 units.

    Source: random erasing (Zhong et al., 2017); PySlowFast, datasets/random_erasing.py.
    Differs: noise is rounded and clamped to 0..255; with several boxes, every frame is erased.
    """

    def __init__(self, prob: float, mode: EraseMode, count: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.prob = prob
        self.mode = mode
        self.count = count
        self._mean = 255 * torch.tensor(mean).view(3, 1, 1)
        self._std = 255 * torch.tensor(std).view(3, 1, 1)

    def __call__(self, frames: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Return erased uint8 frames as a new tensor, or the given frames if nothing is erased.

        Boxes are drawn from torch's global generator. So are their pixels, unless `noise`, a generator on the device of
        the frames, is given.
        """
        if not self.prob or torch.rand(()).item() >= self.prob:
            return frames
        frames = frames.clone()
        mean, std = self._mean.to(frames.device), self._std.to(frames.device)
        count = int(torch.randint(1, self.count + 1, ()).item())
        for _ in range(count):
            box = _draw_box(frames.shape[-2], frames.shape[-1], count)
            if box is None:
                continue
            erased = frames[..., box[0], box[1]]
            values = torch.zeros(erased.shape, device=frames.device)
            if self.mode == "pixel":
                values = torch.randn(erased.shape, device=frames.device, generator=noise)
            erased.copy_((values * std + mean).round_().clamp_(0, 255))
        return frames


def uniform(low: float, high: float) -> float:
    """Return a number between `low` and `high` drawn from torch's global generator."""
    return low + (high - low) * torch.rand((), dtype=torch.float64).item()


def _draw_box(height: int, width: int, count: int) -> tuple[slice, slice] | None:
    """Return rows and columns of one of `count` erased boxes, or None if no box drawn in ten attempts fits."""
    low, high = (math.log(ratio) for ratio in _ASPECT)
    for _ in range(10):
        area = uniform(*_AREA) * height * width / count
        aspect = math.exp(uniform(low, high))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top = int(torch.randint(0, height - h + 1, ()).item())
            left = int(torch.randint(0, width - w + 1, ()).item())
            return slice(top, top + h), slice(left, left + w)
    return None
